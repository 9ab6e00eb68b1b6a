#pragma once
// Ternary × int8 products over T16 tiles (layout: ternary_table.hpp), written once against simd::I8 (V in the
// templates). One row streams the weights (gemv); several rows share each line while it is in registers.
// Included by ternary_table.cpp only.
namespace bitnet::quant::kernels {
namespace {

using simd::I8;

constexpr int kTileRegs = 16 / I8::kRows;  // registers in a line
constexpr std::int64_t kRegBytes = 4 * I8::kRows;

/// How far ahead of its use a line is fetched: one stream (one tile) and two streams want different
/// distances.
constexpr std::int64_t kPrefetchOne = 5120, kPrefetchTwo = 2048;

/// Register g of G in a line of one or two tiles; asks for the cache line that is needed later.
template <class V, int G>
BITNET_INLINE typename V::Bytes load_reg(const std::uint8_t* w, std::int64_t tile_bytes, std::int64_t line,
                                         int g) {
  const std::uint8_t* const p =
      w + g / kTileRegs * tile_bytes + line * kLineBytes + g % kTileRegs * kRegBytes;
  if (g % kTileRegs == 0) __builtin_prefetch(p + (G > kTileRegs ? kPrefetchTwo : kPrefetchOne));
  return V::load(p);
}

/// Codes of bit pair S of G registers, 0 … 2 each.
template <class V, int S, int G>
BITNET_INLINE void fields(const typename V::Bytes (&v)[G], typename V::Bytes (&codes)[G]) {
  BITNET_UNROLL
  for (int g = 0; g < G; ++g) codes[g] = V::template field<S>(v[g]);
}

/// sum[r][g] += codes[g] · x[r][k … k + 3], for R rows of x.
template <class V, int R, int G>
BITNET_INLINE void add_rows(const typename V::Bytes (&codes)[G], const std::int8_t* x, std::int64_t stride,
                            typename V::Sum (&sum)[R][G]) {
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) {
    const typename V::Bytes four = V::broadcast4(x + r * stride);
    BITNET_UNROLL
    for (int g = 0; g < G; ++g) sum[r][g] = V::add_products(sum[r][g], codes[g], four);
  }
}

/// Lines [begin, end) of G registers (1 or 2 tiles) times R rows.
template <class V, int R, int G>
BITNET_INLINE void add_lines(const std::uint8_t* w, std::int64_t tile_bytes, std::int64_t begin,
                             std::int64_t end, const std::int8_t* x, std::int64_t stride,
                             typename V::Sum (&sum)[R][G]) {
  for (std::int64_t line = begin; line < end; ++line) {
    typename V::Bytes v[G], codes[G];
    BITNET_UNROLL
    for (int g = 0; g < G; ++g) v[g] = load_reg<V, G>(w, tile_bytes, line, g);
    const std::int8_t* const at = x + line * kLineColumns;
    fields<V, 0>(v, codes);
    add_rows<V, R>(codes, at, stride, sum);
    fields<V, 1>(v, codes);
    add_rows<V, R>(codes, at + 4, stride, sum);
    fields<V, 2>(v, codes);
    add_rows<V, R>(codes, at + 8, stride, sum);
    fields<V, 3>(v, codes);
    add_rows<V, R>(codes, at + 12, stride, sum);
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

/// total[r, 16·tiles] = Σ x·code for R rows and G registers.
template <class V, int R, int G>
void rows_kernel(const std::uint8_t* w, std::int64_t lines, const std::int8_t* x, std::int64_t stride,
                 std::int32_t* total) {
  constexpr std::int64_t kWidth = std::int64_t{G} * V::kRows;
  const std::int64_t tile_bytes = lines * kLineBytes;
  typename V::Sum sum[R][G];
  if constexpr (V::kWideSums) {  // |sum| ≤ 2·128·K: no block is needed
    clear<V>(sum);
    add_lines<V, R, G>(w, tile_bytes, 0, lines, x, stride, sum);
    BITNET_UNROLL
    for (int r = 0; r < R; ++r) {
      BITNET_UNROLL
      for (int g = 0; g < G; ++g)
        V::store(total + r * kWidth + g * V::kRows, V::widen(V::zero_acc(), sum[r][g]));
    }
  } else {
    constexpr std::int64_t kBlock = V::kSumSteps / 4;  // lines until a narrow sum could overflow
    for (std::int64_t i = 0; i < R * kWidth; ++i) total[i] = 0;
    for (std::int64_t begin = 0; begin < lines; begin += kBlock) {
      const std::int64_t end = begin + kBlock < lines ? begin + kBlock : lines;
      clear<V>(sum);
      add_lines<V, R, G>(w, tile_bytes, begin, end, x, stride, sum);
      BITNET_UNROLL
      for (int r = 0; r < R; ++r) {
        BITNET_UNROLL
        for (int g = 0; g < G; ++g) {
          std::int32_t* const to = total + r * kWidth + g * V::kRows;
          V::store(to, V::widen(V::load_acc(to), sum[r][g]));
        }
      }
    }
  }
}

/// One row on an ISA whose products take codes scaled by 4^s: bit pairs are masked and never shifted. The
/// four sums are multiples of 1, 4, 16 and 64, so that the shifts at the end are exact.
template <class V, int G>
void gemv_scaled(const std::uint8_t* w, std::int64_t lines, const std::int8_t* x, std::int32_t* total) {
  const std::int64_t tile_bytes = lines * kLineBytes;
  typename V::Sum sum[4][G];
  clear<V>(sum);
  for (std::int64_t line = 0; line < lines; ++line) {
    const std::int8_t* const at = x + line * kLineColumns;
    const typename V::Bytes x0 = V::broadcast4(at), x1 = V::broadcast4(at + 4), x2 = V::broadcast4(at + 8),
                            x3 = V::broadcast4(at + 12);
    BITNET_UNROLL
    for (int g = 0; g < G; ++g) {
      const typename V::Bytes v = load_reg<V, G>(w, tile_bytes, line, g);
      sum[0][g] = V::add_products(sum[0][g], V::template scaled_field<0>(v), x0);
      sum[1][g] = V::add_products(sum[1][g], V::template scaled_field<1>(v), x1);
      sum[2][g] = V::add_products(sum[2][g], V::template scaled_field<2>(v), x2);
      sum[3][g] = V::add_products(sum[3][g], V::template scaled_field<3>(v), x3);
    }
  }
  BITNET_UNROLL
  for (int g = 0; g < G; ++g)
    V::store(total + g * V::kRows, V::unscale(sum[0][g], sum[1][g], sum[2][g], sum[3][g]));
}

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

using RowsKernel = void (*)(const std::uint8_t*, std::int64_t, const std::int8_t*, std::int64_t,
                            std::int32_t*);

constexpr int kMaxRows = I8::kGemmRows;
constexpr int kWideRegs = I8::kGemmRegs;  // registers of the widest block: one tile, or two
constexpr std::int64_t kWideTiles = kWideRegs / kTileRegs;

template <class V, int R, int G>
void any_rows(const std::uint8_t* w, std::int64_t lines, const std::int8_t* x, std::int64_t stride,
              std::int32_t* total) {
  if constexpr (R == 1 && V::kScaledCodes)
    gemv_scaled<V, G>(w, lines, x, total);
  else
    rows_kernel<V, R, G>(w, lines, x, stride, total);
}

/// The kernel for `rows` ≤ kMaxRows rows of x over one tile or kWideTiles tiles.
RowsKernel kernel_for(std::int64_t rows, bool wide) {
  static constexpr RowsKernel kTable[12][2] = {
#define BITNET_ROW(R) \
  {&any_rows<I8, (R <= kMaxRows ? R : 1), kTileRegs>, &any_rows<I8, (R <= kMaxRows ? R : 1), kWideRegs>}
      BITNET_ROW(1),  BITNET_ROW(2), BITNET_ROW(3), BITNET_ROW(4), BITNET_ROW(5),
      BITNET_ROW(6),  BITNET_ROW(7), BITNET_ROW(8), BITNET_ROW(9), BITNET_ROW(10),
      BITNET_ROW(11), BITNET_ROW(12)
#undef BITNET_ROW
  };
  static_assert(kMaxRows <= 12);
  return kTable[rows - 1][wide ? 1 : 0];
}

void multiply(const TernaryProduct& p) noexcept {
  std::int32_t total[kMaxRows * kWideRegs * I8::kRows];
  // One row: two tiles at a time keep more products in flight, but memory gives more to a single stream.
  constexpr std::int64_t kCachedBytes = 256 << 10;
  const bool two = p.rows > 1 || (p.tile_end - p.tile_begin) * p.lines * kLineBytes <= kCachedBytes;
  for (std::int64_t tile = p.tile_begin; tile < p.tile_end;) {
    const bool wide = two && p.tile_end - tile >= kWideTiles;
    const std::int64_t width = wide ? kWideTiles * kTileRows : kTileRows;
    const std::int64_t first = tile * kTileRows;
    const std::int64_t cols = p.out - first < width ? p.out - first : width;
    // Weights outside, rows inside: a line comes from memory once, and stays in L1 for the further rows.
    for (std::int64_t row = 0; row < p.rows;) {
      // Near-equal blocks: 13 rows of at most 12 are 7 + 6, not 12 + 1.
      const std::int64_t left = p.rows - row, blocks = (left + kMaxRows - 1) / kMaxRows;
      const std::int64_t rows = (left + blocks - 1) / blocks;
      kernel_for(rows, wide)(p.tiles + tile * p.lines * kLineBytes, p.lines, p.x + row * p.stride, p.stride,
                             total);
      finish(p, row, rows, first, cols, width, total);
      row += rows;
    }
    tile += wide ? kWideTiles : 1;
  }
}

}  // namespace
}  // namespace bitnet::quant::kernels
