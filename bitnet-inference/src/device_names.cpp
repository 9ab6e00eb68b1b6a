// See device_names.hpp.
#include "bitnet/inference/device_names.hpp"

#include <algorithm>

namespace bitnet::inference {
namespace {

bool is_part_of(std::string_view part, std::string_view whole) noexcept {
  return part.size() > whole.size() && part.starts_with(whole) && part[whole.size()] == '/';
}

}  // namespace

std::vector<std::string> split_device_names(std::string_view list) {
  std::vector<std::string> names(1);
  for (const char c : list) {
    if (c == ',')
      names.emplace_back();
    else
      names.back() += c;
  }
  return names;
}

bool share_memory(std::string_view a, std::string_view b) noexcept {
  return a == b || is_part_of(a, b) || is_part_of(b, a);
}

std::vector<std::size_t> sharers(std::span<const std::string> names) {
  std::vector<std::size_t> all;
  for (const std::string& name : names)
    all.push_back(static_cast<std::size_t>(std::count_if(
        names.begin(), names.end(), [&](const std::string& other) { return share_memory(name, other); })));
  return all;
}

}  // namespace bitnet::inference
