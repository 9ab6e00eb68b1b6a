#pragma once
// Vocabulary of AVX-512 (F, BW, VL, DQ) with VNNI.
#include <immintrin.h>

#include "bitnet/simd/common.hpp"

namespace bitnet::simd {
namespace {

struct F32 {
  static constexpr int kLanes = 16;
  static constexpr int kGemmRows = 8, kGemmVectors = 2;  // 16 sums of 32 registers
  typedef float Reg __attribute__((vector_size(64)));
  typedef float Mem __attribute__((vector_size(64), aligned(4), may_alias));
  typedef std::int32_t Int __attribute__((vector_size(64)));
  typedef std::uint32_t UInt __attribute__((vector_size(64)));

  static BITNET_INLINE Reg load(const float* p) { return *reinterpret_cast<const Mem*>(p); }
  static BITNET_INLINE void store(float* p, Reg v) { *reinterpret_cast<Mem*>(p) = v; }
  static BITNET_INLINE Reg broadcast(float x) { return _mm512_set1_ps(x); }
  static BITNET_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static BITNET_INLINE float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static BITNET_INLINE Reg load_f16(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static BITNET_INLINE UInt load_u16(const std::uint16_t* p) {
    return reinterpret_cast<UInt>(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
};

/// A line of a T16 tile is one register.
struct I8 {
  static constexpr int kRows = 16;                    // int32 lanes
  static constexpr int kGemmRows = 8, kGemmRegs = 2;  // 16 sums of 32 registers, two tiles
  static constexpr bool kWideSums = true, kScaledCodes = true;
  typedef __m512i Bytes;
  typedef __m512i Sum;
  typedef __m512i Acc;

  static BITNET_INLINE Bytes load(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
  static BITNET_INLINE Bytes broadcast4(const std::int8_t* p) {
    std::int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
  }
  template <int S>
  static BITNET_INLINE Bytes field(Bytes v) {
    return _mm512_and_si512(_mm512_srli_epi32(v, 2 * S), _mm512_set1_epi8(3));
  }
  template <int S>
  static BITNET_INLINE Bytes scaled_field(Bytes v) {
    return _mm512_and_si512(v, _mm512_set1_epi8(static_cast<char>(3 << (2 * S))));
  }
  static BITNET_INLINE Sum zero_sum() { return _mm512_setzero_si512(); }
  static BITNET_INLINE Acc zero_acc() { return _mm512_setzero_si512(); }
  static BITNET_INLINE Sum add_products(Sum sum, Bytes codes, Bytes x) {
    return _mm512_dpbusd_epi32(sum, codes, x);
  }
  static BITNET_INLINE Acc widen(Acc acc, Sum sum) { return _mm512_add_epi32(acc, sum); }
  static BITNET_INLINE Acc unscale(Sum s0, Sum s1, Sum s2, Sum s3) {
    return _mm512_add_epi32(_mm512_add_epi32(s0, _mm512_srai_epi32(s1, 2)),
                            _mm512_add_epi32(_mm512_srai_epi32(s2, 4), _mm512_srai_epi32(s3, 6)));
  }
  static BITNET_INLINE void store(std::int32_t* p, Acc acc) { _mm512_storeu_si512(p, acc); }
};

/// int8 × int8 products: a line of 16 rows × 4 columns is one register, a sum int32 a row.
struct S8 {
  static constexpr int kRows = 16;
  static constexpr int kGemmRows = 12, kGemmRegs = 2;  // 24 sums, 2 of w, 1 of x of 32 registers
  static constexpr int kBias = 128;  // sums are Σ (w + kBias)·x: the instruction wants u8 · s8
  typedef __m512i Bytes;
  typedef __m512i Sum;
  typedef __m512i X;

  static BITNET_INLINE Sum zero() { return _mm512_setzero_si512(); }
  static BITNET_INLINE Bytes load_w(const std::int8_t* p) {
    return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
  }
  static BITNET_INLINE X load_x(const std::int8_t* p) { return I8::broadcast4(p); }
  static BITNET_INLINE Sum add(Sum sum, Bytes w, X x) { return _mm512_dpbusd_epi32(sum, w, x); }
  static BITNET_INLINE void store(std::int32_t* p, Sum sum) { _mm512_storeu_si512(p, sum); }
};

}  // namespace
}  // namespace bitnet::simd
