// The CPU as a device: what the kernel tells of its cores, caches and memory.
#include <fstream>
#include <string>

#include "bitnet/core/device/device.hpp"
#include "bitnet/core/execution.hpp"
#include "bitnet/core/isa.hpp"

namespace bitnet {
namespace {

namespace fs = std::filesystem;

std::string word_of(const fs::path& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

/// "48K", "1024K", "32M"; 0 on anything else.
std::size_t size_of(const std::string& text) {
  std::size_t n = 0, at = 0;
  for (; at < text.size() && text[at] >= '0' && text[at] <= '9' && n < (std::size_t{1} << 40); ++at)
    n = n * 10 + static_cast<std::size_t>(text[at] - '0');
  if (at == text.size()) return n;
  return text[at] == 'K' ? n << 10 : text[at] == 'M' ? n << 20 : text[at] == 'G' ? n << 30 : 0;
}

/// Of the first core: sysfs-devices-system-cpu of Linux's ABI documents.
void read_caches(const fs::path& sysfs, DeviceCapabilities& c) {
  for (int i = 0;; ++i) {
    const fs::path folder = sysfs / "devices/system/cpu/cpu0/cache" / ("index" + std::to_string(i));
    const std::string level = word_of(folder / "level");
    if (level.empty()) return;
    if (word_of(folder / "type") == "Instruction") continue;
    const std::size_t bytes = size_of(word_of(folder / "size"));
    if (level == "1") c.l1_bytes = bytes;
    if (level == "2") c.l2_bytes = bytes;
    if (level == "3") c.l3_bytes = bytes;
  }
}

double largest_clock(const fs::path& sysfs) {
  const std::string khz = word_of(sysfs / "devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq");
  return static_cast<double>(size_of(khz)) / 1000;
}

}  // namespace

DeviceCapabilities cpu_capabilities(const fs::path& sysfs) {
  DeviceCapabilities c;
  for (const Isa isa : compiled_isas())
    if (is_supported(isa)) c.isas.emplace_back(to_string(isa));
  c.compute_units = static_cast<std::int64_t>(usable_cores());
  c.clock_mhz = largest_clock(sysfs);
  read_caches(sysfs, c);
  c.shares_host_memory = true;
  return c;
}

}  // namespace bitnet
