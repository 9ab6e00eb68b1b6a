#pragma once
// The b1.58 quantisers: absmean for weights, per-token absmax for activations. Definitions and sources:
// docs/numerics.md; Ma et al. 2024 (arXiv:2402.17764), section 2. Pure functions, thread-safe.
#include <cstdint>
#include <span>
#include <vector>

#include "bitnet/core/execution.hpp"

namespace bitnet::quant {

/// Trits of one matrix with their scale in the multiply form: W ≈ scale · trit.
struct TernaryWeights {
  std::int64_t out = 0, in = 0;
  std::vector<std::int8_t> trits;   // [out, in], −1, 0 or 1
  std::vector<float> scales;        // [ceil(out / rows_per_scale)]
  std::int64_t rows_per_scale = 0;  ///< `out` for one scale per tensor
  /// Columns that share a scale, 0 for all of them: then `scales` is [ceil(out / rows_per_scale),
  /// ceil(in / cols_per_scale)]. Made by post_training.hpp and by readers, and refused where it cannot be
  /// run or stored.
  std::int64_t cols_per_scale = 0;
};

/// W ≈ first + second, each ternary with the same groups.
struct TwoPlanes {
  TernaryWeights first, second;
};

/// absmean: m = max(mean|W|, 1e-5), trit = clamp(round_half_even(W / m), −1, 1), scale = m. The mean is
/// summed in double in index order and rounded once to f32; W·(1/m) is evaluated in f32 as the definition
/// does. Throws Error(kInvalidArgument) on sizes that disagree or on a NaN or infinite weight (with its
/// index).
TernaryWeights absmean(std::span<const float> w, std::int64_t out, std::int64_t in);

/// absmax of one row: a = 127 / max(max|x|, 1e-5), q = clamp(round_half_even(x·a), −128, 127). Returns a.
/// Bit-equal on every ISA. A row with a NaN has a = NaN and q = 0, one with an infinity a = 0 and q = 0: its
/// products with any weights are NaN.
float quantize_row(const ExecutionContext& context, std::span<const float> x, std::span<std::int8_t> q);

}  // namespace bitnet::quant
