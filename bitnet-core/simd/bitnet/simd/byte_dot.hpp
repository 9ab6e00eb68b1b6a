#pragma once
// Products of bytes for int8 attention, on every instruction set: a line is 64 bytes, four for each of 16
// int32 sums, and meets four bytes of a row. Included after an instruction set's vocabulary. Bounds: a sum
// stays below 2^31 for 2^31 / (4 · 255 · 128) = 16448 lines.
#include "bitnet/simd/common.hpp"

#if defined(__SSE4_1__)
#include <immintrin.h>
#endif

namespace bitnet::simd {
namespace {

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)

/// VNNI multiplies unsigned by signed bytes. Keys are made unsigned by adding 128 (the sign bit flipped), so
/// a score is 128 · Σ q8 too large; weights are unsigned already.
struct ByteDot {
  static constexpr bool kKeysOffset = true;
#if defined(__AVX512VNNI__)
  static constexpr int kRegs = 1, kRows = 8, kBlocks = 2;  // 16 sums of 32 registers
  typedef __m512i Reg;
  static BITNET_INLINE Reg zero() { return _mm512_setzero_si512(); }
  static BITNET_INLINE Reg load(const void* p) { return _mm512_loadu_si512(p); }
  static BITNET_INLINE Reg flip(Reg v) { return _mm512_xor_si512(v, _mm512_set1_epi8(-128)); }
  static BITNET_INLINE Reg splat(std::int32_t four) { return _mm512_set1_epi32(four); }
  static BITNET_INLINE Reg dot(Reg sum, Reg u, Reg s) { return _mm512_dpbusd_epi32(sum, u, s); }
  static BITNET_INLINE void store(void* p, Reg v) { _mm512_storeu_si512(p, v); }
#else
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
#endif
  struct Sums {
    Reg r[kRegs];
  };
  typedef Sums Line;
  typedef Reg Four;

  static BITNET_INLINE Sums zero_sums() {
    Sums s;
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) s.r[i] = zero();
    return s;
  }
  static BITNET_INLINE Line load_values(const std::int8_t* p) {
    Line v;
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) v.r[i] = load(p + i * (64 / kRegs));
    return v;
  }
  static BITNET_INLINE Line load_keys(const std::int8_t* p) {
    Line v = load_values(p);
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) v.r[i] = flip(v.r[i]);
    return v;
  }
  static BITNET_INLINE Four load_four(const void* p) {
    std::int32_t four;
    __builtin_memcpy(&four, p, 4);
    return splat(four);
  }
  static BITNET_INLINE Four load_query(const std::int8_t* p) { return load_four(p); }
  static BITNET_INLINE Four load_weights(const std::uint8_t* p) { return load_four(p); }
  static BITNET_INLINE void add_keys(Sums& sums, const Line& line, Four query) {
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) sums.r[i] = dot(sums.r[i], line.r[i], query);
  }
  static BITNET_INLINE void add_values(Sums& sums, const Line& line, Four weights) {
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) sums.r[i] = dot(sums.r[i], weights, line.r[i]);
  }
  static BITNET_INLINE void store_sums(std::int32_t* p, const Sums& sums) {
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) store(p + i * (16 / kRegs), sums.r[i]);
  }
};

#else

/// Without a dot product of bytes both are widened to int16. A register of `Pairs` holds two sums a column,
/// added at the end.
struct ByteDot {
  static constexpr bool kKeysOffset = false;
#if defined(__AVX2__)
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
#elif defined(__SSE4_1__)
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
#else
  static constexpr int kRegs = 8, kRows = 1, kBlocks = 1;
  typedef std::int32_t Pairs __attribute__((vector_size(32)));  // four partial sums of each of two columns
  typedef std::int16_t Wide __attribute__((vector_size(16)));
  typedef std::int8_t Eight __attribute__((vector_size(8)));
  static BITNET_INLINE Pairs zero() { return Pairs{}; }
  static BITNET_INLINE Wide widen(const std::int8_t* p) {
    Eight v;
    __builtin_memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, Wide);
  }
  static BITNET_INLINE Wide splat(const std::int16_t (&v)[4]) {
    return Wide{v[0], v[1], v[2], v[3], v[0], v[1], v[2], v[3]};
  }
  static BITNET_INLINE Pairs dot(Pairs sum, Wide a, Wide b) {
    return sum + __builtin_convertvector(a, Pairs) * __builtin_convertvector(b, Pairs);
  }
  static BITNET_INLINE void store_two(std::int32_t* p, Pairs a, Pairs b) {
    p[0] = a[0] + a[1] + a[2] + a[3];
    p[1] = a[4] + a[5] + a[6] + a[7];
    p[2] = b[0] + b[1] + b[2] + b[3];
    p[3] = b[4] + b[5] + b[6] + b[7];
  }
#endif
  struct Sums {
    Pairs r[kRegs];
  };
  struct Line {
    Wide r[kRegs];
  };
  typedef Wide Four;

  static BITNET_INLINE Sums zero_sums() {
    Sums s;
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) s.r[i] = zero();
    return s;
  }
  static BITNET_INLINE Line load_values(const std::int8_t* p) {
    Line v;
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) v.r[i] = widen(p + i * (64 / kRegs));
    return v;
  }
  static BITNET_INLINE Line load_keys(const std::int8_t* p) { return load_values(p); }
  static BITNET_INLINE Four load_query(const std::int8_t* p) {
    const std::int16_t four[4] = {p[0], p[1], p[2], p[3]};
    return splat(four);
  }
  static BITNET_INLINE Four load_weights(const std::uint8_t* p) {
    const std::int16_t four[4] = {p[0], p[1], p[2], p[3]};
    return splat(four);
  }
  static BITNET_INLINE void add_keys(Sums& sums, const Line& line, Four four) {
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) sums.r[i] = dot(sums.r[i], line.r[i], four);
  }
  static BITNET_INLINE void add_values(Sums& sums, const Line& line, Four four) {
    add_keys(sums, line, four);
  }
  static BITNET_INLINE void store_sums(std::int32_t* p, const Sums& sums) {
    BITNET_UNROLL
    for (int i = 0; i < kRegs; i += 2) store_two(p + i * (16 / kRegs), sums.r[i], sums.r[i + 1]);
  }
};

#endif

}  // namespace
}  // namespace bitnet::simd
