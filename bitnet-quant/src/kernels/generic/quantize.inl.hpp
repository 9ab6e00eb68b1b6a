#pragma once
// The inner loop of the absmax quantiser, written once against simd::F32. Included by ternary_table.cpp only.
namespace bitnet::quant::kernels {
namespace {

using simd::F32;

/// x·a rounded half to even and clamped, as int32 lanes; NaN → 0.
BITNET_INLINE F32::Int quantize_reg(F32::Reg x, F32::Reg a) {
  const F32::Reg magic = F32::broadcast(0x1.8p23f);  // adding it leaves the integer in the low bits
  const F32::Reg v = x * a;
  const F32::Int q = reinterpret_cast<F32::Int>(v + magic) - 0x4b400000;
  const F32::Int number = v == v, low = q<-128, high = q> 127;
  return ((q & ~low & ~high) | (low & -128) | (high & 127)) & number;
}

std::int32_t quantize(const float* x, float a, std::int8_t* q, std::size_t n) noexcept {
  typedef std::int8_t Narrow __attribute__((vector_size(F32::kLanes)));
  const F32::Reg va = F32::broadcast(a);
  F32::Int sums = {};
  std::size_t i = 0;
  for (; i + F32::kLanes <= n; i += F32::kLanes) {
    const F32::Int v = quantize_reg(F32::load(x + i), va);
    const Narrow bytes = __builtin_convertvector(v, Narrow);
    __builtin_memcpy(q + i, &bytes, sizeof bytes);
    sums += v;
  }
  if (i < n) {
    float rest[F32::kLanes] = {};
    for (std::size_t j = i; j < n; ++j) rest[j - i] = x[j];
    const F32::Int v = quantize_reg(F32::load(rest), va);
    for (std::size_t j = i; j < n; ++j) q[j] = static_cast<std::int8_t>(v[j - i]);
    sums += v;
  }
  std::int32_t sum = 0;
  for (int lane = 0; lane < F32::kLanes; ++lane) sum += sums[lane];
  return sum;
}

}  // namespace
}  // namespace bitnet::quant::kernels
