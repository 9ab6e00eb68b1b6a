// The processor's name as the kernel tells it.
#include "bitnet/core/machine.hpp"

#include <fstream>
#include <map>

namespace bitnet {

std::string cpu_name(const std::filesystem::path& cpuinfo) {
  std::ifstream file(cpuinfo);
  std::map<std::string, std::string> first;  // of each key, the first core's
  for (std::string line; std::getline(file, line);) {
    const std::size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::size_t key_end = line.find_last_not_of(" \t", colon - (colon > 0)) + 1;
    const std::size_t value = line.find_first_not_of(" \t", colon + 1);
    if (value != std::string::npos) first.emplace(line.substr(0, key_end), line.substr(value));
  }
  if (first.contains("model name")) return first["model name"];
  if (first.contains("CPU part"))
    return "CPU implementer " + first["CPU implementer"] + ", part " + first["CPU part"];
  return "unknown";
}

}  // namespace bitnet
