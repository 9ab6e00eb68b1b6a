#pragma once
// int8 × int8 products over tiles of 16 rows (layout: int8_table.hpp), written once against simd::S8. One row
// streams the weights (gemv); several rows share each line while it is in registers; where there are
// matrix tiles, many rows are int8_tiles.inl.hpp's. Included by int8_table.cpp only.
#include "kernels/generic/int8_tiles.inl.hpp"

namespace bitnet::quant::kernels {
namespace {

using simd::S8;

constexpr int kTileRegs = 16 / S8::kRows;  // registers in a line
constexpr int kWideRegs = S8::kGemmRegs;   // registers of the widest block: one tile, or two
constexpr std::int64_t kWideTiles = kWideRegs / kTileRegs;
constexpr int kMaxRows = S8::kGemmRows;

/// How far ahead of its use a line is fetched, in bytes: from one stream (one tile) and from two.
constexpr std::int64_t kPrefetchOne = 8192, kPrefetchTwo = 4096;
/// So few rows wait for memory, which gives more to one stream than to two.
constexpr std::int64_t kNarrowRows = 4;

/// The registers of line `line` of one or two tiles; asks for the cache lines that are needed later.
template <int G>
BITNET_INLINE void load_line(const std::int8_t* w, std::int64_t tile_bytes, std::int64_t line,
                             S8::Bytes (&v)[G]) {
  BITNET_UNROLL
  for (int g = 0; g < G; ++g) {
    const std::int8_t* const p =
        w + g / kTileRegs * tile_bytes + line * kInt8LineBytes + g % kTileRegs * (4 * S8::kRows);
    if (g % kTileRegs == 0) __builtin_prefetch(p + (G > kTileRegs ? kPrefetchTwo : kPrefetchOne));
    v[g] = S8::load_w(p);
  }
}

/// total[kWidth] = Σ over lines of one row: four lines at a time, so that four sums are in flight.
void one_row(const std::int8_t* w, std::int64_t lines, const std::int8_t* x, std::int32_t* total) {
  constexpr int kSums = 4;
  S8::Sum sum[kSums][kTileRegs];
  BITNET_UNROLL
  for (int i = 0; i < kSums * kTileRegs; ++i) sum[i / kTileRegs][i % kTileRegs] = S8::zero();
  std::int64_t line = 0;
  for (; line + kSums <= lines; line += kSums) {
    BITNET_UNROLL
    for (int i = 0; i < kSums; ++i) {
      S8::Bytes v[kTileRegs];
      load_line(w, 0, line + i, v);
      const S8::X four = S8::load_x(x + (line + i) * kInt8LineColumns);
      BITNET_UNROLL
      for (int g = 0; g < kTileRegs; ++g) sum[i][g] = S8::add(sum[i][g], v[g], four);
    }
  }
  for (; line < lines; ++line) {
    S8::Bytes v[kTileRegs];
    load_line(w, 0, line, v);
    const S8::X four = S8::load_x(x + line * kInt8LineColumns);
    BITNET_UNROLL
    for (int g = 0; g < kTileRegs; ++g) sum[0][g] = S8::add(sum[0][g], v[g], four);
  }
  BITNET_UNROLL
  for (int g = 0; g < kTileRegs; ++g) {
    std::int32_t part[kSums][S8::kRows];
    BITNET_UNROLL
    for (int i = 0; i < kSums; ++i) S8::store(part[i], sum[i][g]);
    for (int r = 0; r < S8::kRows; ++r) {
      std::uint32_t s = 0;  // may wrap (int8_table.hpp)
      for (int i = 0; i < kSums; ++i) s += static_cast<std::uint32_t>(part[i][r]);
      total[g * S8::kRows + r] = static_cast<std::int32_t>(s);
    }
  }
}

/// total[r, 16·tiles] = Σ x·(w + kBias) for R rows and G registers.
template <int R, int G>
void rows_kernel(const std::int8_t* w, std::int64_t lines, const std::int8_t* x, std::int64_t stride,
                 std::int32_t* total) {
  if constexpr (R == 1 && G == kTileRegs) {
    one_row(w, lines, x, total);
  } else {
    const std::int64_t tile_bytes = lines * kInt8LineBytes;
    S8::Sum sum[R][G];
    BITNET_UNROLL
    for (int i = 0; i < R * G; ++i) sum[i / G][i % G] = S8::zero();
    for (std::int64_t line = 0; line < lines; ++line) {
      S8::Bytes v[G];
      load_line(w, tile_bytes, line, v);
      const std::int8_t* const at = x + line * kInt8LineColumns;
      BITNET_UNROLL
      for (int r = 0; r < R; ++r) {
        const S8::X four = S8::load_x(at + r * stride);
        BITNET_UNROLL
        for (int g = 0; g < G; ++g) sum[r][g] = S8::add(sum[r][g], v[g], four);
      }
    }
    BITNET_UNROLL
    for (int i = 0; i < R * G; ++i) S8::store(total + i * S8::kRows, sum[i / G][i % G]);
  }
}

using Int8RowsKernel = void (*)(const std::int8_t*, std::int64_t, const std::int8_t*, std::int64_t,
                                std::int32_t*);

/// The kernel for `rows` ≤ kMaxRows rows of x over one tile or kWideTiles tiles.
Int8RowsKernel int8_kernel_for(std::int64_t rows, bool wide) {
  static constexpr Int8RowsKernel kTable[12][2] = {
#define BITNET_ROW(R) \
  {&rows_kernel<(R <= kMaxRows ? R : 1), kTileRegs>, &rows_kernel<(R <= kMaxRows ? R : 1), kWideRegs>}
      BITNET_ROW(1),  BITNET_ROW(2), BITNET_ROW(3), BITNET_ROW(4), BITNET_ROW(5),
      BITNET_ROW(6),  BITNET_ROW(7), BITNET_ROW(8), BITNET_ROW(9), BITNET_ROW(10),
      BITNET_ROW(11), BITNET_ROW(12)
#undef BITNET_ROW
  };
  static_assert(kMaxRows <= 12);
  return kTable[rows - 1][wide ? 1 : 0];
}

void multiply_int8_in_registers(const Int8Product& p) {
  std::int32_t total[kMaxRows * kWideRegs * S8::kRows];
  for (std::int64_t tile = p.tile_begin; tile < p.tile_end;) {
    const TileBlock b = tile_block(p, tile, p.rows > kNarrowRows ? kWideTiles : 1);
    // Weights outside, rows inside: a line comes from memory once, and stays in L2 for the further rows.
    for (std::int64_t row = 0; row < p.rows;) {
      const std::int64_t rows = next_block(p.rows - row, kMaxRows);
      int8_kernel_for(rows, b.tiles > 1)(p.tiles + tile * p.lines * kInt8LineBytes, p.lines,
                                         p.x + row * p.stride, p.stride, total);
      finish<S8::kBias>(p, row, rows, b.first, b.cols, b.width, total);
      row += rows;
    }
    tile += b.tiles;
  }
}

void multiply_int8(const Int8Product& p) noexcept {
#if defined(BITNET_SIMD_TILES)
  constexpr std::int64_t kTilesFrom = 8;  // rows: with fewer most of a tile's product would be thrown away
  if (p.rows >= kTilesFrom) return multiply_int8_tiles<simd::Tiles>(p);
#endif
  multiply_int8_in_registers(p);
}

}  // namespace
}  // namespace bitnet::quant::kernels
