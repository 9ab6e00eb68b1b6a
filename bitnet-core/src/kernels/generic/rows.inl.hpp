#pragma once
// Row kernels, written once against simd::F32. Every reduction keeps 16 partial sums (lane = index mod 16;
// the last block is padded with the neutral element) and folds them 16 → 8 → 4 → 2 → 1, so that all ISAs add
// in one order. Included by f32_table.cpp only; the exponential and what rests on it are in exp.inl.hpp.
#include "kernels/generic/extreme.inl.hpp"

namespace bitnet::kernels {
namespace {

/// acc[lane] = step(acc[lane], x[, y]) over all blocks, then a fold. Four chains would change the order:
/// there is one per lane on every ISA.
template <class X, class Step, class Fold>
BITNET_INLINE float reduce(const X& x, std::size_t n, float start, float pad, Step step, Fold fold_op) {
  Block acc = splat(start);
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const Block v = load_block(x, i);
    BITNET_UNROLL
    for (int r = 0; r < kRegs; ++r) acc.r[r] = step(acc.r[r], v.r[r]);
  }
  if (i < n) {
    const Block v = load_part(x, i, n, pad);
    BITNET_UNROLL
    for (int r = 0; r < kRegs; ++r) acc.r[r] = step(acc.r[r], v.r[r]);
  }
  return fold(acc, fold_op);
}

template <class X>
BITNET_INLINE float dot_of(const X& x, const float* y, std::size_t n) {
  Block acc = splat(0.0f);
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const Block a = load_block(x, i), b = load_block(FromF32{y}, i);
    BITNET_UNROLL
    for (int r = 0; r < kRegs; ++r) acc.r[r] = F32::fma(a.r[r], b.r[r], acc.r[r]);
  }
  if (i < n) {
    const Block a = load_part(x, i, n, 0.0f), b = load_part(FromF32{y}, i, n, 0.0f);
    BITNET_UNROLL
    for (int r = 0; r < kRegs; ++r) acc.r[r] = F32::fma(a.r[r], b.r[r], acc.r[r]);
  }
  return fold(acc, kPlus);
}

float dot(const float* x, const float* y, std::size_t n) noexcept { return dot_of(FromF32{x}, y, n); }
float dot_f16(const std::uint16_t* x, const float* y, std::size_t n) noexcept {
  return dot_of(FromF16{x}, y, n);
}
float dot_bf16(const std::uint16_t* x, const float* y, std::size_t n) noexcept {
  return dot_of(FromBf16{x}, y, n);
}

float sum(const float* x, std::size_t n) noexcept {
  return reduce(
      FromF32{x}, n, 0.0f, 0.0f, [](F32::Reg a, F32::Reg v) __attribute__((always_inline)) { return a + v; },
      kPlus);
}

float sum_squares(const float* x, std::size_t n) noexcept {
  return reduce(
      FromF32{x}, n, 0.0f, 0.0f,
      [](F32::Reg a, F32::Reg v) __attribute__((always_inline)) { return F32::fma(v, v, a); }, kPlus);
}

/// NaNs are passed over; of zeros +0 comes out.
float max(const float* x, std::size_t n) noexcept {
  Best<F32::Reg, Larger> best(F32::broadcast(-__builtin_inff()));
  for_each_register(
      x, n, -__builtin_inff(), [&](int c, std::size_t, F32::Reg v) __attribute__((always_inline)) {
        best.take(c, v);
      });
  return best_lane<simd::Quad>(best.chain, Larger()) + 0.0f;
}

float max_abs(const float* x, std::size_t n) noexcept {
  Magnitudes magnitudes;
  for_each_register(
      x, n, 0.0f, [&](int c, std::size_t, F32::Reg v) __attribute__((always_inline)) {
        magnitudes.take_float(c, v);
      });
  const std::int32_t most = magnitudes.most();
  float result;
  __builtin_memcpy(&result, &most, sizeof result);
  return result;
}

/// out[i] = op(x[i]) register by register; op is also given the pad elements, whose results are dropped.
template <class X, class Op>
BITNET_INLINE void map1(const X& x, float* out, std::size_t n, Op op) {
  std::size_t i = 0;
  for (; i + F32::kLanes <= n; i += F32::kLanes) F32::store(out + i, op(x.reg(i)));
  if (i == n) return;
  float copy[F32::kLanes] = {};
  for (std::size_t j = i; j < n; ++j) copy[j - i] = x.one(j);
  F32::store(copy, op(F32::load(copy)));
  for (std::size_t j = i; j < n; ++j) out[j] = copy[j - i];
}

/// out[i] = op(x[i], y[i])
template <class Op>
BITNET_INLINE void map2(const float* x, const float* y, float* out, std::size_t n, Op op) {
  std::size_t i = 0;
  for (; i + F32::kLanes <= n; i += F32::kLanes) F32::store(out + i, op(F32::load(x + i), F32::load(y + i)));
  if (i == n) return;
  float a[F32::kLanes] = {}, b[F32::kLanes] = {};
  for (std::size_t j = i; j < n; ++j) {
    a[j - i] = x[j];
    b[j - i] = y[j];
  }
  F32::store(a, op(F32::load(a), F32::load(b)));
  for (std::size_t j = i; j < n; ++j) out[j] = a[j - i];
}

