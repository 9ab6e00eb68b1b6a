#pragma once
// One conversation with a model: its tokens, its KV cache, and evaluation of more tokens. Generation on top
// of it is engine.hpp; many sequences at once are batch_scheduler.hpp.
#include <cstdint>
#include <functional>
#include <memory>
#include <memory_resource>
#include <optional>
#include <span>
#include <vector>

#include "bitnet/inference/kv_cache.hpp"
#include "bitnet/inference/model.hpp"

namespace bitnet::inference {

class AdapterSet;
class ForwardPass;
class PoolValues;

struct SessionOptions {
  std::int64_t n_ctx = 0;             ///< tokens; 0: see resolve_context()
  std::int64_t chunk_rows = 256;      ///< rows of one forward pass: longer inputs go in chunks
  std::optional<DType> kv_type = {};  ///< of the KV cache; none: what the model's policy says (f16)
};

/// Context length to use: `requested`, or the model's own, at most 4096, when 0. Throws
/// Error(kInvalidArgument) when it is negative or over 2^22.
std::int64_t resolve_context(const ModelConfig& config, std::int64_t requested);

/// Not thread-safe. Logits are bit-equal however the tokens are cut into calls.
class Session {
 public:
  static constexpr std::int64_t kMaxLogits = 32;  ///< rows of logits at a time: 16 MB for 128 k words

  /// Allocates caches and workspace once. Throws Error(kInvalidArgument | kOutOfMemory).
  explicit Session(std::shared_ptr<const Model> model, const SessionOptions& options = {});
  ~Session();

  const Model& model() const noexcept { return *model_; }
  std::int64_t n_ctx() const noexcept { return n_ctx_; }
  /// Tokens evaluated so far.
  const std::vector<TokenId>& tokens() const noexcept { return tokens_; }

  /// Evaluates `ids` after what is there; returns the logits [n_logits, vocab] after each of the last
  /// n_logits ids (1 … min(ids.size(), kMaxLogits)), valid until the next call. Throws
  /// Error(kInvalidArgument) naming both numbers when the context is too short, or on an id outside the
  /// vocabulary (nothing evaluated); Error(kDevice). With `needed` above 0 all logits of a row but so many of
  /// the largest may be −∞ (Sampler::needed_logits()).
  std::span<const float> evaluate(std::span<const TokenId> ids, std::int64_t n_logits = 1,
                                  std::int64_t needed = 0);
  /// As evaluate, and calls row(position, logits) for each new position ≥ first_position, ascending.
  void evaluate_all(std::span<const TokenId> ids, std::int64_t first_position,
                    const std::function<void(std::int64_t position, std::span<const float> logits)>& row);
  /// Forgets all tokens from position `n` on.
  void truncate(std::int64_t n);
  /// Makes tokens() the longest prefix it shares with `ids`, at most ids.size() − 1 tokens; returns its
  /// length.
  std::int64_t keep_prefix(std::span<const TokenId> ids);

  /// What later evaluations go through, or null. Another set than before forgets all tokens, whose keys and
  /// values came from the old one. Throws Error(kInvalidArgument) on a set of another model,
  /// Error(kOutOfMemory); the old one stays then.
  void set_adapters(std::shared_ptr<const AdapterSet> adapters);
  const std::shared_ptr<const AdapterSet>& adapters() const noexcept { return adapters_; }

  std::size_t cache_bytes() const noexcept;
  std::size_t workspace_bytes() const noexcept;

 private:
  void check(std::span<const TokenId> ids) const;
  void step(std::span<const TokenId> ids, std::size_t n_logits);

  std::shared_ptr<const Model> model_;
  std::int64_t n_ctx_;
  std::unique_ptr<ForwardPass> forward_;
  KvPool pool_;
  KvCache cache_;
  std::shared_ptr<const AdapterSet> adapters_;
  std::vector<TokenId> tokens_;
  std::vector<std::int32_t> rows_;  // of a step, whose logits are wanted
  std::unique_ptr<PoolValues> logits_memory_;
  std::pmr::vector<float> logits_;  // [rows, vocab]
};

}  // namespace bitnet::inference
