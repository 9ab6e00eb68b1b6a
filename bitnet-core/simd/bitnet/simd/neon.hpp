#pragma once
// Vocabulary of NEON (ARMv8.0).
#include <arm_neon.h>

#include "bitnet/simd/byte_dot.hpp"

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
  static BITNET_INLINE Reg load_quads(const float* p, std::int64_t) { return load(p); }
  static BITNET_INLINE Reg broadcast(float x) { return reinterpret_cast<Reg>(vdupq_n_f32(x)); }
  static BITNET_INLINE Reg fma(Reg a, Reg b, Reg c) {
    return reinterpret_cast<Reg>(vfmaq_f32(reinterpret_cast<float32x4_t>(c), reinterpret_cast<float32x4_t>(a),
                                           reinterpret_cast<float32x4_t>(b)));
  }
  static BITNET_INLINE float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static BITNET_INLINE Reg load_f16(const std::uint16_t* p) {
    return reinterpret_cast<Reg>(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))));
  }
  static BITNET_INLINE void store_f16(std::uint16_t* p, Reg v) {
    vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(reinterpret_cast<float32x4_t>(v))));
  }
  static BITNET_INLINE UInt load_u16(const std::uint16_t* p) {
    return reinterpret_cast<UInt>(vmovl_u16(vld1_u16(p)));
  }
};

/// A line of a T16 tile is four registers. With the dot-product instructions a sum is int32 a row; without,
/// it is four int16 a row, rows 0 and 1 in `low`, 2 and 3 in `high`.
struct I8 {
  static constexpr int kRows = 4;  // int32 lanes
  typedef uint8x16_t Bytes;
  typedef int32x4_t Acc;

  static BITNET_INLINE Bytes load(const std::uint8_t* p) { return vld1q_u8(p); }
  static BITNET_INLINE Bytes broadcast4(const std::int8_t* p) {
    std::int32_t four;
    __builtin_memcpy(&four, p, 4);
    return vreinterpretq_u8_s32(vdupq_n_s32(four));
  }
  template <int S>
  static BITNET_INLINE Bytes field(Bytes v) {
    if constexpr (S == 0)
      return vandq_u8(v, vdupq_n_u8(3));
    else if constexpr (S == 3)
      return vshrq_n_u8(v, 6);
    else
      return vandq_u8(vshrq_n_u8(v, 2 * S), vdupq_n_u8(3));
  }
  static BITNET_INLINE Acc zero_acc() { return vdupq_n_s32(0); }
  static BITNET_INLINE Acc load_acc(const std::int32_t* p) { return vld1q_s32(p); }
  static BITNET_INLINE void store(std::int32_t* p, Acc acc) { vst1q_s32(p, acc); }
  static constexpr bool kScaledCodes = false, kOneShift = false;  // 2·64 is no int8
#if defined(__ARM_FEATURE_DOTPROD)
  static constexpr int kGemmRows = 4, kGemmRegs = 4;  // 16 sums of 32 registers
  static constexpr bool kWideSums = true;
  typedef int32x4_t Sum;
  static BITNET_INLINE Sum zero_sum() { return vdupq_n_s32(0); }
  static BITNET_INLINE Sum add_products(Sum sum, Bytes codes, Bytes x) {
    return vdotq_s32(sum, vreinterpretq_s8_u8(codes), vreinterpretq_s8_u8(x));
  }
  static BITNET_INLINE Acc widen(Acc acc, Sum sum) { return vaddq_s32(acc, sum); }
#else
  static constexpr int kGemmRows = 2, kGemmRegs = 4;  // 16 half sums of 32 registers
  static constexpr bool kWideSums = false;
  // A product is at most 2·128 = 256: 127 of them stay below 2^15.
  static constexpr int kSumSteps = 127;
  struct Sum {
    int16x8_t low, high;
  };
  static BITNET_INLINE Sum zero_sum() { return {vdupq_n_s16(0), vdupq_n_s16(0)}; }
  static BITNET_INLINE Sum add_products(Sum sum, Bytes codes, Bytes x) {
    const int8x16_t c = vreinterpretq_s8_u8(codes), v = vreinterpretq_s8_u8(x);
    return {vmlal_s8(sum.low, vget_low_s8(c), vget_low_s8(v)), vmlal_high_s8(sum.high, c, v)};
  }
  static BITNET_INLINE Acc widen(Acc acc, Sum sum) {
    return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(sum.low), vpaddlq_s16(sum.high)));
  }
#endif
};

/// int8 × int8 products for |w| ≤ 127: a line of 16 rows × 4 columns is four registers, a sum int32 a row.
struct S8 {
  static constexpr int kRows = 4;
  static constexpr int kBias = 0;
  typedef int8x16_t Bytes;
  typedef int32x4_t Sum;
  typedef int8x16_t X;

  static BITNET_INLINE Sum zero() { return vdupq_n_s32(0); }
  static BITNET_INLINE Bytes load_w(const std::int8_t* p) { return vld1q_s8(p); }
  static BITNET_INLINE X load_x(const std::int8_t* p) { return vreinterpretq_s8_u8(I8::broadcast4(p)); }
  static BITNET_INLINE void store(std::int32_t* p, Sum sum) { vst1q_s32(p, sum); }
#if defined(__ARM_FEATURE_DOTPROD)
  static constexpr int kGemmRows = 6, kGemmRegs = 4;  // 24 sums, 4 of w, 1 of x of 32 registers
  static BITNET_INLINE Sum add(Sum sum, Bytes w, X x) { return vdotq_s32(sum, w, x); }
#else
  static constexpr int kGemmRows = 4, kGemmRegs = 4;     // 16 sums, 4 of w, 1 of x, products
  static BITNET_INLINE Sum add(Sum sum, Bytes w, X x) {  // two products are at most 2·127·128 < 2^15
    const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
    return vpadalq_s16(sum, vpaddq_s16(low, high));
  }
#endif
};

/// int8 attention's products (byte_dot.hpp).
typedef WideByteDot<PlainByteOps> ByteDot;

}  // namespace
}  // namespace bitnet::simd
