// mmap, mprotect and madvise. Reserved addresses are PROT_NONE: the system charges nothing for them, and what
// is not committed cannot be touched by mistake. Neighbours in the address space cannot grow into the range's
// mapping, since a page at either end stays PROT_NONE.
#include "address_range.hpp"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "bitnet/core/error.hpp"
#include "size_classes.hpp"

namespace bitnet::memory {

AddressRange::AddressRange(std::size_t bytes, std::size_t least) {
  for (std::size_t size = bytes; size >= least && size >= kHugePageBytes; size /= 2) {
    const std::size_t total = size + kHugePageBytes + 2 * kPageBytes;
    void* mapping = mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) continue;
    mapping_ = mapping;
    mapping_bytes_ = total;
    const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(mapping) + kPageBytes;
    const std::size_t pad = (kHugePageBytes - first % kHugePageBytes) % kHugePageBytes;
    base_ = static_cast<std::byte*>(mapping) + kPageBytes + pad;
    bytes_ = size;
    break;
  }
  if (base_ == nullptr)
    throw Error(ErrorCode::kOutOfMemory, fmt::format("the system refuses {} bytes of addresses", least));
  committed_.resize(bytes_ / kHugePageBytes);
  huge_.resize(bytes_ / kHugePageBytes);
}

AddressRange::~AddressRange() {
  if (!leaked_) munmap(mapping_, mapping_bytes_);
}

bool AddressRange::commit(std::size_t offset, std::size_t bytes, bool huge) noexcept {
  for (std::size_t i = offset / kHugePageBytes; i * kHugePageBytes < offset + bytes; ++i) {
    std::byte* part = base_ + i * kHugePageBytes;
    if (!committed_[i]) {
      if (mprotect(part, kHugePageBytes, PROT_READ | PROT_WRITE) != 0) return false;
      committed_[i] = true;
    }
    if (huge && !huge_[i]) {
      madvise(part, kHugePageBytes, MADV_HUGEPAGE);
      huge_[i] = true;
    }
  }
  return true;
}

std::size_t AddressRange::committed(std::size_t offset, std::size_t bytes) const noexcept {
  const std::size_t end = offset + bytes;
  std::size_t sum = 0;
  for (std::size_t i = offset / kHugePageBytes; i * kHugePageBytes < end; ++i) {
    if (!committed_[i]) continue;
    sum += std::min(end, (i + 1) * kHugePageBytes) - std::max(offset, i * kHugePageBytes);
  }
  return sum;
}

bool AddressRange::release(std::size_t offset, std::size_t bytes) const noexcept {
  return madvise(base_ + offset, bytes, MADV_DONTNEED) == 0;
}

std::size_t AddressRange::resident() const {
  // A mapping is a line "<from>-<to> <permissions> …", then lines "<Key>: <value> kB".
  std::ifstream smaps("/proc/self/smaps");
  const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(base_);
  std::size_t sum = 0;
  bool ours = false;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long from = 0, to = 0, kib = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &from, &to) == 2) {
      ours = from < begin + bytes_ && to > begin;
    } else if (ours && std::sscanf(line.c_str(), "Rss: %lu kB", &kib) == 1) {
      sum += std::size_t{kib} * 1024;
    }
  }
  return sum;
}

LazyTable::LazyTable(std::size_t bytes)
    : data_(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)),
      bytes_(bytes) {
  if (data_ == MAP_FAILED)
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("the system refuses a memory pool's table of {} bytes", bytes));
}

LazyTable::~LazyTable() { munmap(data_, bytes_); }

void LazyTable::clear() noexcept {
  if (madvise(data_, bytes_, MADV_DONTNEED) == 0) return;
  // Locked memory (mlockall) can be mapped anew, but not given back.
  if (mmap(data_, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
           0) == MAP_FAILED)
    std::memset(data_, 0, bytes_);
}

}  // namespace bitnet::memory
