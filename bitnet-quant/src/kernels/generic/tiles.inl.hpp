#pragma once
// A product with many rows of x on matrix tiles (AMX), written once against a tile vocabulary T: simd::Tiles
// is the processor's, a test has one that emulates it. A panel of one or two weight tiles, as unsigned bytes
// [step][tile][64], is made once for all rows: for each step of four columns, four bytes of each of 16
// outputs, so that 16 steps are one tile of 64 columns × 16 outputs. Rows of x are tiles as they lie. How
// panels are made is ternary_tiles.inl.hpp's and int8_tiles.inl.hpp's.
#include "bitnet/simd/tile_shape.hpp"
#include "kernels/generic/blocks.inl.hpp"

namespace bitnet::quant::kernels {
namespace {

using simd::TileShape;

constexpr std::int64_t kTileColumns = 64;                  // of x in a tile
constexpr std::int64_t kTileSteps = kTileColumns / 4;      // of a panel in a tile
constexpr std::int64_t kStepBytes = 4 * kBlockOutputs;     // of one weight tile
constexpr std::int64_t kBlockRows = simd::kTileBlockRows;  // of x in a tile
constexpr std::int64_t kTiledRows = 512;  // whose sums are kept between panels: 64 KB of the stack
static_assert(kPanelSteps % kTileSteps == 0);

/// One pass of a panel: I row blocks times J weight tiles.
struct TilePass {
  const std::uint8_t* panel;  // [16·tiles, J, kStepBytes]
  std::int64_t tiles;         // of 64 columns
  const std::int8_t* x;       // [rows, stride]
  std::int64_t stride;
  std::int32_t* total;  // [rows, 16·J]
  bool first;           // sums begin at zero
};

template <class T, int I, int J, int C>
BITNET_INLINE void begin_sum(const TilePass& p) {
  constexpr int i = C / 2, j = C % 2;
  if constexpr (i < I && j < J) {
    if (p.first)
      T::template zero<C>();
    else
      T::template load<C>(p.total + (i * kBlockRows * J + j) * kBlockOutputs, J * kBlockOutputs * 4);
  }
}

template <class T, int I, int J, int C>
BITNET_INLINE void end_sum(const TilePass& p) {
  constexpr int i = C / 2, j = C % 2;
  if constexpr (i < I && j < J)
    T::template store<C>(p.total + (i * kBlockRows * J + j) * kBlockOutputs, J * kBlockOutputs * 4);
}

/// Sums of ternary codes: |sum| ≤ 2·128·K, which an int32 holds (kMaxColumns). Those of int8 weights + 128
/// reach 255·128·K and may wrap, as the instruction does (it has no saturation); finish() takes the bias out
/// modulo 2^32, and what is left is below 2^31 (kInt8MaxColumns).
template <class T, int I, int J>
void multiply_pass(const TilePass& p) {
  begin_sum<T, I, J, 0>(p);
  begin_sum<T, I, J, 1>(p);
  begin_sum<T, I, J, 2>(p);
  begin_sum<T, I, J, 3>(p);
  for (std::int64_t t = 0; t < p.tiles; ++t) {
    const std::uint8_t* const codes = p.panel + t * kTileSteps * J * kStepBytes;
    const std::int8_t* const x = p.x + t * kTileColumns;
    T::template load<6>(codes, J * kStepBytes);
    T::template load<4>(x, p.stride);
    T::template multiply<0, 4, 6>();
    if constexpr (J == 2) {
      T::template load<7>(codes + kStepBytes, J * kStepBytes);
      T::template multiply<1, 4, 7>();
    }
    if constexpr (I == 2) {
      T::template load<5>(x + kBlockRows * p.stride, p.stride);
      T::template multiply<2, 5, 6>();
      if constexpr (J == 2) T::template multiply<3, 5, 7>();
    }
  }
  end_sum<T, I, J, 0>(p);
  end_sum<T, I, J, 1>(p);
  end_sum<T, I, J, 2>(p);
  end_sum<T, I, J, 3>(p);
}

template <class T>
void multiply_pass(const TilePass& p, bool two_blocks, bool two_tiles) {
  if (two_blocks)
    two_tiles ? multiply_pass<T, 2, 2>(p) : multiply_pass<T, 2, 1>(p);
  else
    two_tiles ? multiply_pass<T, 1, 2>(p) : multiply_pass<T, 1, 1>(p);
}

/// All `rows` rows over one panel.
template <class T>
void multiply_panel_tiles(TileShape<T>& shape, TilePass pass, std::int64_t rows, std::int64_t weight_tiles) {
  const TilePass all = pass;
  for (std::int64_t r = 0; r < rows; r += 2 * kBlockRows) {
    const bool two_blocks = shape.set(rows - r);
    pass.x = all.x + r * all.stride;
    pass.total = all.total + r * weight_tiles * kBlockOutputs;
    multiply_pass<T>(pass, two_blocks, weight_tiles == 2);
  }
}

/// The whole product. A line of weights has kFields steps of four columns; decode(tile, line, lines, to,
/// step_bytes) writes those of lines [line, line + lines) of a weight tile, as unsigned bytes that are too
/// large by kBias, to `to` [kFields·lines][step_bytes]. x must be readable up to whole tiles of 64 columns;
/// what it holds beyond the last line meets zeros.
template <class T, std::uint32_t kBias, int kFields, class Product, class Decode>
void multiply_tiles(const Product& p, Decode&& decode) {
  constexpr std::int64_t kBlockLines = kPanelSteps / kFields;
  alignas(64) std::uint8_t panel[kPanelSteps * 2 * kStepBytes];
  alignas(64) std::int32_t total[kTiledRows * 2 * kBlockOutputs];
  TileShape<T> shape;
  for (std::int64_t row = 0; row < p.rows; row += kTiledRows) {
    const std::int64_t rows = p.rows - row < kTiledRows ? p.rows - row : kTiledRows;
    for (std::int64_t tile = p.tile_begin; tile < p.tile_end;) {
      const TileBlock b = tile_block(p, tile, 2);
      for (std::int64_t line = 0; line < p.lines; line += kBlockLines) {
        const std::int64_t lines = p.lines - line < kBlockLines ? p.lines - line : kBlockLines;
        const std::int64_t steps = lines * kFields, tiles = (steps + kTileSteps - 1) / kTileSteps;
        for (std::int64_t t = 0; t < b.tiles; ++t)
          decode(tile + t, line, lines, panel + t * kStepBytes, b.tiles * kStepBytes);
        __builtin_memset(panel + steps * b.tiles * kStepBytes, 0,
                         static_cast<std::size_t>((tiles * kTileSteps - steps) * b.tiles * kStepBytes));
        multiply_panel_tiles<T>(shape,
                                {.panel = panel,
                                 .tiles = tiles,
                                 .x = p.x + row * p.stride + line * 4 * kFields,
                                 .stride = p.stride,
                                 .total = total,
                                 .first = line == 0},
                                rows, b.tiles);
      }
      finish<kBias>(p, row, rows, b.first, b.cols, b.width, total);
      tile += b.tiles;
    }
  }
}

}  // namespace
}  // namespace bitnet::quant::kernels
