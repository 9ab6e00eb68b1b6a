#pragma once
// GPT-2's map between bytes and printable characters: byte-level vocabularies store "Ġthe" for " the".
#include <optional>
#include <string>
#include <string_view>

namespace bitnet::text {

/// The character that stands for a byte, as UTF-8. Bytes 33–126, 161–172 and 174–255 stand for themselves;
/// the other 68 take U+0100, U+0101, … in byte order.
std::string_view byte_symbol(unsigned char byte) noexcept;

/// Every byte of `bytes` replaced by its character.
std::string to_byte_symbols(std::string_view bytes);

/// The inverse; empty when a character of `symbols` stands for no byte. Requires UTF-8.
std::optional<std::string> from_byte_symbols(std::string_view symbols);

}  // namespace bitnet::text
