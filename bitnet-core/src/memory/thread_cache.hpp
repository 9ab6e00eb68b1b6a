#pragma once
// What a thread keeps of a pool's small blocks, so that most allocations take no lock: two short lists for
// each size class. Who fills and empties them is small_block_pool.hpp.
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>

#include "sanitizer.hpp"
#include "size_classes.hpp"

namespace bitnet::memory {

/// The inside of a free small block. The mark depends on the pool, the address and the link: a block that has
/// it is free, one on a list that lacks it was written to after it was freed.
struct FreeBlock {
  FreeBlock* next;
  std::uint64_t mark;
};
static_assert(sizeof(FreeBlock) <= class_bytes(0));

// Free blocks are poisoned: only these touch their inside.
BITNET_NO_ASAN inline FreeBlock* next_of(const FreeBlock* block) noexcept { return block->next; }
BITNET_NO_ASAN inline std::uint64_t mark_of(const FreeBlock* block) noexcept { return block->mark; }
BITNET_NO_ASAN inline void set_free(FreeBlock* block, FreeBlock* next, std::uint64_t mark) noexcept {
  block->next = next;
  block->mark = mark;
}
BITNET_NO_ASAN inline void clear_mark(FreeBlock* block) noexcept { block->mark = 0; }

/// Bytes in use as the threads have published them, and the most there ever were.
class UseTotal {
 public:
  void add(std::int64_t bytes) noexcept {
    const std::int64_t now = used_.fetch_add(bytes, std::memory_order_relaxed) + bytes;
    std::int64_t peak = peak_.load(std::memory_order_relaxed);
    while (now > peak && !peak_.compare_exchange_weak(peak, now, std::memory_order_relaxed)) {
    }
  }
  std::int64_t peak() const noexcept { return peak_.load(std::memory_order_relaxed); }
  void clear() noexcept { used_.store(0, std::memory_order_relaxed); }

 private:
  std::atomic<std::int64_t> used_{0}, peak_{0};
};

/// A counter that one thread writes and any may read.
class OwnedCounter {
 public:
  void add(std::uint64_t n) noexcept { value_.store(get() + n, std::memory_order_relaxed); }
  void set(std::uint64_t n) noexcept { value_.store(n, std::memory_order_relaxed); }
  std::uint64_t get() const noexcept { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> value_{0};
};

/// Of one size class. `spare` is empty or a full batch, `head` up to one: a batch goes to and comes from the
/// shared lists whole, and a thread that allocates and frees in turn at the edge of a batch does neither.
struct Bin {
  FreeBlock* head = nullptr;
  FreeBlock* spare = nullptr;
  std::uint32_t count = 0;  ///< of head's list
  std::uint32_t batch = 0;
  OwnedCounter allocations, frees;
};

/// Of one pool and one thread at a time, the only one to touch it; a thread that comes takes over the cache,
/// and the counts in it, of one that ended. Bins are made as their classes are used: of those that are not
/// yet the place is 0, where a bin lies that neither has a block nor room for one.
struct ThreadCache {
  ThreadCache() noexcept : bins(&none) {}
  ~ThreadCache() {
    if (bins != &none) delete[] bins;
  }
  ThreadCache(const ThreadCache&) = delete;
  ThreadCache& operator=(const ThreadCache&) = delete;

  Bin& bin(unsigned size_class) noexcept { return bins[place[size_class]]; }
  bool has(unsigned size_class) const noexcept { return place[size_class] != 0; }
  /// Makes the class's bin; false for want of memory. Under a lock that keeps out those who read counts.
  bool add(unsigned size_class) noexcept;
  std::size_t table_bytes() const noexcept {
    return sizeof(ThreadCache) + (bins == &none ? 0 : capacity * sizeof(Bin));
  }

  Bin* bins;                     // [capacity], of which n_bins are made
  std::int64_t unpublished = 0;  ///< bytes in use that the pool's total does not know of yet
  std::size_t spare_bytes = 0;   ///< in the spare batches
  OwnedCounter asked;            ///< bytes of all allocations so far
  std::uint32_t flush_epoch = 0;
  bool in_use = true;  ///< by a thread
  std::uint8_t n_bins = 1, capacity = 1;
  std::array<std::uint8_t, kMaxClasses> place{};
  Bin none;
};

inline bool ThreadCache::add(unsigned size_class) noexcept {
  constexpr std::uint8_t kStep = 4;
  if (n_bins == capacity) {
    auto* more = new (std::nothrow) Bin[capacity + std::size_t{kStep}];
    if (more == nullptr) return false;
    for (unsigned i = 0; i < n_bins; ++i) {
      more[i].head = bins[i].head;
      more[i].spare = bins[i].spare;
      more[i].count = bins[i].count;
      more[i].batch = bins[i].batch;
      more[i].allocations.set(bins[i].allocations.get());
      more[i].frees.set(bins[i].frees.get());
    }
    if (bins != &none) delete[] bins;
    bins = more;
    capacity = static_cast<std::uint8_t>(capacity + kStep);
  }
  bins[n_bins].batch = batch_blocks(size_class);
  place[size_class] = n_bins++;
  return true;
}

}  // namespace bitnet::memory
