#pragma once
// Many dot products at once: rows of x against rows of a matrix, each with the 16 lanes and the fold of
// dot(), so to the bit what dot() gives; register blocks only keep more of them in flight. Included by
// f32_table.cpp only.
#include "kernels/generic/rows.inl.hpp"

namespace bitnet::kernels {
namespace {

using simd::Quad;
using simd::QuadMem;

/// fold(·, plus) of four blocks: the same additions, four results a register at the end.
BITNET_INLINE Quad fold_four(const Block (&b)[4]) {
  Quad s[4];
  BITNET_UNROLL
  for (int i = 0; i < 4; ++i) {
    float lane[16];
    store_block(lane, b[i]);
    const QuadMem* const q = reinterpret_cast<const QuadMem*>(lane);
    s[i] = (q[0] + q[2]) + (q[1] + q[3]);  // lanes i + 8, then i + 4
  }
  const Quad a = __builtin_shufflevector(s[0], s[1], 0, 4, 1, 5),
             c = __builtin_shufflevector(s[2], s[3], 0, 4, 1, 5);
  const Quad d = __builtin_shufflevector(s[0], s[1], 2, 6, 3, 7),
             e = __builtin_shufflevector(s[2], s[3], 2, 6, 3, 7);
  const Quad lane0 = __builtin_shufflevector(a, c, 0, 1, 4, 5),
             lane1 = __builtin_shufflevector(a, c, 2, 3, 6, 7);
  const Quad lane2 = __builtin_shufflevector(d, e, 0, 1, 4, 5),
             lane3 = __builtin_shufflevector(d, e, 2, 3, 6, 7);
  return (lane0 + lane2) + (lane1 + lane3);
}

/// R rows of x times 4 rows of w.
template <class Source, int R>
void dot_block(const float* const* x, const Source (&w)[4], std::size_t n, float* y, std::int64_t y_stride) {
  Block acc[R][4];
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) {
    BITNET_UNROLL
    for (int c = 0; c < 4; ++c) acc[r][c] = splat(0.0f);
  }
  const auto step = [&](const auto& load_x, const auto& load_w) __attribute__((always_inline)) {
    Block v[4];
    BITNET_UNROLL
    for (int c = 0; c < 4; ++c) v[c] = load_w(w[c]);
    BITNET_UNROLL
    for (int r = 0; r < R; ++r) {
      const Block u = load_x(FromF32{x[r]});
      BITNET_UNROLL
      for (int c = 0; c < 4; ++c) {
        BITNET_UNROLL
        for (int i = 0; i < kRegs; ++i) acc[r][c].r[i] = F32::fma(v[c].r[i], u.r[i], acc[r][c].r[i]);
      }
    }
  };
  // The next four rows: hardware follows four streams at half the speed that memory has.
  const std::ptrdiff_t ahead = 4 * (w[1].p - w[0].p);
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    BITNET_UNROLL
    for (int c = 0; c < 4; ++c) __builtin_prefetch(w[c].p + ahead + i);
    const auto load = [&](const auto& from) __attribute__((always_inline)) { return load_block(from, i); };
    step(load, load);
  }
  if (i < n) {
    const auto load = [&](const auto& from) __attribute__((always_inline)) {
      return load_part(from, i, n, 0.0f);
    };
    step(load, load);
  }
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) *reinterpret_cast<QuadMem*>(y + r * y_stride) = fold_four(acc[r]);
}

/// Rows that share a loaded block of w: as many as keep their sums in registers.
constexpr int kDotRows = kRegs == 1 ? 4 : 1;

template <class Source, class T>
void dots_of(const float* const* x, std::int64_t rows, const T* w, std::int64_t w_stride, std::int64_t cols,
             std::size_t n, float* y, std::int64_t y_stride) {
  std::int64_t c = 0;
  for (; c + 4 <= cols; c += 4) {
    const T* const p = w + c * w_stride;
    const Source four[4] = {{p}, {p + w_stride}, {p + 2 * w_stride}, {p + 3 * w_stride}};
    std::int64_t r = 0;
    for (; r + kDotRows <= rows; r += kDotRows)
      dot_block<Source, kDotRows>(x + r, four, n, y + r * y_stride + c, y_stride);
    for (; r < rows; ++r) dot_block<Source, 1>(x + r, four, n, y + r * y_stride + c, y_stride);
  }
  for (; c < cols; ++c)
    for (std::int64_t r = 0; r < rows; ++r) y[r * y_stride + c] = dot_of(Source{w + c * w_stride}, x[r], n);
}

void dots(const float* const* x, std::int64_t rows, const float* w, std::int64_t w_stride, std::int64_t cols,
          std::size_t n, float* y, std::int64_t y_stride) noexcept {
  dots_of<FromF32>(x, rows, w, w_stride, cols, n, y, y_stride);
}

void dots_f16(const float* const* x, std::int64_t rows, const std::uint16_t* w, std::int64_t w_stride,
              std::int64_t cols, std::size_t n, float* y, std::int64_t y_stride) noexcept {
  dots_of<FromF16>(x, rows, w, w_stride, cols, n, y, y_stride);
}

void dots_bf16(const float* const* x, std::int64_t rows, const std::uint16_t* w, std::int64_t w_stride,
               std::int64_t cols, std::size_t n, float* y, std::int64_t y_stride) noexcept {
  dots_of<FromBf16>(x, rows, w, w_stride, cols, n, y, y_stride);
}

}  // namespace
}  // namespace bitnet::kernels
