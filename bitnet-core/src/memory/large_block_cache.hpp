#pragma once
// Freed large blocks that wait for the next request of exactly their pages, so that large blocks seldom meet
// at the one lock of the page pool (large_block_pool.hpp): a few blocks in each of some shards, one for a
// thread while there are no more threads than shards, and the depot, lists through which blocks pass from
// those who free to those who allocate, several at a time. What waits here is free memory like what is on the
// page pool's lists: any thread can take it all (flush), so that no allocation is refused for its sake.
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "large_block_pool.hpp"
#include "spin_lock.hpp"
#include "thread_cache.hpp"

namespace bitnet::memory {

/// Thread-safe. Nothing throws.
class LargeBlockCache {
 public:
  /// Half of `bytes` bounds the depot, half the shards together; blocks of more than an eighth of `bytes` go
  /// to the page pool as they are freed. Blocks of `release_from` bytes and more go
  /// back to the system as they are freed. `total` counts bytes in use; null: nobody wants to know.
  LargeBlockCache(LargeBlockPool& pages, UseTotal* total, std::size_t bytes,
                  std::size_t release_from) noexcept;
  ~LargeBlockCache();
  LargeBlockCache(const LargeBlockCache&) = delete;
  LargeBlockCache& operator=(const LargeBlockCache&) = delete;

  /// First page of a block of `pages` ≥ 1, of which `asked` bytes were asked for; LargeBlockPool::kNone,
  /// saying why, where there is none. A block that waited here is not zero.
  std::uint32_t allocate(std::uint32_t pages, std::size_t asked, Outcome& outcome) noexcept;
  /// Takes back the block that begins at `page`; false where no live one does.
  bool free(std::uint32_t page) noexcept;
  /// Gives everything that waits to the page pool, what other threads are moving there included; whether
  /// there was anything.
  bool flush() noexcept;
  /// Forgets every block; no other thread may be at work on the pool. The page pool is reset by its owner.
  void reset() noexcept;

  /// Bytes that wait.
  std::size_t waiting() const noexcept;
  /// Bytes of the largest block that waits, of the depot's as far as they are searched.
  std::size_t largest_waiting() const noexcept;
  struct Counts {
    std::uint64_t allocations = 0, frees = 0, asked = 0, given = 0, freed = 0;  ///< the last three: bytes
  };
  Counts counts() const noexcept;
  std::size_t table_bytes() const noexcept;

 private:
  static constexpr unsigned kShards = 16, kBlocks = 16, kBuckets = 8;
  struct Block {
    std::uint32_t page, pages;
  };
  struct alignas(64) Shard {
    SpinLock lock;
    std::uint32_t count = 0;  // of blocks
    OwnedCounter waiting;     // pages of them; this and the counts below are written under the lock
    OwnedCounter allocations, frees, asked, given, freed;
    std::array<Block, kBlocks> blocks;  // oldest first
  };
  /// Lists of the depot for some sizes each, linked through LargeBlockPool::next_cached().
  struct Bucket {
    SpinLock lock;
    std::uint32_t first = LargeBlockPool::kNone;
  };

  Shard& shard() noexcept;
  Bucket& bucket_of(std::uint32_t pages) noexcept;
  /// Blocks of so many pages that move between a shard and the depot at once; 0: they pass the shards by.
  std::uint32_t batch_of(std::uint32_t pages) const noexcept;
  std::uint32_t pages_of(std::uint32_t page) const noexcept {
    return pages_.info(page).value.load(std::memory_order_relaxed);
  }
  std::uint32_t take(Shard& shard, std::uint32_t pages) noexcept;
  void put(Shard& shard, std::uint32_t page, std::uint32_t pages) noexcept;
  void evict(Shard& shard, std::uint32_t n) noexcept;
  std::uint32_t take_from_depot(std::uint32_t pages, std::uint32_t most) noexcept;
  void put_into_depot(std::uint32_t first, std::uint32_t last, std::size_t n_pages) noexcept;
  /// Takes the lists that `take` returns to the page pool; meanwhile they are in nobody's list.
  template <class Take>
  void give_back(Take&& take) noexcept;
  std::uint32_t take_list(Bucket& bucket) noexcept;
  bool make_room(std::size_t n_pages) noexcept;
  template <class Body>
  void for_each_shard(Body&& body) const;

  LargeBlockPool& pages_;
  UseTotal* const total_;
  const std::size_t shard_pages_, depot_pages_;  // bounds
  const std::size_t longest_;                    // pages of a block that waits
  const std::size_t release_from_;
  Shard first_;                                        // so that there is one in any case
  std::array<std::atomic<Shard*>, kShards> shards_{};  // made as threads come
  mutable std::array<Bucket, kBuckets> buckets_;
  std::atomic<std::size_t> in_depot_{0};  // pages
  std::atomic<unsigned> evicted_{0};      // whose turn it is
  std::atomic<unsigned> moving_{0};       // threads with blocks on the way to the page pool
};

}  // namespace bitnet::memory
