// Host buffers of the CPU backend, and how much memory caches may take: the system's and the control group's
// headroom.
#include "cpu/memory.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>
#include <utility>

#include "bitnet/core/cgroup.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/memory/memory_handle.hpp"

namespace bitnet::inference::cpu {
namespace {

// Allocations from here on are compared with what is available: the kernel promises more than it has, and a
// process that believes it is killed later.
constexpr std::size_t kCheckedBytes = std::size_t{64} << 20;

// Smaller buffers begin at a cache line: whole pages would add more than an eighth to them.
constexpr std::size_t kPageAlignedBytes = std::size_t{32} << 10, kCacheLine = 64;

std::size_t system_headroom() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  std::size_t kilobytes = 0;
  while (file >> key >> kilobytes) {
    if (key == "MemAvailable:") return kilobytes * 1024;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return static_cast<std::size_t>(sysconf(_SC_AVPHYS_PAGES)) *
         static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

}  // namespace

std::size_t available_memory() {
  const std::size_t system = system_headroom();
  return std::min(system, cgroup_limits().memory_headroom.value_or(system));
}

std::size_t total_memory() {
  return static_cast<std::size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

HostBuffer::HostBuffer(std::size_t bytes, std::shared_ptr<HybridMemoryPool> pool, MemoryTag tag)
    : Buffer(bytes), pool_(std::move(pool)) {
  if (bytes >= kCheckedBytes) {
    const std::size_t available = available_memory();
    if (bytes > available) {
      throw Error(ErrorCode::kOutOfMemory,
                  fmt::format("a buffer of {} bytes: only {} bytes are available", bytes, available));
    }
  }
  const std::size_t alignment = bytes < kPageAlignedBytes ? kCacheLine : kMaxAlignment;
  data_ = static_cast<std::byte*>(pool_->allocate_zeroed(std::max<std::size_t>(bytes, 1), alignment, tag));
}

HostBuffer::~HostBuffer() { detail::deallocate_or_log(*pool_, data_); }

}  // namespace bitnet::inference::cpu
