#pragma once
// A product in which each line of weights is decoded in registers and used at once by as many rows of x as
// fit into registers. One row (gemv) is memory's speed and has a loop of its own. C is a decoder
// (lines.inl.hpp), V the vocabulary simd::I8, G the registers that one or two tiles' lines take. Included by
// ternary_table.cpp only.
#include "kernels/generic/blocks.inl.hpp"
#include "kernels/generic/lines.inl.hpp"

namespace bitnet::quant::kernels {
namespace {

/// How far ahead of its use a line is fetched: one stream (one tile) and two streams want different
/// distances.
constexpr std::int64_t kPrefetchOne = 6144, kPrefetchTwo = 2048;

/// Register g of G in a line of one or two tiles; asks for the cache line that is needed later.
template <class V, int G>
BITNET_INLINE typename V::Bytes load_reg(const std::uint8_t* w, std::int64_t tile_bytes, std::int64_t line,
                                         int g) {
  const std::uint8_t* const p =
      w + g / kTileRegs * tile_bytes + line * kLineBytes + g % kTileRegs * kRegBytes;
  if (g % kTileRegs == 0) __builtin_prefetch(p + (G > kTileRegs ? kPrefetchTwo : kPrefetchOne));
  return V::load(p);
}

/// sum[r][g] += codes of step S · x[r][4·S … 4·S + 3], for R rows of x, and so on for the further steps.
template <class V, class C, int S, int R, int G>
BITNET_INLINE void add_steps(const typename C::Codes (&line)[G], const std::int8_t* x, std::int64_t stride,
                             typename V::Sum (&sum)[R][G]) {
  if constexpr (S < C::kFields) {
    typename V::Bytes codes[G];
    BITNET_UNROLL
    for (int g = 0; g < G; ++g) codes[g] = C::template field<S>(line[g]);
    BITNET_UNROLL
    for (int r = 0; r < R; ++r) {
      const typename V::Bytes four = V::broadcast4(x + r * stride + 4 * S);
      BITNET_UNROLL
      for (int g = 0; g < G; ++g) sum[r][g] = V::add_products(sum[r][g], codes[g], four);
    }
    add_steps<V, C, S + 1>(line, x, stride, sum);
  }
}

/// Lines [begin, end) of G registers (1 or 2 tiles) times R rows.
template <class V, class C, int R, int G>
BITNET_INLINE void add_lines(const C& decoder, const std::uint8_t* w, std::int64_t tile_bytes,
                             std::int64_t begin, std::int64_t end, const std::int8_t* x, std::int64_t stride,
                             typename V::Sum (&sum)[R][G]) {
  for (std::int64_t line = begin; line < end; ++line) {
    typename C::Codes codes[G];
    BITNET_UNROLL
    for (int g = 0; g < G; ++g) codes[g] = decoder.decode(load_reg<V, G>(w, tile_bytes, line, g));
    add_steps<V, C, 0>(codes, x + line * 4 * C::kFields, stride, sum);
  }
}

template <class V, int R, int G>
BITNET_INLINE void clear(typename V::Sum (&sum)[R][G]) {
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) {
    BITNET_UNROLL
    for (int g = 0; g < G; ++g) sum[r][g] = V::zero_sum();
  }
}

/// total[r, 16·tiles] += Σ x·code over lines [begin, end), for R rows and G registers. A function of its own:
/// with its caller's loop around it g++ 12 keeps the sums in memory.
template <class V, class C, int R, int G>
__attribute__((noinline)) void add_narrow(const std::uint8_t* w, std::int64_t tile_bytes, std::int64_t begin,
                                          std::int64_t end, const std::int8_t* x, std::int64_t stride,
                                          std::int32_t* total) {
  constexpr std::int64_t kWidth = std::int64_t{G} * V::kRows;
  typename V::Sum sum[R][G];
  clear<V>(sum);
  add_lines<V, C, R, G>(C(), w, tile_bytes, begin, end, x, stride, sum);
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) {
    BITNET_UNROLL
    for (int g = 0; g < G; ++g) {
      std::int32_t* const to = total + r * kWidth + g * V::kRows;
      V::store(to, V::widen(V::load_acc(to), sum[r][g]));
    }
  }
}

