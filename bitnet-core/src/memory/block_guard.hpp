#pragma once
// The checks of debug builds: a header before each block and a mark behind it, which writes past either end
// damage. Where blocks come from does not matter here.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "sanitizer.hpp"

namespace bitnet::memory {

/// Lies just before the block that its owner sees.
struct GuardHeader {
  std::uint64_t mark;   ///< kGuardMark ^ address of the owner's block
  std::uint64_t bytes;  ///< asked for
  const char* tag;
  std::uint64_t check;  ///< of the three before
};
inline constexpr std::size_t kGuardFront = sizeof(GuardHeader);  // a multiple of 16
inline constexpr std::size_t kGuardBack = 16;
inline constexpr std::uint64_t kGuardMark = 0xb17e75afe57a11ed;

/// Bytes before the owner's block, so that it is aligned where the whole block is.
constexpr std::size_t guard_front(std::size_t alignment) { return std::max(kGuardFront, alignment); }

inline std::uint64_t guard_check(const GuardHeader& h) {
  std::uint64_t x = h.mark * 0x9e3779b97f4a7c15 ^ h.bytes;
  x = (x ^ x >> 29) * 0xbf58476d1ce4e5b9 ^ reinterpret_cast<std::uintptr_t>(h.tag);
  return (x ^ x >> 32) * 0x94d049bb133111eb;
}

/// Writes both and returns the owner's block.
inline std::byte* guard(void* whole, std::size_t front, std::size_t bytes, const char* tag) {
  std::byte* block = static_cast<std::byte*>(whole) + front;
  GuardHeader header{kGuardMark ^ reinterpret_cast<std::uintptr_t>(block), bytes, tag, 0};
  header.check = guard_check(header);
  std::memcpy(block - kGuardFront, &header, sizeof header);
  std::memset(block + bytes, 0xb1, kGuardBack);
  return block;
}

/// So that a header that nothing overwrites does not make a second free look like a first.
inline void remove_guard(void* block) {
  std::memset(static_cast<std::byte*>(block) - kGuardFront, 0, kGuardFront);
}

enum class GuardState : std::uint8_t { kGood, kHeaderDamaged, kEndDamaged };

/// Reads the header before `block`; `bytes_left` lie from there to the end of the whole block.
inline GuardState read_guard(const std::byte* block, std::size_t bytes_left, GuardHeader& header) {
  unpoison(block - kGuardFront, kGuardFront);
  std::memcpy(&header, block - kGuardFront, sizeof header);
  const bool good = header.check == guard_check(header) && bytes_left >= kGuardBack &&
                    header.mark == (kGuardMark ^ reinterpret_cast<std::uintptr_t>(block)) &&
                    header.bytes <= bytes_left - kGuardBack;
  if (!good) return GuardState::kHeaderDamaged;
  unpoison(block + header.bytes, kGuardBack);
  const auto* end = reinterpret_cast<const unsigned char*>(block + header.bytes);
  return std::all_of(end, end + kGuardBack, [](unsigned char c) { return c == 0xb1; })
             ? GuardState::kGood
             : GuardState::kEndDamaged;
}

/// Whether a block with a good header begins at `block`.
inline bool begins_block(const std::byte* block, std::size_t bytes_left) {
  GuardHeader header{};
  if (bytes_left < kGuardBack || read_guard(block, bytes_left, header) == GuardState::kHeaderDamaged)
    return false;
  poison(block - kGuardFront, kGuardFront);
  poison(block + header.bytes, kGuardBack);
  return true;
}

}  // namespace bitnet::memory
