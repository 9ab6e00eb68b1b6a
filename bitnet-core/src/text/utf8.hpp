#pragma once
// UTF-8 for the tokenizers: decoding one character, repairing what tokens decode to; checking is public.
// Unicode properties (letters, numbers) are not here but in PCRE2, behind regex.hpp.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "bitnet/core/text/utf8.hpp"

namespace bitnet::text {

/// What lies at a position: a character, or the longest start of one that is still well-formed (Unicode's
/// "maximal subpart"), which is ill-formed because of the next byte or only cut off by the end of the text.
struct Utf8Unit {
  enum class Kind : std::uint8_t { kCharacter, kIllFormed, kCutOff };
  Kind kind;
  std::uint8_t length;  ///< in bytes, at least 1
  char32_t code_point;  ///< of a character
};

/// Requires pos < text.size().
Utf8Unit utf8_at(std::string_view text, std::size_t pos) noexcept;

/// Unicode's White_Space property.
bool is_white_space(char32_t c) noexcept;

/// `text` (UTF-8) without the white space at both ends, as Python's and Jinja's strip and trim count it.
std::string_view trim(std::string_view text) noexcept;

void append_utf8(std::string& out, char32_t code_point);

/// Appends `bytes` with each ill-formed part replaced by U+FFFD. Returns how many bytes at the end were left
/// out because they begin a character that is cut off (always 0 when `last`, which replaces them too).
std::size_t append_repaired(std::string& out, std::string_view bytes, bool last);

}  // namespace bitnet::text
