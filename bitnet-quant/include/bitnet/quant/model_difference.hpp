#pragma once
// How far the tensors of two models are apart, whatever they are stored as. How far their predictions are is
// logit_metrics.hpp. Plain values; the function is thread-safe.
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/quant/model_io.hpp"

namespace bitnet::quant {

/// One tensor that both models have. The sums are of the values that the models run with (trits times
/// scales), in double; left at 0 where the shapes differ.
struct TensorDifference {
  TensorId id;
  Shape shape, other_shape;  ///< in the first model and in the other
  double squares = 0;        ///< Σ a²
  double other_squares = 0;  ///< Σ b²
  double product = 0;        ///< Σ a·b
  double noise = 0;          ///< Σ (a − b)²
  double largest = 0;        ///< max |a − b|
  std::int64_t same = 0;     ///< values that are equal
  /// Trits that are equal, where both are ternary in one plane.
  std::optional<std::int64_t> same_trits = {};

  bool comparable() const noexcept { return shape == other_shape; }
  double relative() const noexcept;  ///< ‖A − B‖ / ‖A‖; 0 where they are equal, ∞ where only A is zero
  double cosine() const noexcept;  ///< 1 where both are zero
};

struct ModelDifference {
  std::vector<TensorDifference> tensors;  ///< in the first model's order
  std::vector<TensorId> only_first, only_other;
};

/// Compares the tensors of two open models block by block, so that neither is ever whole in memory: a few
/// MiB a thread. The same bits with any number of threads. `progress`, if given, is called on the caller's
/// thread after each tensor with how many are done, of how many. Throws Error(kCorruptFile) on values that
/// are not finite or cannot be read, with the tensor's name.
ModelDifference compare_tensors(const ExecutionContext& context, const ModelReader& first,
                                const ModelReader& other,
                                const std::function<void(std::int64_t, std::int64_t)>& progress = {});

}  // namespace bitnet::quant
