#pragma once
// The host's memory pool: small blocks from spans with a cache in each thread, large ones from a buddy system
// over one reserved range of addresses. docs/guides/memory.md follows one allocation through it. The
// interface that it implements is in memory_resource.hpp, handles in memory_handle.hpp, what it counts in
// memory_stats.hpp.
#include <memory>
#include <string>

#include "bitnet/core/memory/memory_resource.hpp"

namespace bitnet {

/// True where the library was built for debugging (without NDEBUG).
bool checks_blocks_by_default() noexcept;

struct MemoryPoolOptions {
  std::string name = "memory";  ///< in errors and reports
  /// Most bytes that the pool may hold, caches included.
  std::size_t limit = kNoMemoryLimit;
  /// Blocks up to this many bytes are small: a power of two from 1 KiB to 1 MiB.
  std::size_t small_threshold = std::size_t{64} << 10;
  /// Most bytes of free small blocks that a thread keeps for itself, beside 16 KiB (of larger blocks up to
  /// four, and 256 KiB) of each size that it uses.
  std::size_t thread_cache_bytes = std::size_t{1} << 20;
  /// Most bytes of free large blocks that wait, whole, for the next request of their size; an eighth of the
  /// limit if that is less. They are free memory: held() does not count them, and whoever needs it gets it.
  std::size_t large_cache_bytes = std::size_t{32} << 20;
  /// Large blocks of at least so many bytes go back to the system as they are freed; the rest waits for
  /// trim().
  std::size_t release_from = kNoMemoryLimit;
  /// Asks for huge pages under blocks of 2 MiB and more.
  bool huge_pages = true;
  TrackingLevel tracking = TrackingLevel::kBasic;
  /// A header before and a mark behind each block, checked when it comes back: 16 bytes and
  /// its alignment, at least 32, more a block.
  bool check_blocks = checks_blocks_by_default();
};

/// Of default_memory_pool(): "host", without a limit.
MemoryPoolOptions host_pool_options();

/// Blocks never move. Thread-safe but for reset() and the destructor, which need every other thread to be
/// done with the pool. Whether free blocks were written to is checked in every build when they are handed out
/// again; AddressSanitizer sees accesses to free blocks and behind the bytes asked for.
class HybridMemoryPool final : public MemoryResource {
 public:
  /// Reserves addresses, no memory. Throws Error(kInvalidArgument) for options out of range and
  /// Error(kOutOfMemory) where the system refuses the addresses.
  explicit HybridMemoryPool(MemoryPoolOptions options = {});
  /// Logs what is still live, from kStandard on by tag, at kDetailed with the stacks of the largest blocks;
  /// where something is, the memory stays mapped.
  ~HybridMemoryPool() override;

  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment = kDefaultAlignment,
                               MemoryTag tag = kUntagged) override;
  [[nodiscard]] void* try_allocate(std::size_t bytes, std::size_t alignment = kDefaultAlignment,
                                   MemoryTag tag = kUntagged) override;
  /// A block of zeros. Large ones come from the system page by page, as they are touched.
  [[nodiscard]] void* allocate_zeroed(std::size_t bytes, std::size_t alignment = kDefaultAlignment,
                                      MemoryTag tag = kUntagged);
  void deallocate(void* block) override;
  /// What lies in these bytes of a live block is not needed any more: the system gets the whole pages among
  /// them, which read as zeros from then on; the rest stays as it is. Returns their bytes, 0 where the system
  /// does not take them (locked memory). Throws Error(kInvalidArgument) for bytes that are not all of
  /// one block, as far as the pool can tell: whether a small one is live it does not ask.
  std::size_t discard(void* from, std::size_t bytes);

  std::string_view name() const noexcept override;
  /// Sums over the threads; exact while none allocates. A few µs, 0.2 ms where free memory is in 10^4 pieces.
  MemoryStats stats() const override;
  /// Empties this thread's cache of small blocks and all that are shared, asks the other threads to empty
  /// theirs when they next need a refill, joins what is free and gives its pages back.
  TrimReport trim() override;

  /// Takes back every block at once: handles become stale, raw pointers dangle. Not of default_memory_pool(),
  /// whose blocks are everybody's. Throws nothing.
  void reset() noexcept;

  const MemoryPoolOptions& options() const noexcept;
  /// Bytes that blocks and caches occupy; cheap.
  std::size_t held() const noexcept;
  /// What blocks can occupy at most: the limit, or the pool's addresses where the system gives few (ulimit
  /// -v). One block takes at most half of the addresses.
  std::size_t capacity() const noexcept;
  /// Whether the address lies in the pool's range, live or not.
  bool owns(const void* address) const noexcept;
  /// By tag, over time, and block by block; empty below the level that keeps them.
  std::vector<TagStats> tags() const;
  std::vector<MemorySample> timeline() const;
  std::vector<LiveBlock> live_blocks() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// The pool that contexts and tensors share unless they are given one. Made by the first call, which may
/// throw what making a pool throws; never destroyed, so that objects of static duration may use it, and so
/// without a report of leaks: who wants one makes a pool. A child of fork() has one of its own from its first
/// call on; it must not free blocks of its parent's.
const std::shared_ptr<HybridMemoryPool>& default_memory_pool();

}  // namespace bitnet
