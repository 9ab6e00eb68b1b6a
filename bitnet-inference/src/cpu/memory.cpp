#include "cpu/memory.hpp"

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <string>

#include "bitnet/core/error.hpp"

namespace bitnet::inference::cpu {
namespace {

// Allocations from here on are compared with what is available: the kernel promises more than it has, and a
// process that believes it is killed later.
constexpr std::size_t kCheckedBytes = std::size_t{64} << 20;
constexpr std::size_t kHugePageBytes = std::size_t{2} << 20;

/// The number in a one-line file such as memory.max; `otherwise` when it is absent or "max".
std::size_t number_in(const std::string& path, std::size_t otherwise) {
  std::ifstream file(path);
  std::size_t value = 0;
  return file >> value ? value : otherwise;
}

std::size_t cgroup_headroom() {
  constexpr std::size_t kNone = std::numeric_limits<std::size_t>::max();
  std::ifstream self("/proc/self/cgroup");
  std::string line, group;
  while (std::getline(self, line))
    if (line.rfind("0::", 0) == 0) group = line.substr(3);
  const std::string folder = "/sys/fs/cgroup" + group;
  const std::size_t limit = number_in(folder + "/memory.max", kNone);
  if (limit == kNone) return kNone;
  const std::size_t used = number_in(folder + "/memory.current", 0);
  return limit > used ? limit - used : 0;
}

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

std::size_t available_memory() { return std::min(system_headroom(), cgroup_headroom()); }

HostBuffer::HostBuffer(std::size_t bytes) : Buffer(bytes), mapped_(std::max<std::size_t>(bytes, 1)) {
  if (bytes >= kCheckedBytes) {
    const std::size_t available = available_memory();
    if (bytes > available) {
      throw Error(ErrorCode::kOutOfMemory,
                  fmt::format("a buffer of {} bytes: only {} bytes are available", bytes, available));
    }
  }
  void* p = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    throw Error(ErrorCode::kOutOfMemory, fmt::format("the system refused a buffer of {} bytes", bytes));
  }
  if (bytes >= kHugePageBytes) madvise(p, mapped_, MADV_HUGEPAGE);  // advice: failure changes only speed
  data_ = static_cast<std::byte*>(p);
}

HostBuffer::~HostBuffer() { munmap(data_, mapped_); }

}  // namespace bitnet::inference::cpu
