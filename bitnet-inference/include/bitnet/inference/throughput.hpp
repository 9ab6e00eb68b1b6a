#pragma once
// Measuring a model's speed, and the speed that the machine's limits allow: what `bitnet bench` is made of.
// The limits themselves are measured by core's BandwidthProbe and quant's PeakProbe.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "bitnet/inference/cancellation.hpp"
#include "bitnet/inference/model.hpp"

namespace bitnet::inference {

/// A prompt of `tokens` tokens, or `sequences` sequences that each decode `tokens` tokens from an empty
/// context in one batch.
struct ThroughputTest {
  enum class Kind : std::uint8_t { kPrompt, kDecode };
  Kind kind = Kind::kPrompt;
  std::int64_t tokens = 0;
  std::int64_t sequences = 1;
  /// "pp512", "tg128", "tg128@b16"
  std::string name() const;
  std::int64_t total_tokens() const noexcept { return tokens * sequences; }
};

/// What a model's weights are, as they were prepared for its backend. A tied head counts once; of an
/// embedding table that is no head a token reads one row, which is not counted.
struct WeightCost {
  std::size_t linear_bytes = 0, head_bytes = 0, norm_bytes = 0;
  std::int64_t ternary_weights = 0;  ///< of all linears: multiply-adds a token
  double bits_per_weight = 0;        ///< of the linears
  /// The part of both that rows without logits pass by: the last layer's linears but those of keys and
  /// values.
  std::size_t asked_linear_bytes = 0;
  std::int64_t asked_ternary_weights = 0;
  /// Read in a step that makes logits.
  std::size_t step_bytes() const noexcept { return linear_bytes + head_bytes + norm_bytes; }
};
WeightCost weight_cost(const Model& model);

/// The machine's limits, absent where they are not known (a device's).
struct MachineLimits {
  std::optional<double> read_gbps;  ///< 10^9 bytes/s
  std::optional<double> int8_gops;  ///< 10^9 operations/s, a multiply-add being two
};

enum class Bound : std::uint8_t { kUnknown, kBandwidth, kInteger };

struct ThroughputLimit {
  /// Weights, shared by the sequences of a step, and the keys and values of the mean position.
  double bytes_per_token = 0;
  std::optional<double> tokens_per_second;  ///< the lower of what bandwidth and integers allow
  Bound bound = Bound::kUnknown;            ///< which one that is
};
/// Bandwidth: bytes_per_token, where a prompt reads the weights once for each `chunk_rows` tokens.
/// Integers: 2 × ternary_weights a token; attention and a head of int8 come on top and are not counted. One
/// sequence's decoding has the limit of bandwidth alone. Only the last token of a prompt has logits.
ThroughputLimit throughput_limit(const ThroughputTest& test, const WeightCost& cost,
                                 std::size_t kv_bytes_per_position, std::int64_t chunk_rows,
                                 const MachineLimits& machine);

/// Runs tests on random tokens. A prompt goes in the chunks of a Session and ends with the logits of its last
/// token; each decoded token ends with its logits, but none is sampled. Not thread-safe.
class ThroughputRunner {
 public:
  /// Allocates caches and workspace for the largest of `tests`. Throws Error(kInvalidArgument) on a test with
  /// tokens or sequences < 1, Error(kOutOfMemory).
  ThroughputRunner(std::shared_ptr<const Model> model, std::span<const ThroughputTest> tests,
                   CancellationToken cancellation = {}, std::optional<DType> kv_type = {});
  ~ThroughputRunner();
  ThroughputRunner(const ThroughputRunner&) = delete;
  ThroughputRunner& operator=(const ThroughputRunner&) = delete;

  /// Seconds that one of the constructor's tests takes. Throws Error(kCancelled) between two steps,
  /// Error(kDevice).
  double seconds(const ThroughputTest& test);
  /// A run that is not counted: a whole prompt, or the first 16 tokens of a decode test.
  void warm_up(const ThroughputTest& test);

  std::size_t kv_bytes_per_position() const noexcept;
  std::int64_t chunk_rows() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitnet::inference
