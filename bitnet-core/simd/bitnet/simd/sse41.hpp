#pragma once
// Vocabulary of SSE4.1. Its floats are the baseline's.
#include <immintrin.h>

#include "bitnet/simd/baseline_f32.hpp"
#include "bitnet/simd/byte_dot.hpp"

namespace bitnet::simd {
namespace {

/// A line of a T16 tile is four registers; a sum is two int16 a row.
struct I8 {
  static constexpr int kRows = 4;                     // int32 lanes
  static constexpr int kGemmRows = 2, kGemmRegs = 4;  // 8 sums, 4 codes of 16 registers
  static constexpr bool kWideSums = false, kScaledCodes = false, kOneShift = false;
  // A pair of products is at most 2·2·128 = 512: 63 of them stay below 2^15.
  static constexpr int kSumSteps = 63;
  typedef __m128i Bytes;
  // Of the element type of its additions: g++ 12 copies sums that change between types in every step.
  typedef std::int16_t Sum __attribute__((vector_size(16)));
  typedef IntQuad Acc;

  static BITNET_INLINE Bytes load(const std::uint8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static BITNET_INLINE Bytes broadcast4(const std::int8_t* p) {
    std::int32_t four;
    __builtin_memcpy(&four, p, 4);
    return _mm_set1_epi32(four);
  }
  template <int S>
  static BITNET_INLINE Bytes field(Bytes v) {
    return _mm_and_si128(_mm_srli_epi32(v, 2 * S), _mm_set1_epi8(3));
  }
  static BITNET_INLINE Sum zero_sum() { return Sum{}; }
  static BITNET_INLINE Sum add_products(Sum sum, Bytes codes, Bytes x) {
    sum += reinterpret_cast<Sum>(_mm_maddubs_epi16(codes, x));
    // Keeps g++ from adding a line's products in another order, with more in flight than fit.
    __asm__("" : "+x"(sum));
    return sum;
  }
  static BITNET_INLINE Acc widen(Acc acc, Sum sum) {
    return acc + reinterpret_cast<Acc>(_mm_madd_epi16(reinterpret_cast<__m128i>(sum), _mm_set1_epi16(1)));
  }
  static BITNET_INLINE Acc load_acc(const std::int32_t* p) {
    return reinterpret_cast<Acc>(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static BITNET_INLINE void store(std::int32_t* p, Acc acc) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), reinterpret_cast<__m128i>(acc));
  }
};

/// int8 × int8 products for |w| ≤ 127: a line of 16 rows × 4 columns is four registers, a sum int32 a row.
struct S8 {
  static constexpr int kRows = 4;
  static constexpr int kGemmRows = 2, kGemmRegs = 4;  // 8 sums, 4 of w, 2 of x, 1 of ones, products
  static constexpr int kBias = 0;
  typedef __m128i Bytes;
  typedef __m128i Sum;
  struct X {
    __m128i value, magnitude;  // magnitudes are unsigned: |−128| = 128
  };

  static BITNET_INLINE Sum zero() { return _mm_setzero_si128(); }
  static BITNET_INLINE Bytes load_w(const std::int8_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static BITNET_INLINE X load_x(const std::int8_t* p) {
    const __m128i v = I8::broadcast4(p);
    return {v, _mm_abs_epi8(v)};
  }
  /// |x| · (w with x's sign): −w exists because |w| ≤ 127, and a pair is at most 2·128·127 < 2^15.
  static BITNET_INLINE Sum add(Sum sum, Bytes w, X x) {
    const __m128i pairs = _mm_maddubs_epi16(x.magnitude, _mm_sign_epi8(w, x.value));
    return _mm_add_epi32(sum, _mm_madd_epi16(pairs, _mm_set1_epi16(1)));
  }
  static BITNET_INLINE void store(std::int32_t* p, Sum sum) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), sum);
  }
};

/// int8 attention's products (byte_dot.hpp).
struct ByteOps {
  static constexpr int kRegs = 8, kRows = 1, kBlocks = 1;
  typedef __m128i Pairs;
  typedef __m128i Wide;
  static BITNET_INLINE Pairs zero() { return _mm_setzero_si128(); }
  static BITNET_INLINE Wide widen(const std::int8_t* p) {
    return _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static BITNET_INLINE Wide splat(const std::int16_t (&v)[4]) {
    long long four;
    __builtin_memcpy(&four, v, 8);
    return _mm_set1_epi64x(four);
  }
  static BITNET_INLINE Pairs dot(Pairs sum, Wide a, Wide b) {
    return _mm_add_epi32(sum, _mm_madd_epi16(a, b));
  }
  static BITNET_INLINE void store_two(std::int32_t* p, Pairs a, Pairs b) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_hadd_epi32(a, b));
  }
};
typedef WideByteDot<ByteOps> ByteDot;

}  // namespace
}  // namespace bitnet::simd
