#pragma once
// The numbers of the GGUF format that its reader, its writer and GgufMetadata share. Private to bitnet-core.
#include <cstdint>
#include <string_view>

#include "bitnet/core/io/gguf.hpp"

namespace bitnet::gguf {

inline constexpr std::uint32_t kMagic = 0x46554747;  // "GGUF", little-endian
inline constexpr std::uint32_t kVersion = 3;
inline constexpr std::uint64_t kDefaultAlignment = 32;
inline constexpr std::uint32_t kMaxDims = 4;  // GGML_MAX_DIMS
inline constexpr const char* kAlignmentKey = "general.alignment";

enum ValueType : std::int32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
  kValueTypeCount,
};

constexpr std::string_view value_type_name(std::int32_t type) noexcept {
  constexpr std::string_view kNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                         "bool", "string", "array", "u64", "i64", "f64"};
  return type >= 0 && type < kValueTypeCount ? kNames[type] : std::string_view("an unknown type");
}

/// Bytes of a value of fixed size; for a string the 8 bytes of its length, the least that it takes in a file.
/// 0 for arrays and unknown types.
constexpr std::uint64_t least_bytes(std::int32_t type) noexcept {
  switch (type) {
    case kU8:
    case kI8:
    case kBool:
      return 1;
    case kU16:
    case kI16:
      return 2;
    case kU32:
    case kI32:
    case kF32:
      return 4;
    case kString:
    case kU64:
    case kI64:
    case kF64:
      return 8;
    default:
      return 0;
  }
}

/// general.alignment, or 32. Throws Error(kCorruptFile) unless it is a power of two up to 2^20.
std::uint64_t alignment_of(const GgufMetadata& metadata);

constexpr std::uint64_t align_up(std::uint64_t n, std::uint64_t alignment) noexcept {
  return (n + alignment - 1) / alignment * alignment;  // n below 2^63: no overflow
}

}  // namespace bitnet::gguf
