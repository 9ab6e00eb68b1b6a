#pragma once
// Walking over the groups of weights that share a scale. Private to bitnet-quant.
#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "bitnet/quant/post_training.hpp"

namespace bitnet::quant::post_training {

/// The cut of a matrix [out, in] into rectangles, one a scale.
struct Grid {
  std::int64_t out, in, rows, cols;  // rows × cols: of a rectangle; the last one of a column may be lower
  std::int64_t down() const noexcept { return (out + rows - 1) / rows; }
  std::int64_t across() const noexcept { return in / cols; }
  std::int64_t count() const noexcept { return down() * across(); }
  std::int64_t first_row(std::int64_t g) const noexcept { return g / across() * rows; }
  std::int64_t last_row(std::int64_t g) const noexcept { return std::min(out, first_row(g) + rows); }
  std::int64_t first_col(std::int64_t g) const noexcept { return g % across() * cols; }
};

/// Throws Error(kInvalidArgument) on sizes and groups that do not fit.
Grid make_grid(std::size_t n_weights, std::int64_t out, std::int64_t in, ScaleGroups groups);
/// Of weights that exist.
Grid grid_of(const TernaryWeights& w);
/// Without trits or scales.
TernaryWeights make_ternary(const Grid& grid);
/// Throws Error(kInvalidArgument) naming `method` and the index of a weight that is not finite.
void require_finite(std::span<const float> w, const char* method);

}  // namespace bitnet::quant::post_training
