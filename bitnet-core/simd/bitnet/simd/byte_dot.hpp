#pragma once
// Products of bytes for int8 attention: a line is 64 bytes, four for each of 16 int32 sums, and meets four
// bytes of a row. Two forms, of which each vocabulary instantiates one with its own registers as `ByteDot`.
// Bounds: a sum stays below 2^31 for 2^31 / (4 · 255 · 128) = 16448 lines.
#include "bitnet/simd/common.hpp"

namespace bitnet::simd {
namespace {

/// For instruction sets that multiply unsigned by signed bytes. Keys are made unsigned by adding 128 (the
/// sign bit flipped), so a score is 128 · Σ q8 too large; weights are unsigned already. Ops has registers
/// `Reg` of bytes and of int32 sums, kRegs of them in a line: zero, load, flip, splat, dot, store.
template <class Ops>
struct UnsignedByteDot {
  static constexpr bool kKeysOffset = true;
  static constexpr int kRegs = Ops::kRegs, kRows = Ops::kRows, kBlocks = Ops::kBlocks;
  typedef typename Ops::Reg Reg;
  struct Sums {
    Reg r[kRegs];
  };
  typedef Sums Line;
  typedef Reg Four;

  static BITNET_INLINE Sums zero_sums() {
    Sums s;
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) s.r[i] = Ops::zero();
    return s;
  }
  static BITNET_INLINE Line load_values(const std::int8_t* p) {
    Line v;
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) v.r[i] = Ops::load(p + i * (64 / kRegs));
    return v;
  }
  static BITNET_INLINE Line load_keys(const std::int8_t* p) {
    Line v = load_values(p);
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) v.r[i] = Ops::flip(v.r[i]);
    return v;
  }
  static BITNET_INLINE Four load_four(const void* p) {
    std::int32_t four;
    __builtin_memcpy(&four, p, 4);
    return Ops::splat(four);
  }
  static BITNET_INLINE Four load_query(const std::int8_t* p) { return load_four(p); }
  static BITNET_INLINE Four load_weights(const std::uint8_t* p) { return load_four(p); }
  static BITNET_INLINE void add_keys(Sums& sums, const Line& line, Four query) {
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) sums.r[i] = Ops::dot(sums.r[i], line.r[i], query);
  }
  static BITNET_INLINE void add_values(Sums& sums, const Line& line, Four weights) {
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) sums.r[i] = Ops::dot(sums.r[i], weights, line.r[i]);
  }
  static BITNET_INLINE void store_sums(std::int32_t* p, const Sums& sums) {
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) Ops::store(p + i * (16 / kRegs), sums.r[i]);
  }
};

/// For those without: both sides are widened to int16. Ops has registers `Pairs` of two sums a column, kRegs
/// of them in a line, added at the end, and `Wide` of int16: zero, widen, splat, dot, store_two.
template <class Ops>
struct WideByteDot {
  static constexpr bool kKeysOffset = false;
  static constexpr int kRegs = Ops::kRegs, kRows = Ops::kRows, kBlocks = Ops::kBlocks;
  typedef typename Ops::Pairs Pairs;
  typedef typename Ops::Wide Wide;
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
    for (int i = 0; i < kRegs; ++i) s.r[i] = Ops::zero();
    return s;
  }
  static BITNET_INLINE Line load_values(const std::int8_t* p) {
    Line v;
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) v.r[i] = Ops::widen(p + i * (64 / kRegs));
    return v;
  }
  static BITNET_INLINE Line load_keys(const std::int8_t* p) { return load_values(p); }
  static BITNET_INLINE Four load_query(const std::int8_t* p) {
    const std::int16_t four[4] = {p[0], p[1], p[2], p[3]};
    return Ops::splat(four);
  }
  static BITNET_INLINE Four load_weights(const std::uint8_t* p) {
    const std::int16_t four[4] = {p[0], p[1], p[2], p[3]};
    return Ops::splat(four);
  }
  static BITNET_INLINE void add_keys(Sums& sums, const Line& line, Four four) {
    BITNET_UNROLL
    for (int i = 0; i < kRegs; ++i) sums.r[i] = Ops::dot(sums.r[i], line.r[i], four);
  }
  static BITNET_INLINE void add_values(Sums& sums, const Line& line, Four four) {
    add_keys(sums, line, four);
  }
  static BITNET_INLINE void store_sums(std::int32_t* p, const Sums& sums) {
    BITNET_UNROLL
    for (int i = 0; i < kRegs; i += 2) Ops::store_two(p + i * (16 / kRegs), sums.r[i], sums.r[i + 1]);
  }
};

/// WideByteDot's registers without intrinsics.
struct PlainByteOps {
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
};

}  // namespace
}  // namespace bitnet::simd
