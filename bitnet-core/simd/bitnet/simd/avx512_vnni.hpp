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

}  // namespace
}  // namespace bitnet::simd
