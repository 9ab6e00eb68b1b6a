#pragma once
// Element types of tensors, and the two 16-bit float formats with their exact conversions. Pure functions,
// thread-safe.
#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace bitnet {

/// Element type of a Tensor. File formats have richer type lists of their own (GgmlType in io/gguf.hpp).
enum class DType : std::uint8_t {
  kF32,
  kF16,   ///< IEEE binary16
  kBF16,  ///< upper half of binary32
  kI8,
  kI32,
  kTernary,  ///< packed 2-bit codes c = w + 1, four per byte, element 4·j + i in bits 2·i of byte j
};

std::string_view to_string(DType dtype) noexcept;

/// Bits of one element: 2 for kTernary, else 8·sizeof.
constexpr std::size_t bits_of(DType dtype) noexcept {
  switch (dtype) {
    case DType::kF32:
      return 32;
    case DType::kF16:
      return 16;
    case DType::kBF16:
      return 16;
    case DType::kI8:
      return 8;
    case DType::kI32:
      return 32;
    case DType::kTernary:
      return 2;
  }
  return 0;
}

/// bfloat16 → float, exact.
constexpr float bf16_to_f32(std::uint16_t h) noexcept {
  return std::bit_cast<float>(static_cast<std::uint32_t>(h) << 16);
}

/// float → bfloat16, half to even; NaN stays a quiet NaN.
constexpr std::uint16_t f32_to_bf16(float f) noexcept {
  const auto u = std::bit_cast<std::uint32_t>(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((u >> 16) | 0x40u);
  return static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

/// binary16 → float, exact (subnormals, infinities and NaN payloads included).
constexpr float f16_to_f32(std::uint16_t h) noexcept {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t exponent = (h >> 10) & 0x1fu;
  std::uint32_t mantissa = h & 0x3ffu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  if (mantissa == 0) return std::bit_cast<float>(sign);
  std::uint32_t e = 113;  // a subnormal: shift the leading one into place
  while ((mantissa & 0x400u) == 0) {
    mantissa <<= 1;
    --e;
  }
  return std::bit_cast<float>(sign | (e << 23) | ((mantissa & 0x3ffu) << 13));
}

/// float → binary16, half to even; overflow becomes infinity, NaN stays a quiet NaN.
constexpr std::uint16_t f32_to_f16(float f) noexcept {
  const auto u = std::bit_cast<std::uint32_t>(f);
  const auto sign = static_cast<std::uint16_t>((u >> 16) & 0x8000u);
  const std::uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
  if (a >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // rounds to 65536 or is infinite
  if (a < 0x38800000u) {                                                    // below 2^-14: subnormal or zero
    if (a < 0x33000000u) return sign;                                       // below 2^-25
    const std::uint32_t shift = 126 - (a >> 23);                            // 14 … 24
    const std::uint32_t m = (a & 0x7fffffu) | 0x800000u;
    const std::uint32_t half = 1u << (shift - 1), rest = m & ((1u << shift) - 1);
    std::uint32_t q = m >> shift;
    if (rest > half || (rest == half && (q & 1u))) ++q;
    return static_cast<std::uint16_t>(sign | q);
  }
  const std::uint32_t rounded = a + 0xfffu + ((a >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

}  // namespace bitnet
