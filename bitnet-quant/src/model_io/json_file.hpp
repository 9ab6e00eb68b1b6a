#pragma once
// JSON files of untrusted models → nlohmann::json. Private to bitnet-quant.
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

namespace bitnet::quant::model_io {

/// The whole file. Throws Error(kNotFound | kIo), Error(kInvalidArgument) when it is larger than `limit`
/// bytes, Error(kCorruptFile) for what is not JSON or is nested more than 32 deep; the caller names the file.
nlohmann::json read_json(const std::filesystem::path& path, std::uint64_t limit);

/// The same of a text.
nlohmann::json parse_json(const std::string& text);

}  // namespace bitnet::quant::model_io
