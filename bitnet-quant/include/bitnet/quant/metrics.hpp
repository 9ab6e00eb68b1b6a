#pragma once
// What quantising a weight lost, in the figures that people compare. How a whole model's output changed is
// bitnet-inference's business (perplexity, logits). Plain values and pure functions: thread-safe.
#include <array>
#include <cstdint>
#include <span>

#include "bitnet/core/execution.hpp"
#include "bitnet/quant/hessian.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/quant/quantize.hpp"

namespace bitnet::quant {

/// Of one matrix W and what is stored for it, Q; or of several, with add().
struct WeightMetrics {
  std::int64_t weights = 0;
  double signal = 0;                    ///< Σ w²
  double noise = 0;                     ///< Σ (w − q)²
  double product = 0;                   ///< Σ w·q
  double stored = 0;                    ///< Σ q²
  double output_signal = 0;             ///< Σ W·H·Wᵀ, 0 without a Hessian
  double output_noise = 0;              ///< Σ (W − Q)·H·(W − Q)ᵀ
  std::array<std::int64_t, 3> trits{};  ///< how many are −1, 0 and 1; zeros for what is not ternary

  double mse() const noexcept;             ///< noise a weight
  double sqnr_db() const noexcept;         ///< 10·log10(signal / noise); ∞ without noise
  double cosine() const noexcept;          ///< 1 where both are zero
  double relative_error() const noexcept;  ///< ‖W − Q‖ / ‖W‖, 0 where both are zero
  double output_error() const noexcept;    ///< output_noise / output_signal, 0 without a Hessian
  double zero_fraction() const noexcept;   ///< of the trits
  /// Bits that a trit carries: −Σ p·log2 p, at most log2 3 = 1.585.
  double entropy() const noexcept;

  void add(const WeightMetrics& other) noexcept;
};

/// Sums in double, in index order. `hessian`: of the linear's inputs, or null. Throws Error(kInvalidArgument)
/// on sizes that disagree or a weight that is not finite, Error(kCancelled).
WeightMetrics measure(const ExecutionContext& context, std::span<const float> w, const TernaryWeights& stored,
                      const Hessian* hessian = nullptr, CancelFlag cancelled = nullptr);
/// Of any tensor that stands for w: the trits of both planes are counted.
WeightMetrics measure(const ExecutionContext& context, std::span<const float> w, const LogicalTensor& stored,
                      const Hessian* hessian = nullptr, CancelFlag cancelled = nullptr);
/// Of weights stored in any other way.
WeightMetrics measure(const ExecutionContext& context, std::span<const float> w,
                      std::span<const float> stored, std::int64_t in, const Hessian* hessian = nullptr,
                      CancelFlag cancelled = nullptr);

}  // namespace bitnet::quant
