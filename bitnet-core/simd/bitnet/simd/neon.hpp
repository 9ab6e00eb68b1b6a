#pragma once
// Vocabulary of NEON (ARMv8.0).
#include <arm_neon.h>

#include "bitnet/simd/common.hpp"

namespace bitnet::simd {
namespace {

struct F32 {
  static constexpr int kLanes = 4;
  static constexpr int kGemmRows = 8, kGemmVectors = 2;  // 16 sums of 32 registers
  typedef Quad Reg;
  typedef IntQuad Int;
  typedef UIntQuad UInt;

  static BITNET_INLINE Reg load(const float* p) { return *reinterpret_cast<const QuadMem*>(p); }
  static BITNET_INLINE void store(float* p, Reg v) { *reinterpret_cast<QuadMem*>(p) = v; }
  static BITNET_INLINE Reg broadcast(float x) { return reinterpret_cast<Reg>(vdupq_n_f32(x)); }
  static BITNET_INLINE Reg fma(Reg a, Reg b, Reg c) {
    return reinterpret_cast<Reg>(vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a),
                                           reinterpret_cast<float32x4_t>(b)));
  }
  static BITNET_INLINE float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static BITNET_INLINE Reg load_f16(const std::uint16_t* p) {
    return reinterpret_cast<Reg>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))));
  }
  static BITNET_INLINE UInt load_u16(const std::uint16_t* p) {
    return reinterpret_cast<UInt>(vmovl_u16(vld1_u16(p)));
  }
};

}  // namespace
}  // namespace bitnet::simd