/// total[r, 16·tiles] = Σ x·code for R rows and G registers.
template <class V, class C, int R, int G>
void rows_kernel(const std::uint8_t* w, std::int64_t lines, const std::int8_t* x, std::int64_t stride,
                 std::int32_t* total) {
  constexpr std::int64_t kWidth = std::int64_t{G} * V::kRows;
  const std::int64_t tile_bytes = lines * kLineBytes;
  if constexpr (V::kWideSums) {  // |sum| ≤ 2·128·K: no block is needed
    const C decoder;
    typename V::Sum sum[R][G];
    clear<V>(sum);
    add_lines<V, C, R, G>(decoder, w, tile_bytes, 0, lines, x, stride, sum);
    BITNET_UNROLL
    for (int r = 0; r < R; ++r) {
      BITNET_UNROLL
      for (int g = 0; g < G; ++g)
        V::store(total + r * kWidth + g * V::kRows, V::widen(V::zero_acc(), sum[r][g]));
    }
  } else {
    constexpr std::int64_t kBlock = V::kSumSteps / C::kFields;  // lines until a narrow sum could overflow
    for (std::int64_t i = 0; i < R * kWidth; ++i) total[i] = 0;
    for (std::int64_t begin = 0; begin < lines; begin += kBlock) {
      const std::int64_t end = begin + kBlock < lines ? begin + kBlock : lines;
      add_narrow<V, C, R, G>(w, tile_bytes, begin, end, x, stride, total);
    }
  }
}

/// sum[S] += codes of step S times 4^min(S, 3) · x[4·S …], and so on for the further steps.
template <class V, class C, int S>
BITNET_INLINE void add_scaled(const typename C::Codes& line, const std::int8_t* x,
                              typename V::Sum (&sum)[C::kFields]) {
  if constexpr (S < C::kFields) {
    sum[S] = V::add_products(sum[S], C::template scaled_field<S>(line), V::broadcast4(x + 4 * S));
    add_scaled<V, C, S + 1>(line, x, sum);
  }
}

/// One row on an ISA whose products take codes scaled by 4^s: bit pairs are masked and never shifted. Each
/// step of a line has a sum of its own, a multiple of 4^s, so that the shifts at the end are exact. Largest:
/// kMaxColumns.
template <class V, class C, int G>
void gemv_scaled(const std::uint8_t* w, std::int64_t lines, const std::int8_t* x, std::int32_t* total) {
  const std::int64_t tile_bytes = lines * kLineBytes;
  const C decoder;
  typename V::Sum sum[G][C::kFields];
  clear<V>(sum);
  for (std::int64_t line = 0; line < lines; ++line) {
    const std::int8_t* const at = x + line * 4 * C::kFields;
    BITNET_UNROLL
    for (int g = 0; g < G; ++g)
      add_scaled<V, C, 0>(decoder.decode(load_reg<V, G>(w, tile_bytes, line, g)), at, sum[g]);
  }
  BITNET_UNROLL
  for (int g = 0; g < G; ++g) {
    typename V::Acc acc = V::widen(V::template unscale<1>(sum[g][1]), sum[g][0]);
    acc = V::widen(acc, V::template unscale<2>(sum[g][2]));
    acc = V::widen(acc, V::template unscale<3>(sum[g][3]));
    if constexpr (C::kFields == 5) acc = V::widen(acc, V::template unscale<3>(sum[g][4]));
    V::store(total + g * V::kRows, acc);
  }
}

/// Lines that 16-bit sums of codes scaled by 4 can take: two pairs of at most 2·8·128 a line, below 2^15.
constexpr std::int64_t kScaledLines = 7;

