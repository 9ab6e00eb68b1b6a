#pragma once
// Small blocks: spans of pages (from large_block_pool.hpp) cut into blocks of one size class, lists of free
// blocks shared by all threads, and a cache in each thread (thread_cache.hpp). O(1) but for exchanges of a
// batch, whose cost its blocks share.
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "large_block_pool.hpp"
#include "thread_cache.hpp"

namespace bitnet::memory {

/// Pages cut into blocks of one class. Everything but first_page, size_class and carved is under its class's
/// lock.
struct alignas(64) Span {
  std::uint32_t first_page, pages, size_class, blocks;
  std::uint32_t inverse;              ///< 2^32 / block size, rounded down, plus one
  std::atomic<std::uint32_t> carved;  ///< blocks from the start that were ever handed out
  std::uint32_t out;                  ///< blocks that are live or in a cache or batch
  FreeBlock* free;
  Span *next, *previous;
};

/// Why a pointer is no live small block.
enum class Misuse : std::uint8_t { kNone, kNotABlock, kAlreadyFree };

/// Thread-safe; what takes a ThreadCache is for that cache's thread alone.
class SmallBlockPool {
 public:
  SmallBlockPool(LargeBlockPool& pages, UseTotal& total, std::size_t threshold,
                 std::size_t thread_cache_bytes);
  ~SmallBlockPool();
  SmallBlockPool(const SmallBlockPool&) = delete;
  SmallBlockPool& operator=(const SmallBlockPool&) = delete;

  /// The calling thread's cache, made at its first call; null when the thread is ending or memory for the
  /// cache is refused: then with_shared_cache() is the way.
  ThreadCache* cache() noexcept {
    const Slot& slot = slots[id_ % kSlots];
    return slot.pool == id_ ? slot.cache : find_cache();
  }
  /// body(cache) with a cache that all threads without one of their own share, under its lock.
  template <class Body>
  decltype(auto) with_shared_cache(Body&& body) {
    const std::lock_guard guard(shared_lock_);
    return body(shared_);
  }

  /// A block of the class, or null, saying why. Throws Error(kInternal) for a free block that was written to.
  void* allocate(ThreadCache& cache, unsigned size_class, Outcome& outcome) {
    Bin& bin = cache.bins[size_class];
    if (bin.head == nullptr && !refill(cache, size_class, outcome)) [[unlikely]]
      return nullptr;
    FreeBlock* block = bin.head;
    FreeBlock* next = next_of(block);
    if (mark_of(block) != mark_for(block, next)) [[unlikely]]
      drop_damaged(bin, block);
    bin.head = next;
    --bin.count;
    bin.allocations.add(1);
    clear_mark(block);
    return block;
  }

  /// Whether `p`, which lies on a page of a span of ours, is a live block, and of which class.
  Misuse check(const void* p, unsigned& size_class) const noexcept {
    const Span& span = span_of(p);
    const std::uint32_t offset = offset_in(span, p);
    const auto index = static_cast<std::uint32_t>(std::uint64_t{offset} * span.inverse >> 32);
    size_class = span.size_class;
    if (index * class_bytes_[size_class] != offset || index >= span.carved.load(std::memory_order_relaxed))
      return Misuse::kNotABlock;
    const auto* block = static_cast<const FreeBlock*>(p);
    return mark_of(block) == mark_for(block, next_of(block)) ? Misuse::kAlreadyFree : Misuse::kNone;
  }
  /// Where the block of ours that holds the byte `p` begins, and its size.
  void* block_at(const void* p, std::size_t& bytes) const noexcept;

  /// Takes back what check() found to be a live block of the class.
  void free(ThreadCache& cache, void* p, unsigned size_class) noexcept {
    Bin& bin = cache.bins[size_class];
    if (bin.count == bin.batch) [[unlikely]]
      make_room(cache, size_class);
    auto* block = static_cast<FreeBlock*>(p);
    set_free(block, bin.head, mark_for(block, bin.head));
    poison(block, class_bytes_[size_class]);
    bin.head = block;
    ++bin.count;
    bin.frees.add(1);
  }

