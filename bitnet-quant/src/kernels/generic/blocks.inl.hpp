#pragma once
// How a product is cut, and how its sums become results, for ternary and int8 products alike (Product is a
// TernaryProduct or an Int8Product). The products themselves are registers.inl.hpp, panel.inl.hpp,
// int8.inl.hpp and tiles.inl.hpp.
namespace bitnet::quant::kernels {
namespace {

/// Outputs of a tile.
constexpr std::int64_t kBlockOutputs = 16;
/// A panel of two tiles is 20 KB. A whole number of lines of every layout, and of AMX tiles (64 columns).
constexpr std::int64_t kPanelColumns = 640;
constexpr std::int64_t kPanelSteps = kPanelColumns / 4;

/// Subtracts kBias·Σ x (the kernels' weights are too large by kBias) modulo 2^32, since biased sums may have
/// wrapped, and writes integers or scaled floats, for `rows` rows of `cols` ≤ width outputs.
template <std::uint32_t kBias, class Product>
void finish(const Product& p, std::int64_t row, std::int64_t rows, std::int64_t first, std::int64_t cols,
            std::int64_t width, const std::int32_t* total) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const std::uint32_t bias = kBias * static_cast<std::uint32_t>(p.sums[row + r]);
    const auto sum = [&](std::int64_t j) __attribute__((always_inline)) {
      return static_cast<std::int32_t>(static_cast<std::uint32_t>(total[r * width + j]) - bias);
    };
    const std::int64_t at = (row + r) * p.out + first;
    if (p.acc != nullptr) {
      for (std::int64_t j = 0; j < cols; ++j) p.acc[at + j] = sum(j);
    } else {
      const float inverse = p.inv_scales[row + r];
      const float* const scales = p.scales + first;
      float* const y = p.y + at;
      for (std::int64_t j = 0; j < cols; ++j) y[j] = static_cast<float>(sum(j)) * (scales[j] * inverse);
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
template <class Product>
TileBlock tile_block(const Product& p, std::int64_t tile, std::int64_t most) {
  TileBlock b;
  b.tiles = p.tile_end - tile >= most ? most : 1;
  b.width = b.tiles * kBlockOutputs;
  b.first = tile * kBlockOutputs;
  b.cols = p.out - b.first < b.width ? p.out - b.first : b.width;
  return b;
}

}  // namespace
}  // namespace bitnet::quant::kernels
