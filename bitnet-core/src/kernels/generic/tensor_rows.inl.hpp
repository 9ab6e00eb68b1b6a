#pragma once
// Row reductions, the layer norm's last step and conversions between element types for the tensor ops,
// written once against simd::F32. Reductions have the 16 lanes and the fold of rows.inl.hpp. Included by
// tensor_table.cpp only.
#include "kernels/generic/elementwise.inl.hpp"
#include "kernels/generic/extreme.inl.hpp"

namespace bitnet::kernels {
namespace {

/// acc[lane] = step(acc[lane], x) over all blocks, then a fold with the same rule for single floats.
template <class Step, class Fold>
BITNET_INLINE float reduce_row(const float* x, std::size_t n, float start, float pad, Step step,
                               Fold fold_op) {
  Block acc = splat(start);
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const Block v = load_block(FromF32{x}, i);
    BITNET_UNROLL
    for (int r = 0; r < kRegs; ++r) acc.r[r] = step(acc.r[r], v.r[r]);
  }
  if (i < n) {
    const Block v = load_part(FromF32{x}, i, n, pad);
    BITNET_UNROLL
    for (int r = 0; r < kRegs; ++r) acc.r[r] = step(acc.r[r], v.r[r]);
  }
  return fold(acc, fold_op);
}

/// The extreme of x; NaN if there is one; of zeros +0. NaNs win no comparison, so they are looked for beside
/// it.
template <class Better>
BITNET_INLINE float extreme(const float* x, std::size_t n, float start) {
  Best<F32::Reg, Better> best(F32::broadcast(start));
  Magnitudes magnitudes;
  for_each_register(
      x, n, start, [&](int c, std::size_t, F32::Reg v) __attribute__((always_inline)) {
        best.take(c, v);
        magnitudes.take_float(c, v);
      });
  if (magnitudes.most() > 0x7f800000) return __builtin_nanf("");
  return best_lane<simd::Quad>(best.chain, Better()) + 0.0f;
}

float row_max(const float* x, std::size_t n) noexcept { return extreme<Larger>(x, n, -__builtin_inff()); }
float row_min(const float* x, std::size_t n) noexcept { return extreme<Smaller>(x, n, __builtin_inff()); }

/// Index of the first of n ≤ 2^30 elements for which is(register) is true; n if there is none.
template <class Is>
BITNET_INLINE std::size_t first_where(const float* x, std::size_t n, Is is) {
  F32::Int count;
  for (int i = 0; i < F32::kLanes; ++i) count[i] = i;
  const F32::Int none = F32::Int{} + static_cast<std::int32_t>(n);
  Best<F32::Int, Smaller> first(none);
  for_each_register(
      x, n, 0.0f, [&](int c, std::size_t at, F32::Reg v) __attribute__((always_inline)) {
        first.take(c, is(v) ? count + static_cast<std::int32_t>(at) : none);
      });
  return static_cast<std::size_t>(best_lane<simd::IntQuad>(first.chain, Smaller()));
}

/// Block by block: the extreme of each, and only the block of the best one is searched for its place.
template <class Better>
BITNET_INLINE std::size_t arg_extreme(const float* x, std::size_t n, float start) {
  constexpr std::size_t kBlock = 512;
  const auto size = [&](std::size_t block) { return n - block < kBlock ? n - block : kBlock; };
  std::size_t at = 0;
  float best = 0;
  for (std::size_t block = 0; block < n; block += kBlock) {
    const float v = extreme<Better>(x + block, size(block), start);
    if (v != v)
      return block +
             first_where(
                 x + block, size(block), [](F32::Reg r) __attribute__((always_inline)) { return r != r; });
    if (block > 0 && !Better()(v, best)) continue;
    at = block;
    best = v;
  }
  const F32::Reg value = F32::broadcast(best);
  return at + first_where(
                  x + at, size(at), [&](F32::Reg r) __attribute__((always_inline)) { return r == value; });
}

std::size_t arg_max(const float* x, std::size_t n) noexcept {
  return arg_extreme<Larger>(x, n, -__builtin_inff());
}
std::size_t arg_min(const float* x, std::size_t n) noexcept {
  return arg_extreme<Smaller>(x, n, __builtin_inff());
}

float sum_abs(const float* x, std::size_t n) noexcept {
  return reduce_row(
      x, n, 0.0f, 0.0f, [](F32::Reg a, F32::Reg v) __attribute__((always_inline)) { return a + absolute(v); },
      kPlus);
}

float sum_deviations(const float* x, float m, std::size_t n) noexcept {
  const F32::Reg mean = F32::broadcast(m);
  return reduce_row(
      x, n, 0.0f, m,  // padded with the mean: a deviation of 0
      [&](F32::Reg a, F32::Reg v) __attribute__((always_inline)) {
        const F32::Reg d = v - mean;
        return F32::fma(d, d, a);
      },
      kPlus);
}

void normalize(const float* x, float mean, float factor, const float* w, const float* b, float* y,
               std::size_t n) noexcept {
  constexpr std::size_t kLanes = F32::kLanes;
  const F32::Reg m = F32::broadcast(mean), f = F32::broadcast(factor);
  const float one = 1, zero = 0;
  const Operand weights(w == nullptr ? &one : w, w == nullptr, n),
      shifts(b == nullptr ? &zero : b, b == nullptr, n);
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const F32::Reg wv = w == nullptr ? weights.splat : F32::load(w + i),
                   bv = b == nullptr ? shifts.splat : F32::load(b + i);
    F32::store(y + i, F32::fma((F32::load(x + i) - m) * f, wv, bv));
  }
  if (i < n) {
    const F32::Reg v = Operand(x, false, n).part(i, n);
    store_some(y + i, F32::fma((v - m) * f, weights.part(i, n), shifts.part(i, n)), n - i);
  }
}

