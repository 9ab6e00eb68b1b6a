#pragma once
// Is a text UTF-8? Decoding and repairing it is the tokenizers' business, in bitnet-core/src/text. Pure
// functions, thread-safe.
#include <cstddef>
#include <string_view>

namespace bitnet::text {

/// Offset of the first byte that is not UTF-8, or npos.
std::size_t find_invalid_utf8(std::string_view text) noexcept;

/// Throws Error(kInvalidArgument) "<what>: invalid UTF-8 at byte N".
void require_utf8(std::string_view text, std::string_view what);

}  // namespace bitnet::text
