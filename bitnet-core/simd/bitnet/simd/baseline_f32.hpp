#pragma once
// Floats of the processor's baseline, for scalar and sse41: no intrinsics, no fused multiply-add (the second
// class of docs/numerics.md). Four lanes, because every baseline has 128-bit registers.
#include "bitnet/simd/common.hpp"

namespace bitnet::simd {
namespace {

struct F32 {
  static constexpr int kLanes = 4;
  static constexpr int kGemmRows = 4, kGemmVectors = 2;  // 8 sums, 2 + 1 operands, 1 product of 16 registers
  typedef Quad Reg;
  typedef IntQuad Int;
  typedef UIntQuad UInt;

  static BITNET_INLINE Reg load(const float* p) { return *reinterpret_cast<const QuadMem*>(p); }
  static BITNET_INLINE void store(float* p, Reg v) { *reinterpret_cast<QuadMem*>(p) = v; }
  static BITNET_INLINE Reg load_quads(const float* p, std::int64_t) { return load(p); }
  static BITNET_INLINE Reg broadcast(float x) { return Reg{x, x, x, x}; }
  static BITNET_INLINE Reg fma(Reg a, Reg b, Reg c) { return a * b + c; }
  static BITNET_INLINE float fma1(float a, float b, float c) { return a * b + c; }
  static BITNET_INLINE Reg load_f16(const std::uint16_t* p) { return WidenF16::quad(p); }
  static BITNET_INLINE void store_f16(std::uint16_t* p, Reg v) { NarrowF16::store(p, v); }
  static BITNET_INLINE UInt load_u16(const std::uint16_t* p) { return widen_u16(p); }
};

}  // namespace
}  // namespace bitnet::simd
