#pragma once
// The project's exponential and what rests on it, written once against simd::F32. No libm: the same bits
// everywhere. Included by f32_table.cpp only.
#include "kernels/generic/rows.inl.hpp"

namespace bitnet::kernels {
namespace {

/// e^x. x = n·ln 2 + r with |r| ≤ 0.35 (Cody & Waite: the high part of ln 2 has 9 bits, so n·high is exact
/// even without FMA), Taylor to r^7 (truncation ≤ 0.35^8/8! = 5.6e-9, a twentieth of an ulp), then two exact
/// scalings by powers of two, of which only the last rounds when the result is subnormal. NaN → NaN, > 88.73
/// → ∞, < −104 → 0.
BITNET_INLINE F32::Reg exp_reg(F32::Reg x) {
  const F32::Reg high = F32::broadcast(89.0f), low = F32::broadcast(-104.0f);
  F32::Reg clamped = select(x > high, high, x);  // comparisons with NaN are false: it passes through
  clamped = select(clamped < low, low, clamped);
  // Adding 1.5·2^23 rounds to an integer, half to even, and leaves it in the low bits.
  const F32::Reg magic = F32::broadcast(0x1.8p23f);
  const F32::Reg shifted = F32::fma(clamped, F32::broadcast(1.44269504088896341f), magic);
  const F32::Reg n = shifted - magic;
  F32::Reg r = F32::fma(n, F32::broadcast(-0.693359375f), clamped);
  r = F32::fma(n, F32::broadcast(2.12194440054690583e-4f), r);
  F32::Reg p = F32::broadcast(1.0f / 5040);
  p = F32::fma(p, r, F32::broadcast(1.0f / 720));
  p = F32::fma(p, r, F32::broadcast(1.0f / 120));
  p = F32::fma(p, r, F32::broadcast(1.0f / 24));
  p = F32::fma(p, r, F32::broadcast(1.0f / 6));
  p = F32::fma(p, r, F32::broadcast(0.5f));
  p = F32::fma(p, r, F32::broadcast(1.0f));
  p = F32::fma(p, r, F32::broadcast(1.0f));
  // The low 23 bits of the magic constant are 2^22, a multiple of 2^22 that the subtraction removes; n ∈
  // [−150, 128].
  const F32::Int k = reinterpret_cast<F32::Int>(shifted) - 0x4b400000;
  const F32::Int half = k >> 1;
  const F32::Reg first = reinterpret_cast<F32::Reg>((half + 127) << 23);
  const F32::Reg second = reinterpret_cast<F32::Reg>((k - half + 127) << 23);
  const F32::Reg result = p * first * second;
  const F32::Reg infinite = F32::broadcast(__builtin_inff()), zero = F32::broadcast(0.0f);
  return select(x > F32::broadcast(88.7228394f), infinite, select(x < low, zero, select(x == x, result, x)));
}

float exp_sum(float* x, float m, std::size_t n) noexcept {
  const F32::Reg vm = F32::broadcast(m);
  Block acc = splat(0.0f);
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    Block v = load_block(FromF32{x}, i);
    BITNET_UNROLL
    for (int r = 0; r < kRegs; ++r) {
      v.r[r] = exp_reg(v.r[r] - vm);
      acc.r[r] = acc.r[r] + v.r[r];
    }
    store_block(x + i, v);
  }
  if (i < n) {  // padded so that exp gives 0, the neutral element
    Block v = load_part(FromF32{x}, i, n, -__builtin_inff());
    BITNET_UNROLL
    for (int r = 0; r < kRegs; ++r) v.r[r] = exp_reg(v.r[r] - vm);
    store_part(x + i, v, n - i);
    v = load_part(FromF32{x}, i, n, 0.0f);
    BITNET_UNROLL
    for (int r = 0; r < kRegs; ++r) acc.r[r] = acc.r[r] + v.r[r];
  }
  return fold(acc, kPlus);
}

void silu_gate(const float* gate, const float* up, float* out, std::size_t n) noexcept {
  const F32::Reg one = F32::broadcast(1.0f);
  map2(
      gate, up, out,
      n, [&](F32::Reg g, F32::Reg u) __attribute__((always_inline)) { return g / (one + exp_reg(-g)) * u; });
}

}  // namespace
}  // namespace bitnet::kernels
