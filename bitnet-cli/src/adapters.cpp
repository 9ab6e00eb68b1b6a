// See adapters.hpp.
#include "adapters.hpp"

#include <filesystem>

#include "common.hpp"

namespace bitnet::cli {
namespace {

inference::AdapterSource parse(const std::string& text) {
  std::error_code ignored;
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos || std::filesystem::exists(text, ignored)) return {text, 1.0f};
  const auto weight = parse_real(std::string_view(text).substr(colon + 1));
  if (!weight) return {text, 1.0f};
  return {text.substr(0, colon), static_cast<float>(*weight)};
}

}  // namespace

std::vector<inference::AdapterSource> adapter_sources(const Values& values) {
  std::vector<inference::AdapterSource> sources;
  if (!values.has(opt::kLora)) return sources;
  for (const std::string& text : values.list(opt::kLora)) {
    sources.push_back(parse(text));
    if (sources.back().path.empty())
      throw UsageError("--lora: expected PATH or PATH:WEIGHT, got '" + text + "'");
  }
  return sources;
}

}  // namespace bitnet::cli
