// The CPU as a device: what the kernel tells of its cores, caches and memory.
#include <sched.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <string>
#include <vector>

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

std::vector<int> affine_cores() {
  // As many as a mask can have here; a kernel with more refuses the call.
  constexpr int kMost = 8192;
  std::vector<int> cores;
  cpu_set_t* const mask = CPU_ALLOC(kMost);
  if (mask == nullptr) return cores;
  const std::size_t bytes = CPU_ALLOC_SIZE(kMost);
  if (sched_getaffinity(0, bytes, mask) == 0)
    for (int core = 0; core < kMost; ++core)
      if (CPU_ISSET_S(static_cast<std::size_t>(core), bytes, mask)) cores.push_back(core);
  CPU_FREE(mask);
  return cores;
}

fs::path folder_of(const fs::path& sysfs, int core) {
  return sysfs / "devices/system/cpu" / ("cpu" + std::to_string(core));
}

/// sysfs-devices-system-cpu of Linux's ABI documents. Each level-3 cache is counted once: `seen` has the
/// cores that share one, as the kernel writes them.
void read_caches(const fs::path& core, DeviceCapabilities& c, std::set<std::string>& seen) {
  for (int i = 0;; ++i) {
    const fs::path folder = core / "cache" / ("index" + std::to_string(i));
    const std::string level = word_of(folder / "level");
    if (level.empty()) return;
    if (word_of(folder / "type") == "Instruction") continue;
    const std::size_t bytes = size_of(word_of(folder / "size"));
    if (level == "1") c.l1_bytes = std::max(c.l1_bytes, bytes);
    if (level == "2") c.l2_bytes = std::max(c.l2_bytes, bytes);
    if (level != "3") continue;
    c.l3_bytes = std::max(c.l3_bytes, bytes);
    if (seen.insert(word_of(folder / "shared_cpu_list")).second) c.l3_total_bytes += bytes;
  }
}

double clock_of(const fs::path& core) {
  return static_cast<double>(size_of(word_of(core / "cpufreq/cpuinfo_max_freq"))) / 1000;
}

}  // namespace

DeviceCapabilities cpu_capabilities(const fs::path& sysfs, std::span<const int> cores) {
  DeviceCapabilities c;
  for (const Isa isa : compiled_isas())
    if (is_supported(isa)) c.isas.emplace_back(to_string(isa));
  c.compute_units = static_cast<std::int64_t>(usable_cores());
  const std::vector<int> own = cores.empty() ? affine_cores() : std::vector<int>();
  std::set<std::string> seen;
  for (const int core : cores.empty() ? std::span<const int>(own) : cores) {
    const fs::path folder = folder_of(sysfs, core);
    c.clock_mhz = std::max(c.clock_mhz, clock_of(folder));
    read_caches(folder, c, seen);
  }
  c.shares_host_memory = true;
  return c;
}

}  // namespace bitnet
