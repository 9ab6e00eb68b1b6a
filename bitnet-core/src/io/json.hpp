#pragma once
// JSON text of untrusted files → nlohmann::json, with what the library does not refuse by itself: duplicate
// keys, deep nesting and what stands behind a NUL. Private to bitnet-core; the meaning of the values is each
// reader's business.
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace bitnet::io {

/// Parses `text`. Throws Error(kCorruptFile) with the line and column on a syntax error, a NUL or invalid
/// UTF-8; and on a key that occurs twice in one object, or more than `max_depth` nested arrays and objects.
nlohmann::json parse_json(std::string_view text, int max_depth = 32);

/// What the library says without the "[json.exception.parse_error.101] " in front.
std::string json_message(const nlohmann::json::exception& e);

}  // namespace bitnet::io
