#pragma once
// Vocabulary of AVX2 with FMA and F16C.
#include <immintrin.h>

#include "bitnet/simd/byte_dot.hpp"

namespace bitnet::simd {
namespace {

struct F32 {
  static constexpr int kLanes = 8;
  static constexpr int kGemmRows = 4, kGemmVectors = 3;  // 12 sums, 3 + 1 operands: all 16 registers
  typedef float Reg __attribute__((vector_size(32)));
  typedef float Mem __attribute__((vector_size(32), aligned(4), may_alias));
  typedef std::int32_t Int __attribute__((vector_size(32)));
  typedef std::uint32_t UInt __attribute__((vector_size(32)));

  static BITNET_INLINE Reg load(const float* p) { return *reinterpret_cast<const Mem*>(p); }
  static BITNET_INLINE void store(float* p, Reg v) { *reinterpret_cast<Mem*>(p) = v; }
  static BITNET_INLINE Reg load_quads(const float* p, std::int64_t stride) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
  }
  static BITNET_INLINE Reg broadcast(float x) { return _mm256_set1_ps(x); }
  static BITNET_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static BITNET_INLINE float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static BITNET_INLINE Reg load_f16(const std::uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static BITNET_INLINE void store_f16(std::uint16_t* p, Reg v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static BITNET_INLINE UInt load_u16(const std::uint16_t* p) {
    return reinterpret_cast<UInt>(
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
};

/// A line of a T16 tile is two registers. With AVX-VNNI a sum is int32 a row; without, it is two int16 a row.
struct I8 {
  static constexpr int kRows = 8;  // int32 lanes
  typedef __m256i Bytes;
  typedef std::int32_t Acc __attribute__((vector_size(32)));
  // Of the element type of its additions: g++ 12 copies sums that change between types in every step.
#if defined(__AVXVNNI__)
  typedef Acc Sum;
  static constexpr int kGemmRows = 6, kGemmRegs = 2;  // 12 sums, 2 codes, 1 of x: 15 of 16 registers
  static constexpr bool kWideSums = true, kScaledCodes = true, kOneShift = false;
#else
  typedef std::int16_t Sum __attribute__((vector_size(32)));
  static constexpr int kGemmRows = 4, kGemmRegs = 2;  // 8 sums, 2 codes, 1 of x, products
  static constexpr bool kWideSums = false, kScaledCodes = false, kOneShift = true;
  // A pair of products is at most 2·2·128 = 512: 63 of them stay below 2^15.
  static constexpr int kSumSteps = 63;
#endif

  static BITNET_INLINE Bytes load(const std::uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static BITNET_INLINE Bytes broadcast4(const std::int8_t* p) {
    std::int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
  }
  template <int S>
  static BITNET_INLINE Bytes field(Bytes v) {
    return _mm256_and_si256(_mm256_srli_epi32(v, 2 * S), _mm256_set1_epi8(3));
  }
  /// Bit pairs 2 and 3 of every byte in the place of 0 and 1; above them anything.
  static BITNET_INLINE Bytes upper_fields(Bytes v) { return _mm256_srli_epi16(v, 4); }
  template <int S>
  static BITNET_INLINE Bytes scaled_field(Bytes v) {
    return _mm256_and_si256(v, _mm256_set1_epi8(static_cast<char>(3 << (2 * S))));
  }
  static BITNET_INLINE Sum zero_sum() { return Sum{}; }
  static BITNET_INLINE Acc zero_acc() { return Acc{}; }
#if defined(__AVXVNNI__)
  static BITNET_INLINE Sum add_products(Sum sum, Bytes codes, Bytes x) {
    return reinterpret_cast<Sum>(_mm256_dpbusd_avx_epi32(reinterpret_cast<__m256i>(sum), codes, x));
  }
  /// Wraps as unsigned: the peak probe adds for longer than an int32 lasts.
  static BITNET_INLINE Acc widen(Acc acc, Sum sum) {
    return reinterpret_cast<Acc>(
        _mm256_add_epi32(reinterpret_cast<__m256i>(acc), reinterpret_cast<__m256i>(sum)));
  }
#else
  static BITNET_INLINE Sum add_products(Sum sum, Bytes codes, Bytes x) {
    sum += reinterpret_cast<Sum>(_mm256_maddubs_epi16(codes, x));
    // Keeps g++ from adding a line's products in another order, with more in flight than fit.
    __asm__("" : "+x"(sum));
    return sum;
  }
  static BITNET_INLINE Acc widen(Acc acc, Sum sum) {
    const __m256i wide = _mm256_madd_epi16(reinterpret_cast<__m256i>(sum), _mm256_set1_epi16(1));
    return reinterpret_cast<Acc>(_mm256_add_epi32(reinterpret_cast<__m256i>(acc), wide));
  }
#endif
  /// A sum of codes scaled by 4^S, which it is a multiple of.
  template <int S>
  static BITNET_INLINE Acc unscale(Sum sum) {
    return reinterpret_cast<Acc>(_mm256_srai_epi32(reinterpret_cast<__m256i>(sum), 2 * S));
  }
  static BITNET_INLINE Acc load_acc(const std::int32_t* p) {
    return reinterpret_cast<Acc>(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static BITNET_INLINE void store(std::int32_t* p, Acc acc) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(acc));
  }
};

/// int8 × int8 products for |w| ≤ 127: a line of 16 rows × 4 columns is two registers, a sum int32 a row.
struct S8 {
  static constexpr int kRows = 8;
  typedef __m256i Bytes;
  typedef __m256i Sum;

  static BITNET_INLINE Sum zero() { return _mm256_setzero_si256(); }
  static BITNET_INLINE void store(std::int32_t* p, Sum sum) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), sum);
  }
#if defined(__AVXVNNI__)
  static constexpr int kGemmRows = 6, kGemmRegs = 2;  // 12 sums, 2 of w, 1 of x: 15 of 16 registers
  static constexpr int kBias = 128;  // sums are Σ (w + kBias)·x: the instruction wants u8 · s8
  typedef __m256i X;
  static BITNET_INLINE Bytes load_w(const std::int8_t* p) {
    return _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
                            _mm256_set1_epi8(static_cast<char>(0x80)));
  }
  static BITNET_INLINE X load_x(const std::int8_t* p) { return I8::broadcast4(p); }
  static BITNET_INLINE Sum add(Sum sum, Bytes w, X x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
#else
  static constexpr int kGemmRows = 4, kGemmRegs = 2;  // 8 sums, 2 of w, 2 of x, 1 of ones, products
  static constexpr int kBias = 0;
  struct X {
    __m256i value, magnitude;  // magnitudes are unsigned: |−128| = 128
  };
  static BITNET_INLINE Bytes load_w(const std::int8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static BITNET_INLINE X load_x(const std::int8_t* p) {
    const __m256i v = I8::broadcast4(p);
    return {v, _mm256_abs_epi8(v)};
  }
  /// |x| · (w with x's sign): −w exists because |w| ≤ 127, and a pair is at most 2·128·127 < 2^15.
  static BITNET_INLINE Sum add(Sum sum, Bytes w, X x) {
    const __m256i pairs = _mm256_maddubs_epi16(x.magnitude, _mm256_sign_epi8(w, x.value));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  }
#endif
};

/// int8 attention's products (byte_dot.hpp).
struct ByteOps {
#if defined(__AVXVNNI__)
  static constexpr int kRegs = 2, kRows = 6, kBlocks = 1;  // 12 sums, 2 of a line, 1 of a row
  typedef __m256i Reg;
  static BITNET_INLINE Reg zero() { return _mm256_setzero_si256(); }
  static BITNET_INLINE Reg load(const void* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static BITNET_INLINE Reg flip(Reg v) { return _mm256_xor_si256(v, _mm256_set1_epi8(-128)); }
  static BITNET_INLINE Reg splat(std::int32_t four) { return _mm256_set1_epi32(four); }
  static BITNET_INLINE Reg dot(Reg sum, Reg u, Reg s) { return _mm256_dpbusd_avx_epi32(sum, u, s); }
  static BITNET_INLINE void store(void* p, Reg v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
#else
  static constexpr int kRegs = 4, kRows = 2, kBlocks = 1;  // 8 sums, 4 of a line, 1 of a row
  typedef __m256i Pairs;
  typedef __m256i Wide;
  static BITNET_INLINE Pairs zero() { return _mm256_setzero_si256(); }
  static BITNET_INLINE Wide widen(const std::int8_t* p) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static BITNET_INLINE Wide splat(const std::int16_t (&v)[4]) {
    long long four;
    __builtin_memcpy(&four, v, 8);
    return _mm256_set1_epi64x(four);
  }
  static BITNET_INLINE Pairs dot(Pairs sum, Wide a, Wide b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
  }
  /// Sums of columns 4·i … 4·i + 8 of registers i and i + 1.
  static BITNET_INLINE void store_two(std::int32_t* p, Pairs a, Pairs b) {
    const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8);  // 0, 2, 1, 3
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), sums);
  }
#endif
};
#if defined(__AVXVNNI__)
typedef UnsignedByteDot<ByteOps> ByteDot;
#else
typedef WideByteDot<ByteOps> ByteDot;
#endif

}  // namespace
}  // namespace bitnet::simd