void axpy(float a, const float* x, float* y, std::size_t n) noexcept {
  const F32::Reg va = F32::broadcast(a);
  map2(
      x, y, y, n, [&](F32::Reg u, F32::Reg v) __attribute__((always_inline)) { return F32::fma(va, u, v); });
}

/// Registers [i, i + R) of y stay loaded while the rows of x pass.
template <int R>
BITNET_INLINE void axpy_columns(const float* a, const float* x, std::int64_t stride, std::int64_t rows,
                                float* y) {
  F32::Reg sum[R];
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) sum[r] = F32::load(y + r * F32::kLanes);
  for (std::int64_t t = 0; t < rows; ++t, x += stride) {
    const F32::Reg va = F32::broadcast(a[t]);
    BITNET_UNROLL
    for (int r = 0; r < R; ++r) sum[r] = F32::fma(va, F32::load(x + r * F32::kLanes), sum[r]);
  }
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) F32::store(y + r * F32::kLanes, sum[r]);
}

void axpy_rows(const float* a, const float* x, std::int64_t stride, std::int64_t rows, float* y,
               std::size_t n) noexcept {
  constexpr std::size_t kOne = F32::kLanes, kFour = 4 * kOne;
  std::size_t i = 0;
  for (; i + kFour <= n; i += kFour) axpy_columns<4>(a, x + i, stride, rows, y + i);
  for (; i + kOne <= n; i += kOne) axpy_columns<1>(a, x + i, stride, rows, y + i);
  for (; i < n; ++i)
    for (std::int64_t t = 0; t < rows; ++t)
      y[i] = F32::fma1(a[t], x[t * stride + static_cast<std::int64_t>(i)], y[i]);
}

void scale(float a, float* x, std::size_t n) noexcept {
  const F32::Reg va = F32::broadcast(a);
  map1(
      FromF32{x}, x, n, [&](F32::Reg v) __attribute__((always_inline)) { return va * v; });
}

void add(const float* x, float* y, std::size_t n) noexcept {
  map2(
      x, y, y, n, [](F32::Reg u, F32::Reg v) __attribute__((always_inline)) { return v + u; });
}

void mul(const float* x, float* y, std::size_t n) noexcept {
  map2(
      x, y, y, n, [](F32::Reg u, F32::Reg v) __attribute__((always_inline)) { return v * u; });
}

void rms_norm(const float* x, const float* w, float eps, float* y, std::size_t n) noexcept {
  const float mean = n == 0 ? 0.0f : sum_squares(x, n) / static_cast<float>(n);
  const F32::Reg factor = F32::broadcast(1.0f / __builtin_sqrtf(mean + eps));
  map2(
      x, w, y, n, [&](F32::Reg u, F32::Reg v) __attribute__((always_inline)) { return u * factor * v; });
}

void relu2_gate(const float* gate, const float* up, float* out, std::size_t n) noexcept {
  const F32::Reg zero = F32::broadcast(0.0f);
  map2(
      gate, up, out, n, [&](F32::Reg g, F32::Reg u) __attribute__((always_inline)) {
        const F32::Reg relu = select(g < zero, zero, g);  // a NaN stays one
        return relu * relu * u;
      });
}

/// One pair of registers of rope: t is named so that the product is rounded before the fused step everywhere.
BITNET_INLINE void rotate(F32::Reg& a, F32::Reg& b, F32::Reg c, F32::Reg s) {
  const F32::Reg bs = b * s, as = a * s;
  const F32::Reg first = F32::fma(a, c, -bs);
  b = F32::fma(b, c, as);
  a = first;
}

void rope(float* x, const float* cos, const float* sin, std::size_t half) noexcept {
  std::size_t i = 0;
  for (; i + F32::kLanes <= half; i += F32::kLanes) {
    F32::Reg a = F32::load(x + i), b = F32::load(x + half + i);
    rotate(a, b, F32::load(cos + i), F32::load(sin + i));
    F32::store(x + i, a);
    F32::store(x + half + i, b);
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i], bs = b * sin[i], as = a * sin[i];
    x[i] = F32::fma1(a, cos[i], -bs);
    x[half + i] = F32::fma1(b, cos[i], as);
  }
}

void f16_to_f32(const std::uint16_t* x, float* y, std::size_t n) noexcept {
  map1(
      FromF16{x}, y, n, [](F32::Reg v) __attribute__((always_inline)) { return v; });
}

void bf16_to_f32(const std::uint16_t* x, float* y, std::size_t n) noexcept {
  map1(
      FromBf16{x}, y, n, [](F32::Reg v) __attribute__((always_inline)) { return v; });
}

}  // namespace
}  // namespace bitnet::kernels
