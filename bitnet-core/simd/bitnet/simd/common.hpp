#pragma once
// What every instruction-set vocabulary shares: inlining and unrolling macros, and the 128-bit float vector.
// A vocabulary is one file, <isa>.hpp, that defines `struct F32` (float registers), `struct I8` (ternary ×
// int8 products) and `struct S8` (int8 × int8 products) in an unnamed namespace, so that an object compiled
// for one ISA exports nothing of it. The float part is GCC vector extensions where they say it all,
// intrinsics where they do not.
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

}  // namespace
}  // namespace bitnet::simd
