#pragma once
// Vocabulary of AVX-512 (F, BW, VL, DQ) with VNNI.
#include <immintrin.h>

#include "bitnet/simd/byte_dot.hpp"

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
  static BITNET_INLINE Reg load_quads(const float* p, std::int64_t stride) {
    const auto pair = [&](const float* q) __attribute__((always_inline)) {
      return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(q)), _mm_loadu_ps(q + stride), 1);
    };
    return _mm512_insertf32x8(_mm512_castps256_ps512(pair(p)), pair(p + 2 * stride), 1);
  }
  static BITNET_INLINE Reg broadcast(float x) { return _mm512_set1_ps(x); }
  static BITNET_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static BITNET_INLINE float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
  static BITNET_INLINE Reg load_f16(const std::uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static BITNET_INLINE void store_f16(std::uint16_t* p, Reg v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  static BITNET_INLINE UInt load_u16(const std::uint16_t* p) {
    return reinterpret_cast<UInt>(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
  }
};

/// A line of a T16 tile is one register.
struct I8 {
  static constexpr int kRows = 16;  // int32 lanes
  static constexpr int kGemmRows = 8,
                       kGemmRegs = 2;  // 16 sums of 32 registers, two tiles: base 3 wants the rest
  static constexpr bool kWideSums = true, kScaledCodes = true, kOneShift = false;
  typedef __m512i Bytes;
  // Of the element type of its additions: g++ 12 copies sums that change between types in every step.
  typedef std::int32_t Sum __attribute__((vector_size(64)));
  typedef Sum Acc;

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
  static BITNET_INLINE Sum zero_sum() { return Sum{}; }
  static BITNET_INLINE Acc zero_acc() { return Sum{}; }
  static BITNET_INLINE Sum add_products(Sum sum, Bytes codes, Bytes x) {
    return reinterpret_cast<Sum>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), codes, x));
  }
  /// Wraps as unsigned: the peak probe adds for longer than an int32 lasts.
  static BITNET_INLINE Acc widen(Acc acc, Sum sum) {
    return reinterpret_cast<Acc>(
        _mm512_add_epi32(reinterpret_cast<__m512i>(acc), reinterpret_cast<__m512i>(sum)));
  }
  /// A sum of codes scaled by 4^S, which it is a multiple of.
  template <int S>
  static BITNET_INLINE Acc unscale(Sum sum) {
    return sum >> (2 * S);
  }
  static BITNET_INLINE Acc load_acc(const std::int32_t* p) {
    return reinterpret_cast<Acc>(_mm512_loadu_si512(p));
  }
  static BITNET_INLINE void store(std::int32_t* p, Acc acc) {
    _mm512_storeu_si512(p, reinterpret_cast<__m512i>(acc));
  }
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

/// int8 attention's products (byte_dot.hpp).
struct ByteOps {
  static constexpr int kRegs = 1, kRows = 8, kBlocks = 2;  // 16 sums of 32 registers
  typedef __m512i Reg;
  static BITNET_INLINE Reg zero() { return _mm512_setzero_si512(); }
  static BITNET_INLINE Reg load(const void* p) { return _mm512_loadu_si512(p); }
  static BITNET_INLINE Reg flip(Reg v) { return _mm512_xor_si512(v, _mm512_set1_epi8(-128)); }
  static BITNET_INLINE Reg splat(std::int32_t four) { return _mm512_set1_epi32(four); }
  static BITNET_INLINE Reg dot(Reg sum, Reg u, Reg s) { return _mm512_dpbusd_epi32(sum, u, s); }
  static BITNET_INLINE void store(void* p, Reg v) { _mm512_storeu_si512(p, v); }
};
typedef UnsignedByteDot<ByteOps> ByteDot;

#if defined(__AVX512VBMI__)
/// The tables of Base3Lookup.
struct Base3Tables {
  std::uint8_t four[64];           // [digits d0 + 3·d1 + 9·d2 + 27·d3 < 64] → four codes, two bits each
  std::uint8_t escaped_four[64];   // [byte − 192] → the same for 64 … 80
  std::uint8_t escaped_fifth[64];  // [byte − 192] → d4 in bits 6 and 7

  constexpr Base3Tables() : four{}, escaped_four{}, escaped_fifth{} {
    for (int i = 0; i < 64; ++i) {
      four[i] = pack(i);
      escaped_four[i] = pack(64 + i / 3);
      escaped_fifth[i] = static_cast<std::uint8_t>(i % 3 << 6);
    }
  }
  static constexpr std::uint8_t pack(int digits) {
    return static_cast<std::uint8_t>(digits % 3 | digits / 3 % 3 << 2 | digits / 9 % 3 << 4 |
                                     digits / 27 % 3 << 6);
  }
};
alignas(64) constexpr Base3Tables kBase3Tables;

/// Bytes of five trits (quant's ternary_table.hpp) by table look-up. vpermb takes the low six bits of an
/// index, so that the top two, which hold the fifth digit below 192, need no masking.
struct Base3Lookup {
  __m512i four, escaped_four, escaped_fifth;
  BITNET_INLINE Base3Lookup()
      : four(_mm512_load_si512(kBase3Tables.four)),
        escaped_four(_mm512_load_si512(kBase3Tables.escaped_four)),
        escaped_fifth(_mm512_load_si512(kBase3Tables.escaped_fifth)) {}
  /// `codes` gets the first four codes of every byte, two bits each; bits 6 and 7 of `fifth` the last.
  BITNET_INLINE void decode(__m512i bytes, __m512i& codes, __m512i& fifth) const {
    const __mmask64 escaped = _mm512_cmpgt_epu8_mask(bytes, _mm512_set1_epi8(static_cast<char>(191)));
    codes = _mm512_permutexvar_epi8(bytes, four);
    codes = _mm512_mask_permutexvar_epi8(codes, escaped, bytes, escaped_four);
    fifth = _mm512_mask_permutexvar_epi8(bytes, escaped, bytes, escaped_fifth);
  }
};
#endif

}  // namespace
}  // namespace bitnet::simd
