#pragma once
// Vocabulary of the processor's baseline: GCC vector extensions of 128 bits, no intrinsics.
#include "bitnet/simd/baseline_f32.hpp"
#include "bitnet/simd/byte_dot.hpp"

namespace bitnet::simd {
namespace {

/// A line of a T16 tile is four pieces of 16 bytes; a sum is four int16 a row.
struct I8 {
  static constexpr int kRows = 4;
  static constexpr int kGemmRows = 2, kGemmRegs = 4;
  static constexpr bool kWideSums = false, kScaledCodes = false, kOneShift = false;
  // A product is at most 2·128 = 256: 127 of them stay below 2^15.
  static constexpr int kSumSteps = 127;
  typedef std::uint8_t Bytes __attribute__((vector_size(16)));
  typedef std::int8_t Signed __attribute__((vector_size(16)));
  typedef std::int16_t Sum __attribute__((vector_size(32)));
  typedef std::int32_t Pairs __attribute__((vector_size(32)));
  typedef IntQuad Acc;

  static BITNET_INLINE Bytes load(const std::uint8_t* p) {
    Bytes v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static BITNET_INLINE Bytes broadcast4(const std::int8_t* p) {
    std::int32_t four;
    __builtin_memcpy(&four, p, 4);
    return reinterpret_cast<Bytes>(IntQuad{four, four, four, four});
  }
  template <int S>
  static BITNET_INLINE Bytes field(Bytes v) {
    return reinterpret_cast<Bytes>((reinterpret_cast<UIntQuad>(v) >> (2 * S)) & 0x03030303u);
  }
  static BITNET_INLINE Sum zero_sum() { return Sum{}; }
  static BITNET_INLINE Sum add_products(Sum sum, Bytes codes, Bytes x) {
    return sum +
           __builtin_convertvector(codes, Sum) * __builtin_convertvector(reinterpret_cast<Signed>(x), Sum);
  }
  static BITNET_INLINE Acc widen(Acc acc, Sum sum) {
    const Pairs two = reinterpret_cast<Pairs>(sum);
    const Pairs pairs = ((two << 16) >> 16) + (two >> 16);
    return acc + __builtin_shufflevector(pairs, pairs, 0, 2, 4, 6) +
           __builtin_shufflevector(pairs, pairs, 1, 3, 5, 7);
  }
  static BITNET_INLINE Acc load_acc(const std::int32_t* p) {
    Acc v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static BITNET_INLINE void store(std::int32_t* p, Acc acc) { __builtin_memcpy(p, &acc, sizeof acc); }
};

/// int8 × int8 products: a line of 16 rows × 4 columns is four pieces of 16 bytes, a sum two int32 a row.
struct S8 {
  static constexpr int kRows = 4;
  static constexpr int kGemmRows = 2, kGemmRegs = 4;
  static constexpr int kBias = 0;
  typedef std::int8_t Bytes __attribute__((vector_size(16)));
  typedef std::int16_t Products __attribute__((vector_size(32)));
  typedef std::int32_t Sum __attribute__((vector_size(32)));
  typedef Products X;

  static BITNET_INLINE Sum zero() { return Sum{}; }
  static BITNET_INLINE Bytes load_w(const std::int8_t* p) {
    Bytes v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static BITNET_INLINE X load_x(const std::int8_t* p) {
    return __builtin_convertvector(reinterpret_cast<Bytes>(I8::broadcast4(p)), Products);
  }
  static BITNET_INLINE Sum add(Sum sum, Bytes w, X x) {  // a product is at most 127·128 < 2^15
    const Sum two = reinterpret_cast<Sum>(__builtin_convertvector(w, Products) * x);
    return sum + ((two << 16) >> 16) + (two >> 16);
  }
  static BITNET_INLINE void store(std::int32_t* p, Sum sum) {
    const IntQuad all =
        __builtin_shufflevector(sum, sum, 0, 2, 4, 6) + __builtin_shufflevector(sum, sum, 1, 3, 5, 7);
    __builtin_memcpy(p, &all, sizeof all);
  }
};

/// int8 attention's products (byte_dot.hpp).
typedef WideByteDot<PlainByteOps> ByteDot;

}  // namespace
}  // namespace bitnet::simd
