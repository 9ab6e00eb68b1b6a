#pragma once
// Small blocks: spans of pages (from large_block_pool.hpp) cut into blocks of one size class, lists of free
// blocks shared by all threads, and a cache in each thread (thread_cache.hpp). O(1) but for exchanges of a
// batch, whose cost its blocks share.
#include <array>
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
/// lock. Spans are known by their number, 0 is none.
struct Span {
  FreeBlock* free;
  std::uint32_t first_page;
  std::uint32_t next, previous;
  std::uint16_t pages, blocks;
  std::atomic<std::uint16_t> carved;  ///< blocks from the start that were ever handed out
  std::uint16_t out;                  ///< blocks that are live or in a cache or batch
  std::uint8_t size_class;
};
static_assert(sizeof(Span) == 32);

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

  /// The calling thread's cache, made at its first call or taken over from a thread that ended; null when the
  /// thread is ending or memory for the cache is refused: then with_shared_cache() is the way.
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

  /// The thread's cache if it was its last in this pool's place of a few; cache() finds it in any case.
  ThreadCache* near_cache() const noexcept {
    const Slot& slot = slots[id_ % kSlots];
    return slot.pool == id_ ? slot.cache : nullptr;
  }
  /// A block of the class from the cache's list; null where that is empty or damaged: allocate() knows.
  void* take(ThreadCache& cache, unsigned size_class) noexcept {
    Bin& bin = cache.bin(size_class);
    FreeBlock* block = bin.head;
    if (block == nullptr) [[unlikely]]
      return nullptr;
    FreeBlock* next = next_of(block);
    if (mark_of(block) != mark_for(block, next)) [[unlikely]]
      return nullptr;
    __builtin_prefetch(next, 1);  // another thread may have freed it
    bin.head = next;
    --bin.count;
    bin.allocations.add(1);
    clear_mark(block);
    return block;
  }

  /// A block of the class, or null, saying why. Throws Error(kInternal) for a free block that was written to.
  void* allocate(ThreadCache& cache, unsigned size_class, Outcome& outcome) {
    if (cache.bin(size_class).head == nullptr && !refill(cache, size_class, outcome)) [[unlikely]]
      return nullptr;
    void* block = take(cache, size_class);
    if (block == nullptr) [[unlikely]]
      drop_damaged(cache.bin(size_class));
    return block;
  }

  /// Whether `p`, which lies on a page of a span of ours, is a live block, and of which class.
  Misuse check(const void* p, unsigned& size_class) const noexcept {
    const Span& span = span_of(p);
    const std::uint32_t offset = offset_in(span, p);
    size_class = span.size_class;
    const ClassInfo info = kClasses[size_class];
    const auto index = static_cast<std::uint32_t>(std::uint64_t{offset} * info.inverse >> 32);
    if (index * info.bytes != offset || index >= span.carved.load(std::memory_order_relaxed))
      return Misuse::kNotABlock;
    const auto* block = static_cast<const FreeBlock*>(p);
    return mark_of(block) == mark_for(block, next_of(block)) ? Misuse::kAlreadyFree : Misuse::kNone;
  }
  /// Where the block of ours that holds the byte `p` begins, and its size.
  void* block_at(const void* p, std::size_t& bytes) const noexcept;

  /// Takes back what check() found to be a live block of the class.
  void free(ThreadCache& cache, void* p, unsigned size_class) noexcept {
    if (const Bin& full = cache.bin(size_class); full.count == full.batch) [[unlikely]] {
      if (!make_room(cache, size_class)) return free_without_bin(p, size_class);
    }
    Bin& bin = cache.bin(size_class);
    auto* block = static_cast<FreeBlock*>(p);
    set_free(block, bin.head, mark_for(block, bin.head));
    poison(block, kClasses[size_class].bytes);
    bin.head = block;
    ++bin.count;
    bin.frees.add(1);
  }

  /// Gives back to the page pool every span that has no block out, having emptied the shared lists, the
  /// calling thread's cache and, when they next exchange, the others': those are asked at most every 10 ms,
  /// or `now`.
  void reclaim(bool now) noexcept;
  /// Forgets every block; no other thread may be at work on the pool. The page pool is reset by its owner.
  void reset() noexcept;

  unsigned n_classes() const noexcept { return n_classes_; }
  std::size_t bytes_of(unsigned size_class) const noexcept { return kClasses[size_class].bytes; }
  struct Counts {
    std::vector<std::uint64_t> allocations, frees;  // [n_classes]
    std::uint64_t asked = 0;
    std::uint64_t other_frees = 0, other_bytes = 0;  ///< frees for whose counter memory was refused
  };
  Counts counts() const;
  /// Bytes of span and cache tables in use.
  std::size_t table_bytes() const noexcept;
  /// Free blocks that were found written to; where the first lay.
  std::uint64_t damaged(const void*& first) const noexcept {
    first = first_damaged_.load(std::memory_order_relaxed);
    return damaged_.load(std::memory_order_relaxed);
  }

 private:
  friend struct ThreadEnd;
  static constexpr unsigned kSlots = 8, kMaxBatches = 8;
  struct Slot {
    std::uint64_t pool = 0;
    ThreadCache* cache = nullptr;
  };
  static constinit thread_local Slot slots[kSlots];

  /// What all threads share of one class.
  struct Shared {
    SpinLock lock;
    std::uint8_t n_batches = 0;
    std::uint16_t n_spans = 0;
    std::uint32_t partial = 0;      ///< spans that have blocks to give, the list's first
    std::uint32_t empty = 0;        ///< one span without a block out, kept for the next need
    FreeBlock** batches = nullptr;  ///< [kMaxBatches], made with the first
  };
  static constexpr unsigned kSharedAtOnce = 4;

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

  /// Of a class that has blocks.
  Shared& shared_of(unsigned size_class) const noexcept {
    const unsigned place = shared_places_[size_class].load(std::memory_order_acquire) - 1u;
    return shared_lists_[place / kSharedAtOnce][place % kSharedAtOnce];
  }
  bool is_shared(unsigned size_class) const noexcept {
    return shared_places_[size_class].load(std::memory_order_acquire) != 0;
  }
  std::uint32_t number_of(const Span* span) const noexcept {
    return static_cast<std::uint32_t>(span - spans_);
  }

  ThreadCache* find_cache() noexcept;
  ThreadCache* take_cache();
  void retire(ThreadCache* cache) noexcept;
  bool make_bin(ThreadCache& cache, unsigned size_class) noexcept;
  bool refill(ThreadCache& cache, unsigned size_class, Outcome& outcome) noexcept;
  bool make_room(ThreadCache& cache, unsigned size_class) noexcept;
  void free_without_bin(void* p, unsigned size_class) noexcept;
  void flush(ThreadCache& cache) noexcept;
  void count_damaged(const FreeBlock* block) noexcept;
  [[noreturn]] void drop_damaged(Bin& bin);

  // These are under the class's lock.
  Span* new_span(Shared& shared, unsigned size_class, Outcome& outcome) noexcept;
  FreeBlock* take_from_spans(Shared& shared, unsigned size_class, std::uint32_t& count,
                             Outcome& outcome) noexcept;
  FreeBlock* take_one(Span& span, FreeBlock* list) noexcept;
  void give_batch(Shared& shared, FreeBlock* batch) noexcept;
  void return_to_spans(Shared& shared, FreeBlock* list) noexcept;
  void drop_span(Shared& shared, std::uint32_t span) noexcept;
  void link(Shared& shared, Span* span) noexcept;
  void unlink(Shared& shared, Span* span) noexcept;

  LargeBlockPool& pages_;
  UseTotal& total_;
  const std::uint64_t id_, secret_;
  const std::size_t thread_cache_bytes_;
  const unsigned n_classes_;
  LazyTable span_table_;
  Span* const spans_;
  SpinLock spans_lock_;
  std::uint32_t free_spans_ = 0;           // under spans_lock_, linked by next
  std::atomic<std::uint32_t> n_spans_{1};  // the first is none
  // Under caches_mutex_ where they are written, with places_ last.
  std::array<std::atomic<std::uint8_t>, kMaxClasses> shared_places_{};  // 1 + place; 0: none yet
  std::array<std::unique_ptr<Shared[]>, kMaxClasses / kSharedAtOnce> shared_lists_;
  unsigned n_shared_ = 0;
  std::atomic<std::uint32_t> flush_epoch_{0};
  std::atomic<std::int64_t> last_asked_{0};  // when all threads were last asked to flush, ms
  std::atomic<std::uint64_t> other_frees_{0}, other_bytes_{0}, damaged_{0};
  std::atomic<const void*> first_damaged_{nullptr};
  mutable std::mutex caches_mutex_;
  std::vector<std::unique_ptr<ThreadCache>> caches_;
  SpinLock shared_lock_;
  ThreadCache shared_;  // under shared_lock_
};

}  // namespace bitnet::memory
