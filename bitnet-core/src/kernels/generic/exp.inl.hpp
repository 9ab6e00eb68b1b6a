#pragma once
// The project's exponential and what rests on it, written once against simd::F32. No libm: the same bits
// everywhere. Included by f32_table.cpp only.
#include "kernels/generic/exp_reg.inl.hpp"
#include "kernels/generic/rows.inl.hpp"

namespace bitnet::kernels {
namespace {

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
