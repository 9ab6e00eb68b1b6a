#pragma once
// The project's exponential of one register. No libm: the same bits everywhere. Included by the ISA tables
// only; what rests on it is in exp.inl.hpp and attention.inl.hpp.
#include "kernels/generic/block.inl.hpp"

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

}  // namespace
}  // namespace bitnet::kernels
