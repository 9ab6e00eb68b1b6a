#pragma once
// What the control groups that this process is in let it use. What the machine has is asked of the kernel
// elsewhere: cores in execution.cpp, memory in bitnet-inference's CPU backend. Thread-safe: each call reads
// anew.
#include <cstddef>
#include <filesystem>
#include <optional>

namespace bitnet {

/// Empty where nothing limits. The least over the process's group and all groups above it.
struct CgroupLimits {
  std::optional<double> cores;                 ///< CPU quota / period
  std::optional<std::size_t> memory_headroom;  ///< bytes: limit − use, page cache not counted as used
  std::optional<std::size_t> memory_limit;     ///< bytes: that of the group with the least headroom
  std::optional<double> memory_used;           ///< fraction of its limit in use, of the group that is fullest
};

/// Reads /proc/self/cgroup and /sys/fs/cgroup below `root`, version 1, version 2 or both. Files that are
/// absent or make no sense limit nothing; throws nothing but std::bad_alloc.
CgroupLimits cgroup_limits(const std::filesystem::path& root = "/");

}  // namespace bitnet
