// mmap, mprotect and madvise. Reserved addresses are PROT_NONE: the system charges nothing for them, and what
// is not committed cannot be touched by mistake. Neighbours in the address space cannot grow into the range's
// mapping, since a page at either end stays PROT_NONE.
#include "address_range.hpp"

#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include "bitnet/core/error.hpp"
#include "size_classes.hpp"

namespace bitnet::memory {

namespace {

/// As many addresses as one range may take of those that the process may have.
std::size_t most_addresses() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY)
    return std::numeric_limits<std::size_t>::max();
  return limit.rlim_cur / 4;
}

/// Null where the system has not so many.
void* reserve(std::size_t bytes) {
  void* mapping = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return mapping == MAP_FAILED ? nullptr : mapping;
}

/// Memory whose pages come with their first write; MAP_FAILED where the system refuses.
void* map_lazily(std::size_t bytes) {
  return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

/// Calls body(first, last) for each run of parts in [begin, end) whose bit is not set, and sets their bits;
/// false, at once, where body is. Two threads may both do a run.
template <class Body>
bool set_bits(std::atomic<std::uint64_t>* words, std::size_t begin, std::size_t end, Body&& body) {
  const auto is_set = [words](std::size_t i) {
    return (words[i / 64].load(std::memory_order_acquire) >> (i % 64) & 1) != 0;
  };
  for (std::size_t first = begin; first < end;) {
    if (is_set(first)) {
      ++first;
      continue;
    }
    std::size_t last = first + 1;
    while (last < end && !is_set(last)) ++last;
    if (!body(first, last)) return false;
    for (std::size_t i = first; i < last; ++i)
      words[i / 64].fetch_or(std::uint64_t{1} << (i % 64), std::memory_order_release);
    first = last;
  }
  return true;
}

}  // namespace

AddressRange::AddressRange(std::size_t bytes, std::size_t least) {
  constexpr std::size_t kBeside = kHugePageBytes + 2 * kPageBytes;
  const std::size_t most = std::max(least, most_addresses());
  std::size_t size = bytes;
  while (size > most) size /= 2;
  bool refused = false;
  for (; size >= std::max(least, kHugePageBytes); size /= 2, refused = true) {
    mapping_ = reserve(size + kBeside);
    if (mapping_ == nullptr) continue;
    if (!refused || size / 2 < least) break;
    munmap(mapping_, size + kBeside);  // the last ones are not for us
    size /= 2;
    mapping_ = reserve(size + kBeside);
    break;
  }
  if (mapping_ == nullptr)
    throw Error(ErrorCode::kOutOfMemory, fmt::format("the system refuses {} bytes of addresses", least));
  mapping_bytes_ = size + kBeside;
  bytes_ = size;
  const std::uintptr_t first = reinterpret_cast<std::uintptr_t>(mapping_) + kPageBytes;
  base_ = static_cast<std::byte*>(mapping_) + kPageBytes +
          (kHugePageBytes - first % kHugePageBytes) % kHugePageBytes;
  try {
    bits_ = std::make_unique<LazyTable>((bytes_ / kHugePageBytes + 63) / 64 * 2 * sizeof(Word));
  } catch (...) {
    munmap(mapping_, mapping_bytes_);
    throw;
  }
}

AddressRange::~AddressRange() {
  if (!leaked_) munmap(mapping_, mapping_bytes_);
}

bool AddressRange::commit(std::size_t offset, std::size_t bytes, bool huge) noexcept {
  const std::size_t begin = offset / kHugePageBytes, end = (offset + bytes - 1) / kHugePageBytes + 1;
  const auto part = [this](std::size_t i) { return base_ + i * kHugePageBytes; };
  const bool done = set_bits(committed_words(), begin, end, [&](std::size_t first, std::size_t last) {
    return mprotect(part(first), (last - first) * kHugePageBytes, PROT_READ | PROT_WRITE) == 0;
  });
  if (!done || !huge) return done;
  return set_bits(huge_words(), begin, end, [&](std::size_t first, std::size_t last) {
    madvise(part(first), (last - first) * kHugePageBytes, MADV_HUGEPAGE);
    return true;
  });
}

bool AddressRange::any_committed(std::size_t offset, std::size_t bytes) const noexcept {
  const std::size_t first = offset / kHugePageBytes, last = (offset + bytes - 1) / kHugePageBytes;
  for (std::size_t word = first / 64; word <= last / 64; ++word) {
    std::uint64_t bits = committed_words()[word].load(std::memory_order_relaxed);
    if (word == first / 64) bits = bits >> (first % 64) << (first % 64);
    if (word == last / 64) bits &= ~std::uint64_t{0} >> (63 - last % 64);
    if (bits != 0) return true;
  }
  return false;
}

std::size_t AddressRange::committed(std::size_t offset, std::size_t bytes) const noexcept {
  const std::size_t end = offset + bytes;
  std::size_t sum = 0;
  for (std::size_t i = offset / kHugePageBytes; i * kHugePageBytes < end;) {
    const std::uint64_t word = committed_words()[i / 64].load(std::memory_order_relaxed);
    if (word == 0) {
      i = (i / 64 + 1) * 64;
      continue;
    }
    if ((word >> (i % 64) & 1) != 0)
      sum += std::min(end, (i + 1) * kHugePageBytes) - std::max(offset, i * kHugePageBytes);
    ++i;
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

bool LazyTable::fits(std::size_t bytes) noexcept {
  void* mapping = map_lazily(bytes);
  return mapping != MAP_FAILED && munmap(mapping, bytes) == 0;
}

LazyTable::LazyTable(std::size_t bytes) : data_(map_lazily(bytes)), bytes_(bytes) {
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
