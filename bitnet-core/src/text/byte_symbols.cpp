// The byte ↔ character map of GPT-2 (openai/gpt-2, src/encoder.py, bytes_to_unicode).
#include "text/byte_symbols.hpp"

#include <array>

#include "text/utf8.hpp"

namespace bitnet::text {
namespace {

constexpr char32_t kFirstStandIn = 0x100;
constexpr std::size_t kEnd = 0x100 + 68;  // one past the last character in use

struct Tables {
  std::array<std::string, 256> symbol;
  std::array<int, kEnd> byte;
  Tables() {
    byte.fill(-1);
    char32_t stand_in = kFirstStandIn;
    for (unsigned b = 0; b < 256; ++b) {
      const bool itself = (b >= 33 && b <= 126) || (b >= 161 && b != 173);
      const char32_t c = itself ? b : stand_in++;
      append_utf8(symbol[b], c);
      byte[c] = static_cast<int>(b);
    }
  }
};

const Tables& tables() {
  static const Tables instance;
  return instance;
}

}  // namespace

std::string_view byte_symbol(unsigned char byte) noexcept { return tables().symbol[byte]; }

std::string to_byte_symbols(std::string_view bytes) {
  const Tables& t = tables();
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char c : bytes) out += t.symbol[static_cast<unsigned char>(c)];
  return out;
}

std::optional<std::string> from_byte_symbols(std::string_view symbols) {
  const Tables& t = tables();
  std::string out;
  out.reserve(symbols.size());
  for (std::size_t i = 0; i < symbols.size();) {
    const Utf8Unit unit = utf8_at(symbols, i);
    if (unit.kind != Utf8Unit::Kind::kCharacter || unit.code_point >= kEnd || t.byte[unit.code_point] < 0)
      return std::nullopt;
    out += static_cast<char>(t.byte[unit.code_point]);
    i += unit.length;
  }
  return out;
}

}  // namespace bitnet::text
