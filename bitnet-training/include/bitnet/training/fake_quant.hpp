#pragma once
// Quantisers inside the training graph, with straight-through gradients: absmax int8 activations and absmean
// ternary weights (Ma et al. 2024 and its "Training Tips, Code, FAQ"). Definitions in
// bitnet/quant/quantize.hpp; the forward product is the same exact integer that inference computes.
#include <cstdint>
#include <memory>
#include <span>

#include "bitnet/training/tape.hpp"

namespace bitnet::training {

/// Rows quantised by absmax. The variable's values are the integers −128 … 127 (as floats); its gradient is
/// that of the rows themselves (straight through).
struct QuantizedVariable {
  Variable integers;        // [rows, cols]
  const float* inv_scales;  // [rows], 1 / a: row ≈ integers · inv_scale
};
QuantizedVariable quantize_activations(Tape& tape, Variable x);

/// The f32 next to an absmean scale m that survives 1 / (1 / m), which one float in six does not: 1 / (1 / m)
/// itself, at most one ulp away. A model with such scales is the same to the bit in files that keep 1 / m.
inline float invertible_scale(float m) noexcept { return 1.0f / (1.0f / m); }

/// The ternary form of a latent weight matrix, made once per optimiser step, in the context's memory pool
/// (tag "ternary weights").
class TernaryCache {
 public:
  TernaryCache(const ExecutionContext& context, std::int64_t out, std::int64_t in);
  /// absmean of `latent`: trits bit-equal to those of quant::absmean, its scale made invertible.
  void update(const ExecutionContext& context, std::span<const float> latent);
  std::span<const float> trits() const { return trits_.span(); }              // [out, in]
  std::span<const float> dequantized() const { return dequantized_.span(); }  // [out, in], scale · trit
  float scale() const noexcept { return scale_; }
  /// Of the last update: trits that are zero, and trits that changed (none counted in the first).
  std::int64_t zeros() const noexcept { return zeros_; }
  std::int64_t flips() const noexcept { return flips_; }

 private:
  std::shared_ptr<HybridMemoryPool> memory_;
  MemoryArray<float> trits_, dequantized_;
  float scale_ = 0;
  std::int64_t zeros_ = 0, flips_ = 0;
  bool fresh_ = true;
};

/// y = x_q · w_qᵀ: exact integers, scaled once. Backward: dX = dY·w_q, dW = dYᵀ·x_q, where both are the
/// quantised values and no gradient is masked. `latent` receives dW; `cache` must hold its ternary form and
/// outlive the step.
Variable bit_linear(Tape& tape, const QuantizedVariable& x, Variable latent, const TernaryCache& cache);

}  // namespace bitnet::training
