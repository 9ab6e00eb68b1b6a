// UTF-8 checking and repair, after table 3-7 of the Unicode standard.
#include "text/utf8.hpp"

#include "bitnet/core/error.hpp"

namespace bitnet::text {
namespace {

struct Lead {
  std::uint8_t length;     // bytes of the character; 0: no character begins so
  std::uint8_t low, high;  // what the second byte may be
};

constexpr Lead lead_of(unsigned char c) noexcept {
  if (c < 0x80) return {1, 0, 0};
  if (c < 0xC2) return {0, 0, 0};
  if (c < 0xE0) return {2, 0x80, 0xBF};
  if (c == 0xE0) return {3, 0xA0, 0xBF};
  if (c == 0xED) return {3, 0x80, 0x9F};  // no surrogates
  if (c < 0xF0) return {3, 0x80, 0xBF};
  if (c == 0xF0) return {4, 0x90, 0xBF};
  if (c < 0xF4) return {4, 0x80, 0xBF};
  if (c == 0xF4) return {4, 0x80, 0x8F};  // not above U+10FFFF
  return {0, 0, 0};
}

}  // namespace

Utf8Unit utf8_at(std::string_view text, std::size_t pos) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[pos + i]); };
  const Lead lead = lead_of(byte(0));
  if (lead.length == 0) return {Utf8Unit::Kind::kIllFormed, 1, 0};
  if (lead.length == 1) return {Utf8Unit::Kind::kCharacter, 1, byte(0)};
  char32_t code_point = byte(0) & (0xFFu >> (lead.length + 1));
  for (std::uint8_t i = 1; i < lead.length; ++i) {
    if (pos + i >= text.size()) return {Utf8Unit::Kind::kCutOff, i, 0};
    const unsigned char low = i == 1 ? lead.low : 0x80, high = i == 1 ? lead.high : 0xBF;
    if (byte(i) < low || byte(i) > high) return {Utf8Unit::Kind::kIllFormed, i, 0};
    code_point = code_point << 6 | (byte(i) & 0x3Fu);
  }
  return {Utf8Unit::Kind::kCharacter, lead.length, code_point};
}

std::size_t find_invalid_utf8(std::string_view text) noexcept {
  for (std::size_t i = 0; i < text.size();) {
    if (static_cast<unsigned char>(text[i]) < 0x80) {
      ++i;
      continue;
    }
    const Utf8Unit unit = utf8_at(text, i);
    if (unit.kind != Utf8Unit::Kind::kCharacter) return i;
    i += unit.length;
  }
  return std::string_view::npos;
}

void require_utf8(std::string_view text, std::string_view what) {
  const std::size_t at = find_invalid_utf8(text);
  if (at != std::string_view::npos)
    throw Error(ErrorCode::kInvalidArgument,
                std::string(what) + ": invalid UTF-8 at byte " + std::to_string(at));
}

bool is_white_space(char32_t c) noexcept {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

std::string_view trim(std::string_view text) noexcept {
  // Python also strips the four separators U+001C to U+001F.
  const auto strips = [](char32_t c) { return is_white_space(c) || (c >= 0x1C && c <= 0x1F); };
  while (!text.empty()) {
    const Utf8Unit unit = utf8_at(text, 0);
    if (unit.kind != Utf8Unit::Kind::kCharacter || !strips(unit.code_point)) break;
    text.remove_prefix(unit.length);
  }
  while (!text.empty()) {
    std::size_t begin = text.size() - 1;
    while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
    const Utf8Unit unit = utf8_at(text, begin);
    if (unit.kind != Utf8Unit::Kind::kCharacter || !strips(unit.code_point)) break;
    text.remove_suffix(text.size() - begin);
  }
  return text;
}

void append_utf8(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | c >> 6);
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | c >> 12);
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | c >> 18);
    out += static_cast<char>(0x80 | (c >> 12 & 0x3F));
    out += static_cast<char>(0x80 | (c >> 6 & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

std::size_t append_repaired(std::string& out, std::string_view bytes, bool last) {
  for (std::size_t i = 0; i < bytes.size();) {
    const Utf8Unit unit = utf8_at(bytes, i);
    if (unit.kind == Utf8Unit::Kind::kCharacter) {
      out.append(bytes.substr(i, unit.length));
    } else {
      if (unit.kind == Utf8Unit::Kind::kCutOff && !last) return bytes.size() - i;
      append_utf8(out, 0xFFFD);
    }
    i += unit.length;
  }
  return 0;
}

}  // namespace bitnet::text