void f32_to_f16(const float* x, std::uint16_t* y, std::size_t n) noexcept {
  constexpr std::size_t kLanes = F32::kLanes;
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) F32::store_f16(y + i, F32::load(x + i));
  if (i == n) return;
  std::uint16_t copy[kLanes];
  F32::store_f16(copy, Operand(x, false, n).part(i, n));
  for (std::size_t j = i; j < n; ++j) y[j] = copy[j - i];
}

void f32_to_bf16(const float* x, std::uint16_t* y, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) {
    std::uint32_t u;
    __builtin_memcpy(&u, x + i, sizeof u);
    const std::uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    y[i] = static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
  }
}

/// Register by register through `convert`, which gives int32 lanes that are stored as T.
template <class T, class Convert>
BITNET_INLINE void to_integers(const float* x, T* y, std::size_t n, Convert convert) {
  constexpr std::size_t kLanes = F32::kLanes;
  typedef T Out __attribute__((vector_size(sizeof(T) * F32::kLanes)));
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const Out v = __builtin_convertvector(convert(F32::load(x + i)), Out);
    __builtin_memcpy(y + i, &v, sizeof v);
  }
  if (i == n) return;
  const Out v = __builtin_convertvector(convert(Operand(x, false, n).part(i, n)), Out);
  T copy[kLanes];
  __builtin_memcpy(copy, &v, sizeof v);
  for (std::size_t j = i; j < n; ++j) y[j] = copy[j - i];
}

void f32_to_i8(const float* x, std::int8_t* y, std::size_t n) noexcept {
  to_integers(
      x, y, n, [](F32::Reg v) __attribute__((always_inline)) {
        const F32::Reg low = F32::broadcast(-128.0f), high = F32::broadcast(127.0f);
        F32::Reg c = select(v == v, v, F32::broadcast(0.0f));
        c = select(c < low, low, c);
        c = select(c > high, high, c);
        return __builtin_convertvector(round_reg(c), F32::Int);
      });
}

void f32_to_i32(const float* x, std::int32_t* y, std::size_t n) noexcept {
  to_integers(
      x, y, n, [](F32::Reg v) __attribute__((always_inline)) {
        // 2^31 − 128 is the largest float below 2^31; what lies above saturates to 2^31 − 1.
        const F32::Reg low = F32::broadcast(-0x1p31f), high = F32::broadcast(0x1.fffffep30f);
        F32::Reg c = select(v == v, v, F32::broadcast(0.0f));
        c = select(c < low, low, c);
        const F32::Int above = c > high;
        c = select(above, high, c);
        const F32::Int i = __builtin_convertvector(round_reg(c), F32::Int);
        return (i & ~above) | (above & 0x7fffffff);
      });
}

void i8_to_f32(const std::int8_t* x, float* y, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) y[i] = x[i];
}

void i32_to_f32(const std::int32_t* x, float* y, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) y[i] = static_cast<float>(x[i]);
}

}  // namespace
}  // namespace bitnet::kernels
