// The parser callback that holds the extra rules of json.hpp; syntax itself is nlohmann's.
#include "io/json.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <unordered_set>
#include <vector>

#include "bitnet/core/error.hpp"

namespace bitnet::io {
namespace {

// The library takes a NUL for the end of the text and never looks at what follows. It is part of no JSON.
void refuse_nul(std::string_view text) {
  const std::size_t nul = text.find('\0');
  if (nul == std::string_view::npos) return;
  const std::string_view before = text.substr(0, nul);
  const auto line = std::count(before.begin(), before.end(), '\n') + 1;
  throw Error(ErrorCode::kCorruptFile, fmt::format("JSON: parse error at line {}, column {}: a NUL byte",
                                                   line, nul - (before.rfind('\n') + 1) + 1));
}

}  // namespace

nlohmann::json parse_json(std::string_view text, int max_depth) {
  refuse_nul(text);
  using Event = nlohmann::json::parse_event_t;
  std::vector<std::unordered_set<std::string>> keys;  // one set per open object
  int depth = 0;
  const auto check = [&](int, Event event, nlohmann::json& parsed) {
    if (event == Event::object_start || event == Event::array_start) {
      if (++depth > max_depth)
        throw Error(ErrorCode::kCorruptFile,
                    fmt::format("JSON: expected at most {} nested levels", max_depth));
      if (event == Event::object_start) keys.emplace_back();
    } else if (event == Event::object_end || event == Event::array_end) {
      --depth;
      if (event == Event::object_end) keys.pop_back();
    } else if (event == Event::key) {
      const auto& name = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(name).second)
        throw Error(ErrorCode::kCorruptFile, fmt::format("JSON: key '{}' occurs twice in one object", name));
    }
    return true;
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), check);
  } catch (const nlohmann::json::exception& e) {
    throw Error(ErrorCode::kCorruptFile, fmt::format("JSON: {}", json_message(e)));
  }
}

std::string json_message(const nlohmann::json::exception& e) {
  const std::string text = e.what();
  const std::size_t end = text.find("] ");
  return text.starts_with('[') && end != std::string::npos ? text.substr(end + 2) : text;
}

}  // namespace bitnet::io
