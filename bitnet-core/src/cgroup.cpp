// Control groups: Linux's Documentation/admin-guide/cgroup-v2.rst (cpu.max, memory.max, memory.current,
// memory.stat) and cgroup-v1/memory.rst; v1's CPU quota is in scheduler/sched-bwc.rst.
#include "bitnet/core/cgroup.hpp"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

namespace bitnet {
namespace {

namespace fs = std::filesystem;

/// Names of one version's files. v1's memory.stat counts the groups below only in its total_ keys.
struct MemoryFiles {
  const char *limit, *used, *inactive_file, *active_file;
};
constexpr MemoryFiles kMemoryV1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file",
                                "total_active_file"};
constexpr MemoryFiles kMemoryV2{"memory.max", "memory.current", "inactive_file", "active_file"};
constexpr std::uint64_t kUnlimited = std::uint64_t{1} << 62;  // v1 writes nearly 2^63 for "none"

template <class T>
std::optional<T> read_number(const fs::path& path) {
  std::ifstream file(path);
  T value{};
  if (!(file >> value)) return std::nullopt;  // absent, or "max"
  return value;
}

template <class T>
void lower(std::optional<T>& to, T value) {
  to = std::min(to.value_or(value), value);
}

/// The group's folder and those above it, up to the hierarchy's own. A container may see its group's path
/// from outside, of which nothing is mounted: then the hierarchy's folder is the group.
std::vector<fs::path> folders(const fs::path& hierarchy, const std::string& group) {
  std::vector<fs::path> out{hierarchy};
  for (const fs::path& part : fs::path(group).relative_path()) {
    if (part == "..") return {hierarchy};  // outside of the namespace
    if (!part.empty() && part != ".") out.push_back(out.back() / part);
  }
  return out;
}

void read_memory(const fs::path& folder, const MemoryFiles& names, CgroupLimits& limits) {
  const auto limit = read_number<std::uint64_t>(folder / names.limit);
  if (!limit || *limit >= kUnlimited) return;
  std::uint64_t used = read_number<std::uint64_t>(folder / names.used).value_or(0), value = 0;
  std::ifstream stat(folder / "memory.stat");
  std::string key;
  while (stat >> key >> value) {  // the kernel drops these pages before it refuses memory
    if (key == names.inactive_file || key == names.active_file) used -= std::min(used, value);
  }
  if (*limit != 0)
    limits.memory_used =
        std::max(limits.memory_used.value_or(0), static_cast<double>(used) / static_cast<double>(*limit));
  const std::size_t headroom = *limit - std::min(*limit, used);
  if (limits.memory_headroom && *limits.memory_headroom <= headroom) return;
  limits.memory_headroom = headroom;
  limits.memory_limit = *limit;
}

void lower_cores(double quota, double period, CgroupLimits& limits) {
  if (quota > 0 && period > 0) lower(limits.cores, quota / period);
}

void read_cpu_v1(const fs::path& folder, CgroupLimits& limits) {
  lower_cores(read_number<double>(folder / "cpu.cfs_quota_us").value_or(-1),
              read_number<double>(folder / "cpu.cfs_period_us").value_or(0), limits);
}

void read_cpu_v2(const fs::path& folder, CgroupLimits& limits) {
  std::ifstream file(folder / "cpu.max");
  double quota = 0, period = 0;
  if (file >> quota >> period) lower_cores(quota, period, limits);
}

}  // namespace

CgroupLimits cgroup_limits(const fs::path& root) {
  const fs::path mounts = root / "sys/fs/cgroup";
  CgroupLimits limits;
  std::ifstream self(root / "proc/self/cgroup");
  std::string line;
  while (std::getline(self, line)) {  // <number>:<controllers>:<group>, no controllers for v2
    std::istringstream fields(line);
    std::string number, controllers, group;
    if (!std::getline(fields, number, ':') || !std::getline(fields, controllers, ':') ||
        !std::getline(fields, group)) {
      continue;
    }
    if (controllers.empty()) {
      for (const fs::path& hierarchy : {mounts, mounts / "unified"}) {
        for (const fs::path& folder : folders(hierarchy, group)) {
          read_memory(folder, kMemoryV2, limits);
          read_cpu_v2(folder, limits);
        }
      }
    }
    std::istringstream list(controllers);
    std::string name;
    while (std::getline(list, name, ',')) {
      if (name != "memory" && name != "cpu") continue;
      for (const fs::path& folder : folders(mounts / name, group))
        name == "memory" ? read_memory(folder, kMemoryV1, limits) : read_cpu_v1(folder, limits);
    }
  }
  return limits;
}

}  // namespace bitnet
