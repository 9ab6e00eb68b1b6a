#pragma once
// A product with many rows of x: a block of one or two tiles is decoded once into a panel of plain codes that
// stays in the L1 cache, and all rows pass over it, a register block at a time. A panel is [step][tile][64]:
// for each step of four columns a line's codes, whichever code the tiles have. For codes and instruction sets
// that decode cheaply there is registers.inl.hpp. Included by ternary_table.cpp only.
#include "kernels/generic/registers.inl.hpp"

namespace bitnet::quant::kernels {
namespace {

/// Rows whose sums are kept between panels: 32 KB of the stack.
constexpr std::int64_t kPanelRows = 256;

/// Codes of lines [0, lines) of one tile into panel [step][step_bytes].
template <class V, class C>
void decode_tile(const std::uint8_t* w, std::int64_t lines, std::uint8_t* panel, std::int64_t step_bytes) {
  const C decoder;
  for (std::int64_t line = 0; line < lines; ++line) {
    __builtin_prefetch(w + kPrefetchTwo);
    BITNET_UNROLL
    for (int g = 0; g < kTileRegs; ++g) {
      const typename C::Codes codes = decoder.decode(V::load(w + g * kRegBytes));
      std::uint8_t* const to = panel + g * kRegBytes;
      const auto put = [&](int step, typename V::Bytes c) {
        __builtin_memcpy(to + step * step_bytes, &c, sizeof c);
      };
      put(0, C::template field<0>(codes));
      put(1, C::template field<1>(codes));
      put(2, C::template field<2>(codes));
      put(3, C::template field<3>(codes));
      if constexpr (C::kFields == 5) put(4, C::template field<4>(codes));
    }
    w += kLineBytes;
    panel += C::kFields * step_bytes;
  }
}

/// Steps of a panel that a sum can take: all in int32 (|sum| ≤ 2·128·kPanelColumns), near-equal parts of at
/// most kSumSteps where sums are narrow.
template <class V>
constexpr std::int64_t sum_steps() {
  if constexpr (V::kWideSums) {
    return kPanelSteps;
  } else {
    constexpr std::int64_t kParts = (kPanelSteps + V::kSumSteps - 1) / V::kSumSteps;
    return (kPanelSteps + kParts - 1) / kParts;
  }
}

/// total[r, 16·tiles] += Σ x·code over `steps` ≤ sum_steps() of a panel, for R rows and G registers. There is
/// one loop only: with another around it g++ 12 keeps the sums in memory.
template <class V, int R, int G>
void panel_kernel(const std::uint8_t* panel, std::int64_t steps, const std::int8_t* x, std::int64_t stride,
                  std::int32_t* total) {
  constexpr std::int64_t kWidth = std::int64_t{G} * V::kRows;
  typename V::Sum sum[R][G];
  clear<V>(sum);
  for (std::int64_t step = 0; step < steps; ++step) {
    typename V::Bytes codes[G];
    BITNET_UNROLL
    for (int g = 0; g < G; ++g) codes[g] = V::load(panel + (step * G + g) * kRegBytes);
    BITNET_UNROLL
    for (int r = 0; r < R; ++r) {
      const typename V::Bytes four = V::broadcast4(x + r * stride + 4 * step);
      BITNET_UNROLL
      for (int g = 0; g < G; ++g) sum[r][g] = V::add_products(sum[r][g], codes[g], four);
    }
  }
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) {
    BITNET_UNROLL
    for (int g = 0; g < G; ++g) {
      std::int32_t* const to = total + r * kWidth + g * V::kRows;
      V::store(to, V::widen(V::load_acc(to), sum[r][g]));
    }
  }
}

/// The kernel for `rows` ≤ kMaxRows rows of x over a panel of one tile or kWideTiles tiles.
template <class V>
RowsKernel panel_kernel_for(std::int64_t rows, bool wide) {
  static constexpr RowsKernel kTable[12][2] = {
#define BITNET_ROW(R) \
  {&panel_kernel<V, (R <= kMaxRows ? R : 1), kTileRegs>, &panel_kernel<V, (R <= kMaxRows ? R : 1), kWideRegs>}
      BITNET_ROW(1),  BITNET_ROW(2), BITNET_ROW(3), BITNET_ROW(4), BITNET_ROW(5),
      BITNET_ROW(6),  BITNET_ROW(7), BITNET_ROW(8), BITNET_ROW(9), BITNET_ROW(10),
      BITNET_ROW(11), BITNET_ROW(12)
#undef BITNET_ROW
  };
  static_assert(kMaxRows <= 12);
  return kTable[rows - 1][wide ? 1 : 0];
}

template <class C>
void multiply_panels(const TernaryProduct& p) {
  constexpr std::int64_t kBlockLines = kPanelSteps / C::kFields;
  alignas(64) std::uint8_t panel[kPanelSteps * kWideTiles * kLineBytes];
  alignas(64) std::int32_t total[kPanelRows * kWideTiles * kTileRows];
  for (std::int64_t row = 0; row < p.rows;) {
    const std::int64_t rows = next_block(p.rows - row, kPanelRows);
    for (std::int64_t tile = p.tile_begin; tile < p.tile_end;) {
      const TileBlock b = tile_block(p, tile, kWideTiles);
      __builtin_memset(total, 0, sizeof(std::int32_t) * static_cast<std::size_t>(rows * b.width));
      for (std::int64_t line = 0; line < p.lines; line += kBlockLines) {
        const std::int64_t lines = p.lines - line < kBlockLines ? p.lines - line : kBlockLines;
        for (std::int64_t t = 0; t < b.tiles; ++t)
          decode_tile<I8, C>(p.tiles + ((tile + t) * p.lines + line) * kLineBytes, lines,
                             panel + t * kLineBytes, b.tiles * kLineBytes);
        const std::int8_t* const x = p.x + row * p.stride + line * 4 * C::kFields;
        for (std::int64_t r = 0; r < rows;) {
          const std::int64_t n = next_block(rows - r, kMaxRows);
          const RowsKernel kernel = panel_kernel_for<I8>(n, b.tiles > 1);
          const std::int64_t steps = lines * C::kFields;
          for (std::int64_t at = 0; at < steps; at += sum_steps<I8>()) {
            const std::int64_t part = steps - at < sum_steps<I8>() ? steps - at : sum_steps<I8>();
            kernel(panel + at * b.tiles * kLineBytes, part, x + r * p.stride + 4 * at, p.stride,
                   total + r * b.width);
          }
          r += n;
        }
      }
      finish<1>(p, row, rows, b.first, b.cols, b.width, total);
      tile += b.tiles;
    }
    row += rows;
  }
}

}  // namespace
}  // namespace bitnet::quant::kernels
