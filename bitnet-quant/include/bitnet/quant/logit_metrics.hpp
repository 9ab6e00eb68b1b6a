#pragma once
// How much a model's predictions changed: two models' logits on one text. quant never runs a model: logits
// reach it through LogitSource, which bitnet-cli joins with bitnet-inference. Weights' metrics are
// metrics.hpp. LogitMetrics is a plain value; the rest is used by one thread at a time.
#include <cstdint>
#include <span>
#include <vector>

namespace bitnet::quant {

/// Logits of consecutive positions of a text. Two sources over one text give the same positions in the same
/// order, in batches of any size.
class LogitSource {
 public:
  virtual ~LogitSource() = default;
  virtual std::int64_t vocab_size() const = 0;
  /// The next positions: logits to `rows` [n, vocab], the token that came after each to `targets` [n]. False,
  /// and both empty, when there are no more.
  virtual bool next(std::vector<float>& rows, std::vector<std::int32_t>& targets) = 0;
};

/// Sums over positions, in double and in their order.
struct LogitMetrics {
  std::int64_t positions = 0;
  double kl = 0;          ///< Σ KL(original ‖ other), in nats
  double largest_kl = 0;  ///< of one position
  std::int64_t same_top =
      0;  ///< positions where both find the same token the most likely (of equals the first)
  double nll_original = 0;  ///< Σ −log p(target)
  double nll_other = 0;

  /// One position. Throws Error(kInvalidArgument) on sizes that disagree, a target outside, or logits that
  /// are not finite.
  void add(std::span<const float> original, std::span<const float> other, std::int32_t target);
  double mean_kl() const noexcept;
  double top1_agreement() const noexcept;  ///< share of the positions; 1 without any
  double perplexity_original() const noexcept;
  double perplexity_other() const noexcept;
};

/// Reads both sources to their end. Throws Error(kInvalidArgument) when they differ in vocabulary, targets or
/// length, and what add() and the sources throw.
LogitMetrics compare_logits(LogitSource& original, LogitSource& other);

}  // namespace bitnet::quant
