#pragma once
// A 64-bit checksum of bytes against damage and mistakes, not against forgery. Not thread-safe.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

namespace bitnet {

/// Eight bytes at a time, the last ones filled up with zeros: each step is a bijection of the state, so that
/// a change within one word always changes the result. Blocks that follow each other are the whole where each
/// but the last is a multiple of eight bytes.
class Hash64 {
 public:
  Hash64& add(std::span<const std::byte> bytes) noexcept {
    for (std::size_t at = 0; at < bytes.size(); at += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, bytes.data() + at, bytes.size() - at < 8 ? bytes.size() - at : 8);
      add(word);
    }
    return *this;
  }
  /// The text and its length, so that "ab", "c" differs from "a", "bc".
  Hash64& add(std::string_view text) noexcept {
    add(static_cast<std::uint64_t>(text.size()));
    return add(std::as_bytes(std::span(text.data(), text.size())));
  }
  Hash64& add(std::uint64_t word) noexcept {
    state_ = (state_ ^ word) * 0x9E3779B97F4A7C15u;
    state_ ^= state_ >> 32;
    return *this;
  }
  std::uint64_t value() const noexcept { return state_; }

 private:
  std::uint64_t state_ = 0xCBF29CE484222325u;
};

}  // namespace bitnet