/// total[16] = Σ x·code of one row on an ISA with 16-bit sums: one shift serves two bit pairs, because pairs
/// 1 and 3 stay scaled by 4 and have sums of their own.
template <class V>
void gemv_one_shift(const std::uint8_t* w, std::int64_t lines, const std::int8_t* x, std::int32_t* total) {
  typename V::Acc acc[2][kTileRegs];
  BITNET_UNROLL
  for (int g = 0; g < kTileRegs; ++g) acc[0][g] = acc[1][g] = V::zero_acc();
  for (std::int64_t line = 0; line < lines;) {
    const std::int64_t end = lines - line < kScaledLines ? lines : line + kScaledLines;
    typename V::Sum sum[2][kTileRegs];
    clear<V>(sum);
    for (; line < end; ++line) {
      const std::int8_t* const at = x + line * 16;
      const typename V::Bytes x0 = V::broadcast4(at), x1 = V::broadcast4(at + 4), x2 = V::broadcast4(at + 8),
                              x3 = V::broadcast4(at + 12);
      BITNET_UNROLL
      for (int g = 0; g < kTileRegs; ++g) {
        const typename V::Bytes v = load_reg<V, kTileRegs>(w, 0, line, g), u = V::upper_fields(v);
        sum[0][g] = V::add_products(sum[0][g], V::template scaled_field<0>(v), x0);
        sum[1][g] = V::add_products(sum[1][g], V::template scaled_field<1>(v), x1);
        sum[0][g] = V::add_products(sum[0][g], V::template scaled_field<0>(u), x2);
        sum[1][g] = V::add_products(sum[1][g], V::template scaled_field<1>(u), x3);
      }
    }
    BITNET_UNROLL
    for (int g = 0; g < kTileRegs; ++g) {
      acc[0][g] = V::widen(acc[0][g], sum[0][g]);
      acc[1][g] = V::widen(acc[1][g], sum[1][g]);
    }
  }
  BITNET_UNROLL
  for (int g = 0; g < kTileRegs; ++g) V::store(total + g * V::kRows, acc[0][g] + (acc[1][g] >> 2));
}

using RowsKernel = void (*)(const std::uint8_t*, std::int64_t, const std::int8_t*, std::int64_t,
                            std::int32_t*);

constexpr int kMaxRows = I8::kGemmRows;
constexpr int kWideRegs = I8::kGemmRegs;  // registers of the widest block: one tile, or two
constexpr std::int64_t kWideTiles = kWideRegs / kTileRegs;

template <class V, class C, int R, int G>
void any_rows(const std::uint8_t* w, std::int64_t lines, const std::int8_t* x, std::int64_t stride,
              std::int32_t* total) {
  if constexpr (R == 1 && C::kScaled)
    gemv_scaled<V, C, G>(w, lines, x, total);
  else if constexpr (R == 1 && V::kOneShift && G == kTileRegs && C::kFields == 4)
    gemv_one_shift<V>(w, lines, x, total);
  else
    rows_kernel<V, C, R, G>(w, lines, x, stride, total);
}

/// The kernel for `rows` ≤ kMaxRows rows of x over one tile or kWideTiles tiles.
template <class C>
RowsKernel rows_kernel_for(std::int64_t rows, bool wide) {
  static constexpr RowsKernel kTable[12][2] = {
#define BITNET_ROW(R) \
  {&any_rows<I8, C, (R <= kMaxRows ? R : 1), kTileRegs>, &any_rows<I8, C, (R <= kMaxRows ? R : 1), kWideRegs>}
      BITNET_ROW(1),  BITNET_ROW(2), BITNET_ROW(3), BITNET_ROW(4), BITNET_ROW(5),
      BITNET_ROW(6),  BITNET_ROW(7), BITNET_ROW(8), BITNET_ROW(9), BITNET_ROW(10),
      BITNET_ROW(11), BITNET_ROW(12)
#undef BITNET_ROW
  };
  static_assert(kMaxRows <= 12);
  return kTable[rows - 1][wide ? 1 : 0];
}

template <class C>
void multiply_in_registers(const TernaryProduct& p) {
  std::int32_t total[kMaxRows * kWideRegs * I8::kRows];
  // One row: two tiles at a time keep more products in flight, but memory gives more to a single stream.
  constexpr std::int64_t kCachedBytes = 256 << 10;
  const bool two = p.rows > 1 || (p.tile_end - p.tile_begin) * p.lines * kLineBytes <= kCachedBytes;
  for (std::int64_t tile = p.tile_begin; tile < p.tile_end;) {
    const TileBlock b = tile_block(p, tile, two ? kWideTiles : 1);
    // Weights outside, rows inside: a line comes from memory once, and stays in L1 for the further rows.
    for (std::int64_t row = 0; row < p.rows;) {
      const std::int64_t rows = next_block(p.rows - row, kMaxRows);
      rows_kernel_for<C>(rows, b.tiles > 1)(p.tiles + tile * p.lines * kLineBytes, p.lines,
                                            p.x + row * p.stride, p.stride, total);
      finish<1>(p, row, rows, b.first, b.cols, b.width, total);
      row += rows;
    }
    tile += b.tiles;
  }
}

}  // namespace
}  // namespace bitnet::quant::kernels
