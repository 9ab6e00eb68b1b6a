// The bounds that nlohmann's parser does not have: nesting, since copies and dumps recurse, and a NUL byte,
// which it takes for the end of the text.
#include "model_io/json_file.hpp"

#include <fmt/format.h>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"

namespace bitnet::quant::model_io {

nlohmann::json read_json(const std::filesystem::path& path, std::uint64_t limit) {
  return parse_json(read_file(path, limit));
}

nlohmann::json parse_json(const std::string& text) {
  const auto shallow = [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
    if (depth > 32) throw Error(ErrorCode::kCorruptFile, "more than 32 nested arrays and objects");
    return true;
  };
  if (const std::size_t nul = text.find('\0'); nul != std::string::npos)
    throw Error(ErrorCode::kCorruptFile, fmt::format("not JSON, at byte {}", nul + 1));
  try {
    return nlohmann::json::parse(text, shallow);
  } catch (const nlohmann::json::parse_error& e) {
    throw Error(ErrorCode::kCorruptFile, fmt::format("not JSON, at byte {}", e.byte));
  } catch (const nlohmann::json::exception&) {  // nothing else is left to go wrong
    throw Error(ErrorCode::kCorruptFile, "not JSON: a number is out of range");
  }
}

}  // namespace bitnet::quant::model_io
