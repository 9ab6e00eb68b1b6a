#pragma once
// How a product is cut, and how its sums become results. The products themselves are registers.inl.hpp,
// panel.inl.hpp and tiles.inl.hpp. Included by ternary_table.cpp and a test only.
namespace bitnet::quant::kernels {
namespace {

/// Subtracts Σ x (codes are trit + 1) and writes integers or scaled floats, for `rows` rows of `cols` ≤ width
/// outputs.
void finish(const TernaryProduct& p, std::int64_t row, std::int64_t rows, std::int64_t first,
            std::int64_t cols, std::int64_t width, const std::int32_t* total) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::int32_t sum = p.sums[row + r];
    const std::int32_t* const t = total + r * width;
    const std::int64_t at = (row + r) * p.out + first;
    if (p.acc != nullptr) {
      for (std::int64_t j = 0; j < cols; ++j) p.acc[at + j] = t[j] - sum;
    } else {
      const float inverse = p.inv_scales[row + r];
      const float* const scales = p.scales + first;
      float* const y = p.y + at;
      for (std::int64_t j = 0; j < cols; ++j) y[j] = static_cast<float>(t[j] - sum) * (scales[j] * inverse);
    }
  }
}

/// The size of the next of near-equal blocks: 13 rows of at most 12 are 7 + 6, not 12 + 1.
[[maybe_unused]] std::int64_t next_block(std::int64_t left, std::int64_t most) {
  const std::int64_t blocks = (left + most - 1) / most;
  return (left + blocks - 1) / blocks;
}

/// Tiles that are multiplied together.
struct TileBlock {
  std::int64_t tiles, width, first, cols;  // outputs: [first, first + cols), cols ≤ width
};

/// `most` tiles from `tile` on, or one where fewer are left.
TileBlock tile_block(const TernaryProduct& p, std::int64_t tile, std::int64_t most) {
  TileBlock b;
  b.tiles = p.tile_end - tile >= most ? most : 1;
  b.width = b.tiles * kTileRows;
  b.first = tile * kTileRows;
  b.cols = p.out - b.first < b.width ? p.out - b.first : b.width;
  return b;
}

}  // namespace
}  // namespace bitnet::quant::kernels
