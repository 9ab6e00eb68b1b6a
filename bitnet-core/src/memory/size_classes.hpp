#pragma once
// The sizes of small blocks: multiples of 16 up to 128 bytes, from there eight sizes to each doubling, so
// that at most an eighth of what was asked for is added. Constants and arithmetic only.
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace bitnet::memory {

inline constexpr std::size_t kPageBytes = 4096;
inline constexpr std::size_t kLargestSmall = std::size_t{1} << 20;
/// 8 classes up to 128 bytes, 8 for each of the 13 doublings to 1 MiB.
inline constexpr unsigned kMaxClasses = 8 + 8 * 13;
inline constexpr unsigned kSmallSpans = 4;  ///< spans of a class that are smaller than the others

/// The smallest class whose blocks hold `bytes`, 1 … kLargestSmall.
constexpr unsigned class_of(std::size_t bytes) noexcept {
  const std::size_t last = bytes - 1;
  if (last < 128) return static_cast<unsigned>(last >> 4);
  const unsigned top = static_cast<unsigned>(std::bit_width(last)) - 1;  // 7 … 19
  return (top - 7) * 8 + static_cast<unsigned>(last >> (top - 3));       // the shift leaves 8 … 15
}

constexpr std::size_t class_bytes(unsigned size_class) noexcept {
  if (size_class < 8) return (size_class + std::size_t{1}) * 16;
  return (std::size_t{9} + (size_class - 8) % 8) << (4 + (size_class - 8) / 8);
}

/// The smallest class of at least `bytes` whose blocks all begin at a multiple of `alignment` (a power of two
/// up to a page), spans beginning on pages. May lie past the pool's threshold.
constexpr unsigned class_of(std::size_t bytes, std::size_t alignment) noexcept {
  unsigned size_class = class_of(bytes < alignment ? alignment : bytes);
  while (class_bytes(size_class) % alignment != 0) ++size_class;  // powers of two end it within 8 steps
  return size_class;
}

/// Pages of a span, the piece that blocks of a class are cut from: 64 KiB or a little more, at least four
/// blocks, and no more unused at its end than a 64th.
constexpr std::uint32_t span_pages(unsigned size_class) noexcept {
  const std::size_t size = class_bytes(size_class);
  std::size_t pages = 16;
  while (pages * kPageBytes < 4 * size || pages * kPageBytes % size > pages * kPageBytes / 64) ++pages;
  return static_cast<std::uint32_t>(pages);
}

/// Of the first spans of a class, of which there are `n_spans` so far: from a page, doubled by each, so that
/// a few blocks of a size take few pages. At most an eighth is unused at the end.
constexpr std::uint32_t span_pages(unsigned size_class, unsigned n_spans) noexcept {
  const std::uint32_t full = span_pages(size_class);
  if (n_spans >= kSmallSpans) return full;
  const std::size_t size = class_bytes(size_class);
  std::size_t pages = std::size_t{1} << n_spans;
  while (pages * kPageBytes < size || pages * kPageBytes % size > pages * kPageBytes / 8) ++pages;
  return pages < full ? static_cast<std::uint32_t>(pages) : full;
}

/// Blocks that move between a thread's cache and the shared one at once: up to 16 KiB of them, of larger
/// blocks up to four while those are no more than 256 KiB.
constexpr std::uint32_t batch_blocks(unsigned size_class) noexcept {
  const std::size_t size = class_bytes(size_class);
  const std::size_t blocks = (std::size_t{16} << 10) / size, four = (std::size_t{256} << 10) / size;
  if (blocks >= 4) return static_cast<std::uint32_t>(blocks > 64 ? 64 : blocks);
  return static_cast<std::uint32_t>(four > 4 ? 4 : four < 1 ? 1 : four);
}

/// What is looked up of a class at each call.
struct ClassInfo {
  std::uint32_t bytes;
  std::uint32_t inverse;  ///< 2^32 / bytes, rounded down, plus one
};
inline constexpr std::array<ClassInfo, kMaxClasses> kClasses = [] {
  std::array<ClassInfo, kMaxClasses> out{};
  for (unsigned c = 0; c < kMaxClasses; ++c) {
    out[c].bytes = static_cast<std::uint32_t>(class_bytes(c));
    out[c].inverse = static_cast<std::uint32_t>((std::uint64_t{1} << 32) / class_bytes(c) + 1);
  }
  return out;
}();

}  // namespace bitnet::memory
