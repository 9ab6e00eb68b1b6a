#pragma once
// What every instruction-set vocabulary shares: inlining and unrolling macros, and the 128-bit float vector.
// A vocabulary is one file, <isa>.hpp, that defines `struct F32` (float registers), `struct I8` (ternary ×
// int8 products), `struct S8` (int8 × int8 products) and `ByteDot` (int8 attention's) in an unnamed
// namespace, so that an object compiled for one ISA exports nothing of it. The float part is GCC vector
// extensions where they say it all, intrinsics where they do not.
#include <cstddef>
#include <cstdint>

#define BITNET_INLINE inline __attribute__((always_inline))
// g++ keeps arrays of registers in memory unless every loop over them is unrolled.
#if defined(__clang__)
#define BITNET_UNROLL _Pragma("clang loop unroll(full)")
#else
#define BITNET_UNROLL _Pragma("GCC unroll 64")
#endif

namespace bitnet::simd {
namespace {

typedef float Quad __attribute__((vector_size(16)));
typedef float QuadMem __attribute__((vector_size(16), aligned(4), may_alias));
typedef std::int32_t IntQuad __attribute__((vector_size(16)));
typedef std::uint32_t UIntQuad __attribute__((vector_size(16)));

typedef std::uint16_t FourU16 __attribute__((vector_size(8)));

/// Four uint16 → uint32.
BITNET_INLINE UIntQuad widen_u16(const std::uint16_t* p) {
  FourU16 v;
  __builtin_memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, UIntQuad);
}

/// Four binary16 → float without hardware help: exact, subnormals included; NaNs become quiet as in hardware.
struct WidenF16 {
  static BITNET_INLINE Quad quad(const std::uint16_t* p) {
    const UIntQuad h = widen_u16(p);
    const UIntQuad sign = (h & 0x8000u) << 16;
    const UIntQuad magnitude = (h & 0x7fffu) << 13;
    // magnitude as a float is the value · 2^-112; the product is exact (a subnormal becomes normal).
    const Quad scaled = reinterpret_cast<Quad>(magnitude) * 0x1p112f;
    const UIntQuad special = magnitude | 0x7f800000u;  // exponent 31: infinity or NaN
    const UIntQuad quiet = {0x400000u, 0x400000u, 0x400000u, 0x400000u};
    const UIntQuad is_special = reinterpret_cast<UIntQuad>(magnitude >= 0x0f800000u);
    const UIntQuad is_nan = reinterpret_cast<UIntQuad>(magnitude > 0x0f800000u);
    const UIntQuad bits =
        (reinterpret_cast<UIntQuad>(scaled) & ~is_special) | (special & is_special) | (quiet & is_nan);
    return reinterpret_cast<Quad>(bits | sign);
  }
};

/// Four floats → binary16 without hardware help, half to even, as the hardware does it: subnormals included,
/// what rounds to 65536 becomes infinity, NaNs become quiet and keep the top of their payload.
struct NarrowF16 {
  static BITNET_INLINE void store(std::uint16_t* p, Quad v) {
    const UIntQuad bits = reinterpret_cast<UIntQuad>(v), a = bits & 0x7fffffffu;
    const UIntQuad normal = (a + 0xfffu + ((a >> 13) & 1u) - 0x38000000u) >> 13;
    // One unit of 0.5 in the last place is 2^-24, that of a subnormal: the addition rounds, half to even.
    const UIntQuad small = reinterpret_cast<UIntQuad>(reinterpret_cast<Quad>(a) + 0.5f) - 0x3f000000u;
    const UIntQuad nan = ((a >> 13) & 0x3ffu) | 0x7e00u, infinite = {0x7c00u, 0x7c00u, 0x7c00u, 0x7c00u};
    const UIntQuad is_small = reinterpret_cast<UIntQuad>(a < 0x38800000u),
                   is_large = reinterpret_cast<UIntQuad>(a >= 0x477ff000u),
                   is_nan = reinterpret_cast<UIntQuad>(a > 0x7f800000u);
    UIntQuad h = (small & is_small) | (normal & ~is_small);
    h = (infinite & is_large) | (h & ~is_large);
    h = (nan & is_nan) | (h & ~is_nan);
    const FourU16 out = __builtin_convertvector(h | ((bits >> 16) & 0x8000u), FourU16);
    __builtin_memcpy(p, &out, sizeof out);
  }
};

}  // namespace
}  // namespace bitnet::simd
