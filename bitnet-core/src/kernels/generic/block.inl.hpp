#pragma once
// Sixteen floats in however many registers the ISA needs: loads, stores and the fixed fold that every
// reduction of the project ends with. What is computed with them is in rows.inl.hpp, exp.inl.hpp,
// dots.inl.hpp and attention.inl.hpp. Included by the ISA tables only.
namespace bitnet::kernels {
namespace {

using simd::F32;

constexpr int kRegs = 16 / F32::kLanes;

/// 16 floats in however many registers the ISA needs.
struct Block {
  F32::Reg r[kRegs];
};

template <class Op>
BITNET_INLINE Block make_block(Op op) {
  Block out;
  BITNET_UNROLL
  for (int i = 0; i < kRegs; ++i) out.r[i] = op(i);
  return out;
}

BITNET_INLINE Block splat(float x) {
  return make_block([&](int) __attribute__((always_inline)) { return F32::broadcast(x); });
}

BITNET_INLINE F32::Reg select(F32::Int mask, F32::Reg a, F32::Reg b) {
  return mask ? a : b;  // as bits and, and-not, or, AVX-512 would make vectors of its masks
}

BITNET_INLINE F32::Reg absolute(F32::Reg x) {
  return reinterpret_cast<F32::Reg>(reinterpret_cast<F32::Int>(x) & 0x7fffffff);
}

// Sources of 16 elements as floats. `block` reads 16, `part` reads n < 16 and pads with `pad`.
struct FromF32 {
  const float* p;
  BITNET_INLINE F32::Reg reg(std::size_t i) const { return F32::load(p + i); }
  BITNET_INLINE float one(std::size_t i) const { return p[i]; }
};

BITNET_INLINE F32::Reg widen_bf16(const std::uint16_t* p) {
  return reinterpret_cast<F32::Reg>(F32::load_u16(p) << 16);
}

struct FromF16 {
  const std::uint16_t* p;
  BITNET_INLINE F32::Reg reg(std::size_t i) const { return F32::load_f16(p + i); }
  BITNET_INLINE float one(std::size_t i) const {
    std::uint16_t copy[16] = {p[i]};
    return F32::load_f16(copy)[0];
  }
};

struct FromBf16 {
  const std::uint16_t* p;
  BITNET_INLINE F32::Reg reg(std::size_t i) const { return widen_bf16(p + i); }
  BITNET_INLINE float one(std::size_t i) const {
    std::uint16_t copy[16] = {p[i]};
    return widen_bf16(copy)[0];
  }
};

template <class Source>
BITNET_INLINE Block load_block(const Source& from, std::size_t i) {
  return make_block([&](int r) __attribute__((always_inline)) {
    return from.reg(i + static_cast<std::size_t>(r * F32::kLanes));
  });
}

/// The last n − i < 16 elements, then `pad`.
template <class Source>
BITNET_INLINE Block load_part(const Source& from, std::size_t i, std::size_t n, float pad) {
  float copy[16];
  for (std::size_t j = 0; j < 16; ++j) copy[j] = i + j < n ? from.one(i + j) : pad;
  return load_block(FromF32{copy}, 0);
}

BITNET_INLINE void store_block(float* p, const Block& b) {
  BITNET_UNROLL
  for (int r = 0; r < kRegs; ++r) F32::store(p + r * F32::kLanes, b.r[r]);
}

BITNET_INLINE void store_part(float* p, const Block& b, std::size_t count) {
  float copy[16];
  store_block(copy, b);
  for (std::size_t j = 0; j < count; ++j) p[j] = copy[j];
}

/// Folds 16 lanes pairwise (i with i + 8, then + 4, + 2, + 1).
template <class Op>
BITNET_INLINE float fold(const Block& b, Op op) {
  float lane[16];
  store_block(lane, b);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] = op(lane[i], lane[i + width]);
  return lane[0];
}

constexpr auto kPlus = [](float a, float b) { return a + b; };
constexpr auto kLarger = [](float a, float b) { return b > a ? b : a; };

}  // namespace
}  // namespace bitnet::kernels
