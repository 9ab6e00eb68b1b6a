#pragma once
// Elementwise operations of the tensor ops, written once against simd::F32: each is a struct whose apply()
// works on one register, and a loop that runs it over arrays. No libm: the same bits everywhere. Included by
// tensor_table.cpp only.
#include "kernels/generic/exp_reg.inl.hpp"

namespace bitnet::kernels {
namespace {

BITNET_INLINE F32::Reg copy_sign(F32::Reg magnitude, F32::Reg sign) {
  return reinterpret_cast<F32::Reg>((reinterpret_cast<F32::Int>(magnitude) & 0x7fffffff) |
                                    (reinterpret_cast<F32::Int>(sign) & ~0x7fffffff));
}

/// To the nearest integer, half to even: adding 2^23 with x's sign drops the fraction; from 2^23 on there is
/// none. Keeps the sign of zeros, infinities and NaN.
BITNET_INLINE F32::Reg round_reg(F32::Reg x) {
  const F32::Reg big = copy_sign(F32::broadcast(0x1p23f), x);
  const F32::Reg rounded = copy_sign(x + big - big, x);
  return select(absolute(x) < F32::broadcast(0x1p23f), rounded, x);
}

/// Taylor polynomial of (e^r − 1)/r to r^7: with |r| ≤ 0.35 the rest is below 0.35^8/9! = 6e-10.
BITNET_INLINE F32::Reg expm1_over_r(F32::Reg r) {
  F32::Reg p = F32::broadcast(1.0f / 40320);
  p = F32::fma(p, r, F32::broadcast(1.0f / 5040));
  p = F32::fma(p, r, F32::broadcast(1.0f / 720));
  p = F32::fma(p, r, F32::broadcast(1.0f / 120));
  p = F32::fma(p, r, F32::broadcast(1.0f / 24));
  p = F32::fma(p, r, F32::broadcast(1.0f / 6));
  p = F32::fma(p, r, F32::broadcast(0.5f));
  return F32::fma(p, r, F32::broadcast(1.0f));
}

/// tanh |x| = q / (q + 2) with q = e^(2|x|) − 1 = 2^n·(e^r − 1) + (2^n − 1), which is exact up to the last
/// additions while n ≤ 24. From |x| = 9.02 on the result rounds to 1, so x is cut at 10. Within 4 ulp.
BITNET_INLINE F32::Reg tanh_reg(F32::Reg x) {
  const F32::Reg most = F32::broadcast(10.0f);
  F32::Reg a = absolute(x);
  a = select(a > most, most, a);  // a NaN passes through
  const F32::Reg twice = a + a, magic = F32::broadcast(0x1.8p23f);
  const F32::Reg shifted = F32::fma(twice, F32::broadcast(1.44269504088896341f), magic);
  const F32::Reg n = shifted - magic;
  F32::Reg r = F32::fma(n, F32::broadcast(-0.693359375f), twice);
  r = F32::fma(n, F32::broadcast(2.12194440054690583e-4f), r);
  const F32::Int k = reinterpret_cast<F32::Int>(shifted) - 0x4b400000;
  const F32::Reg power = reinterpret_cast<F32::Reg>((k + 127) << 23);
  const F32::Reg e = expm1_over_r(r) * r;
  const F32::Reg q = F32::fma(power, e, power - F32::broadcast(1.0f));
  return copy_sign(select(x == x, q / (q + F32::broadcast(2.0f)), x), x);
}

/// log x = k·ln 2 + log m with m in [√½, √2), log m = 2·atanh(s), s = (m − 1)/(m + 1), |s| ≤ 0.172: the
/// series to s^9, the rest of which is below 2·s^11/11 = 7e-10·s. Subnormals are scaled by 2^23 first. Within
/// 3 ulp. log 0 = −∞, of negatives NaN.
BITNET_INLINE F32::Reg log_reg(F32::Reg x) {
  const F32::Reg tiny = F32::broadcast(0x1p-126f), zero = F32::broadcast(0.0f),
                 infinite = F32::broadcast(__builtin_inff());
  const F32::Int small = x < tiny;
  const F32::Reg scaled = select(small, x * F32::broadcast(0x1p23f), x);
  // The exponent of the mantissa counted from √½ = 0x3f3504f3; of negatives it wraps, and is not used.
  typedef std::uint32_t Wrapping __attribute__((vector_size(sizeof(F32::Int))));
  const F32::Int bits = reinterpret_cast<F32::Int>(reinterpret_cast<Wrapping>(scaled) - 0x3f3504f3u);
  const F32::Int exponent = bits >> 23;
  const F32::Reg m = reinterpret_cast<F32::Reg>((bits & 0x7fffff) + 0x3f3504f3);
  const F32::Reg k = __builtin_convertvector(exponent, F32::Reg) - select(small, F32::broadcast(23.0f), zero);
  const F32::Reg f = m - F32::broadcast(1.0f), s = f / (m + F32::broadcast(1.0f)), z = s * s;
  F32::Reg p = F32::broadcast(2.0f / 9);
  p = F32::fma(p, z, F32::broadcast(2.0f / 7));
  p = F32::fma(p, z, F32::broadcast(2.0f / 5));
  p = F32::fma(p, z, F32::broadcast(2.0f / 3));
  // 2s = f − s·f: f is exact, so that the sum loses nothing near x = 1.
  const F32::Reg rest = F32::fma(s, p * z - f, k * F32::broadcast(-2.12194440054690583e-4f));
  const F32::Reg result = F32::fma(k, F32::broadcast(0.693359375f), f + rest);
  const F32::Reg nan = F32::broadcast(__builtin_nanf(""));
  const F32::Reg special = select(x == zero, -infinite, select(x == infinite, infinite, nan));
  return select((x > zero) & (x < infinite), result, select(x == x, special, x));
}

#define BITNET_BINARY(Name, expression)                                                \
  struct Name {                                                                        \
    static BITNET_INLINE F32::Reg apply(F32::Reg a, F32::Reg b) { return expression; } \
  };
BITNET_BINARY(Add, a + b)
BITNET_BINARY(Sub, a - b)
BITNET_BINARY(Mul, a* b)
BITNET_BINARY(Div, a / b)
BITNET_BINARY(Maximum, select((a >= b) | (a != a), a, b))  // a NaN of either side comes out
BITNET_BINARY(Minimum, select((a <= b) | (a != a), a, b))
#undef BITNET_BINARY

#define BITNET_COMPARISON(Name, op)                                      \
  struct Name {                                                          \
    static BITNET_INLINE bool apply(float a, float b) { return a op b; } \
  };
BITNET_COMPARISON(Equal, ==)
BITNET_COMPARISON(NotEqual, !=)
BITNET_COMPARISON(Less, <)
BITNET_COMPARISON(LessEqual, <=)
BITNET_COMPARISON(Greater, >)
BITNET_COMPARISON(GreaterEqual, >=)
#undef BITNET_COMPARISON

#define BITNET_UNARY(Name, expression)                                     \
  struct Name {                                                            \
    static BITNET_INLINE F32::Reg apply(F32::Reg x) { return expression; } \
  };
BITNET_UNARY(Neg, -x)
BITNET_UNARY(Abs, absolute(x))
BITNET_UNARY(Square, x* x)
BITNET_UNARY(Reciprocal, F32::broadcast(1.0f) / x)
BITNET_UNARY(Exp, exp_reg(x))
BITNET_UNARY(Log, log_reg(x))
BITNET_UNARY(Tanh, tanh_reg(x))
BITNET_UNARY(Sigmoid, F32::broadcast(1.0f) / (F32::broadcast(1.0f) + exp_reg(-x)))
BITNET_UNARY(Relu, select(x < F32::broadcast(0.0f), F32::broadcast(0.0f), x))  // a NaN stays one
BITNET_UNARY(Silu, x / (F32::broadcast(1.0f) + exp_reg(-x)))
BITNET_UNARY(Round, round_reg(x))
#undef BITNET_UNARY

struct Floor {
  static BITNET_INLINE F32::Reg apply(F32::Reg x) {
    const F32::Reg r = round_reg(x);
    return select(r > x, r - F32::broadcast(1.0f), r);
  }
};
struct Ceil {
  static BITNET_INLINE F32::Reg apply(F32::Reg x) {
    const F32::Reg r = round_reg(x);
    return select(r < x, copy_sign(r + F32::broadcast(1.0f), x), r);  // −0.3 becomes −0
  }
};

/// n elements at p, or one repeated: whole registers, and a padded last one.
struct Operand {
  const float* p;
  bool one;
  F32::Reg splat;
  BITNET_INLINE Operand(const float* from, bool is_one, std::size_t n)
      : p(from), one(is_one), splat(F32::broadcast(is_one && n > 0 ? *from : 0.0f)) {}
  BITNET_INLINE F32::Reg part(std::size_t i, std::size_t n) const {
    if (one) return splat;
    float copy[F32::kLanes] = {};
    for (std::size_t j = i; j < n; ++j) copy[j - i] = p[j];
    return F32::load(copy);
  }
};

BITNET_INLINE void store_some(float* out, F32::Reg v, std::size_t count) {
  float copy[F32::kLanes];
  F32::store(copy, v);
  for (std::size_t j = 0; j < count; ++j) out[j] = copy[j];
}

template <class Op>
void binary(const float* x, bool x_one, const float* y, bool y_one, float* out, std::size_t n) noexcept {
  constexpr std::size_t kLanes = F32::kLanes;
  const Operand a(x, x_one, n), b(y, y_one, n);
  std::size_t i = 0;
  if (x_one) {
    const float* const from = y_one ? nullptr : y;
    for (; i + kLanes <= n; i += kLanes)
      F32::store(out + i, Op::apply(a.splat, from == nullptr ? b.splat : F32::load(from + i)));
  } else if (y_one) {
    for (; i + kLanes <= n; i += kLanes) F32::store(out + i, Op::apply(F32::load(x + i), b.splat));
  } else {
    for (; i + kLanes <= n; i += kLanes) F32::store(out + i, Op::apply(F32::load(x + i), F32::load(y + i)));
  }
  if (i < n) store_some(out + i, Op::apply(a.part(i, n), b.part(i, n)), n - i);
}

template <class Op>
void compare(const float* x, bool x_one, const float* y, bool y_one, std::int8_t* out,
             std::size_t n) noexcept {
  if (!x_one && !y_one) {
    for (std::size_t i = 0; i < n; ++i) out[i] = Op::apply(x[i], y[i]) ? 1 : 0;
  } else if (n > 0 && x_one) {  // with both single, y is read once, too
    const float a = *x;
    const std::size_t step = y_one ? 0 : 1;
    for (std::size_t i = 0; i < n; ++i) out[i] = Op::apply(a, y[i * step]) ? 1 : 0;
  } else if (n > 0) {
    const float b = *y;
    for (std::size_t i = 0; i < n; ++i) out[i] = Op::apply(x[i], b) ? 1 : 0;
  }
}

template <class Op>
void unary(const float* x, float* out, std::size_t n) noexcept {
  constexpr std::size_t kLanes = F32::kLanes;
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) F32::store(out + i, Op::apply(F32::load(x + i)));
  if (i < n) store_some(out + i, Op::apply(Operand(x, false, n).part(i, n)), n - i);
}

void square_root(const float* x, float* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) out[i] = __builtin_sqrtf(x[i]);  // one instruction, vectorised
}

void clamp(const float* x, float low, float high, float* out, std::size_t n) noexcept {
  for (std::size_t i = 0; i < n; ++i) {
    const float v = x[i] < low ? low : x[i];
    out[i] = v > high ? high : v;
  }
}

}  // namespace
}  // namespace bitnet::kernels