  /// Gives back to the page pool every span that has no block out, having emptied the shared lists, the
  /// calling thread's cache and, when they next exchange, the others'.
  void reclaim() noexcept;
  /// Forgets every block; no other thread may be at work on the pool. The page pool is reset by its owner.
  void reset() noexcept;

  unsigned n_classes() const noexcept { return n_classes_; }
  std::size_t bytes_of(unsigned size_class) const noexcept { return class_bytes_[size_class]; }
  struct Counts {
    std::vector<std::uint64_t> allocations, frees;  // [n_classes]
    std::uint64_t asked = 0;
    std::size_t caches = 0;  ///< how many
  };
  Counts counts() const;
  /// Bytes of span and cache tables in use.
  std::size_t table_bytes() const noexcept;

 private:
  friend struct ThreadEnd;
  static constexpr unsigned kSlots = 8, kMaxBatches = 8;
  struct Slot {
    std::uint64_t pool = 0;
    ThreadCache* cache = nullptr;
  };
  static constinit thread_local Slot slots[kSlots];

  /// What all threads share of one class.
  struct alignas(64) Shared {
    SpinLock lock;
    unsigned n_batches = 0;
    FreeBlock* batches[kMaxBatches] = {};
    Span* partial = nullptr;  ///< spans that have blocks to give, the list's first
    Span* empty = nullptr;    ///< one span without a block out, kept for the next need
  };

  std::uint64_t mark_for(const FreeBlock* block, const FreeBlock* next) const noexcept {
    return secret_ ^ reinterpret_cast<std::uintptr_t>(block) ^
           std::rotl(std::uint64_t{reinterpret_cast<std::uintptr_t>(next)}, 23);
  }
  std::uint32_t page_of(const void* p) const noexcept {
    return static_cast<std::uint32_t>(
        static_cast<std::size_t>(static_cast<const std::byte*>(p) - pages_.range().base()) / kPageBytes);
  }
  Span& span_of(const void* p) const noexcept {
    return spans_[pages_.info(page_of(p)).value.load(std::memory_order_relaxed)];
  }
  std::uint32_t offset_in(const Span& span, const void* p) const noexcept {
    return static_cast<std::uint32_t>(static_cast<const std::byte*>(p) - pages_.address(span.first_page));
  }

  ThreadCache* find_cache() noexcept;
  void retire(ThreadCache* cache) noexcept;
  bool refill(ThreadCache& cache, unsigned size_class, Outcome& outcome) noexcept;
  void make_room(ThreadCache& cache, unsigned size_class) noexcept;
  void flush(ThreadCache& cache) noexcept;
  [[noreturn]] void drop_damaged(Bin& bin, FreeBlock* block);

  // These are under the class's lock.
  Span* new_span(unsigned size_class, Outcome& outcome) noexcept;
  FreeBlock* take_from_spans(Shared& shared, unsigned size_class, std::uint32_t& count,
                             Outcome& outcome) noexcept;
  FreeBlock* take_one(Span& span, FreeBlock* list) noexcept;
  void give_batch(Shared& shared, FreeBlock* batch) noexcept;
  void return_to_spans(Shared& shared, FreeBlock* list) noexcept;
  void drop_span(Span* span) noexcept;
  static void link(Shared& shared, Span* span) noexcept;
  static void unlink(Shared& shared, Span* span) noexcept;

  LargeBlockPool& pages_;
  UseTotal& total_;
  const std::uint64_t id_, secret_;
  const std::size_t thread_cache_bytes_;
  const unsigned n_classes_;
  std::uint32_t class_bytes_[kMaxClasses];
  LazyTable span_table_;
  Span* const spans_;
  SpinLock spans_lock_;
  Span* free_spans_ = nullptr;  // under spans_lock_, linked by next
  std::atomic<std::uint32_t> n_spans_{0};
  std::unique_ptr<Shared[]> shared_lists_;  // [n_classes]
  std::atomic<std::uint32_t> flush_epoch_{0};
  mutable std::mutex caches_mutex_;
  std::vector<std::unique_ptr<ThreadCache>> caches_;
  SpinLock shared_lock_;
  ThreadCache shared_;   // under shared_lock_
  ThreadCache retired_;  // counts of threads that ended; under caches_mutex_
};

}  // namespace bitnet::memory
