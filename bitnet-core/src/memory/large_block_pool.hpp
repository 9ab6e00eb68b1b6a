#pragma once
// A buddy system over pages of an address range: large blocks, and the spans that small blocks are cut from
// (small_block_pool.hpp). A block takes exactly its pages: what a power of two has beyond them goes back to
// the free lists in pages. Free buddies join at once. The range itself is in address_range.hpp; freed large
// blocks wait in large_block_cache.hpp before they come here.
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "address_range.hpp"
#include "size_classes.hpp"
#include "spin_lock.hpp"

namespace bitnet::memory {

enum class PageKind : std::uint8_t {
  kNothing,  ///< inside of a free or large block
  kFree,     ///< first page of a free block
  kLarge,    ///< first page of a large block
  kSpan,     ///< a page of a span
  kCached,   ///< first page of a large block that is free, but not on the free lists
};

/// Of each page of the range; 16 bytes, of which a pool has touched those it has used.
struct PageInfo {
  /// Kind in bits 0–7, order of a free block in 8–15, bit 16: a free block may hold memory. Free blocks' is
  /// written under the lock, that of others by those whose block it is.
  std::atomic<std::uint32_t> state{0};
  std::atomic<std::uint32_t> value{0};   ///< large or cached: pages; span: its number
  std::uint32_t next = 0, previous = 0;  ///< of a list of free blocks, or of cached ones

  PageKind kind() const noexcept {
    return static_cast<PageKind>(state.load(std::memory_order_relaxed) & 0xff);
  }
};

/// Why there is no block.
enum class Refusal : std::uint8_t { kLimit, kFragmented, kSystem };

/// What is to be known of an allocation beside the block.
struct Outcome {
  Refusal why = Refusal::kLimit;  ///< where there is none
  bool zero = false;              ///< the block was never written to since the system gave it
};

/// Thread-safe. Nothing throws.
class LargeBlockPool {
 public:
  static constexpr std::uint32_t kNone = 0xffffffff;

  LargeBlockPool(std::size_t limit, bool huge_pages);
  ~LargeBlockPool();

  /// First page of `pages` ≥ 1 fresh pages, or kNone, saying why. `value` is what a span's pages refer to.
  std::uint32_t allocate(std::uint32_t pages, PageKind kind, std::uint32_t value, Outcome& outcome) noexcept;
  /// Pages of the large block that begins at `page`, which is then its caller's and cached; 0 where none
  /// begins there.
  std::uint32_t close(std::uint32_t page) noexcept;
  /// The reverse: the cached block is a large one again.
  void open(std::uint32_t page) noexcept {
    pages_[page].state.store(static_cast<std::uint32_t>(PageKind::kLarge), std::memory_order_relaxed);
  }
  /// The next of a list of cached blocks, which belongs to its list's owner.
  std::uint32_t& next_cached(std::uint32_t page) noexcept { return pages_[page].next; }
  /// Frees a cached block; `release` gives its pages back to the system.
  void free_large(std::uint32_t page, bool release) noexcept;
  /// Frees a list of cached blocks that ends with kNone.
  void free_list(std::uint32_t first) noexcept;
  void free_span(std::uint32_t page, std::uint32_t pages) noexcept;

  /// First page of the large block that the page lies in, or kNone.
  std::uint32_t head_of(std::uint32_t page) const noexcept;

  /// Gives the memory of free blocks back; bytes offered.
  std::size_t release_free() noexcept;
  /// Takes back everything at once.
  void reset() noexcept;

  const AddressRange& range() const noexcept { return range_; }
  AddressRange& range() noexcept { return range_; }
  std::byte* address(std::uint32_t page) const noexcept {
    return range_.base() + static_cast<std::size_t>(page) * kPageBytes;
  }
  const PageInfo& info(std::uint32_t page) const noexcept { return pages_[page]; }
  std::uint32_t n_pages() const noexcept { return n_pages_; }

  std::size_t held() const noexcept { return held_.load(std::memory_order_relaxed) * kPageBytes; }
  std::size_t limit() const noexcept { return limit_; }
  std::size_t peak_held() const noexcept { return peak_.load(std::memory_order_relaxed) * kPageBytes; }
  /// Committed bytes of free blocks that may hold memory, and the largest of them; exact while no other
  /// thread allocates or frees. Takes the lock for a few dozen blocks at a time.
  void free_bytes(std::size_t& sum, std::size_t& largest) noexcept;
  /// Bytes of page table behind the highest page ever used.
  std::size_t table_bytes() const noexcept { return table_bytes(touched_.load() * kPageBytes); }
  /// Of it, what belongs to so many bytes of pages.
  static constexpr std::size_t table_bytes(std::size_t bytes) noexcept {
    return bytes / kPageBytes * sizeof(PageInfo);
  }

 private:
  static constexpr unsigned kOrders = 32;
  static constexpr std::uint32_t kDirty = 1u << 16;

  bool is_free(std::uint32_t page, unsigned order) const noexcept;
  bool is_dirty(std::uint32_t page) const noexcept {
    return (pages_[page].state.load(std::memory_order_relaxed) & kDirty) != 0;
  }
  void link(std::uint32_t page, unsigned order, bool dirty) noexcept;
  void unlink(std::uint32_t page, unsigned order) noexcept;
  void insert(std::uint32_t page, unsigned order, bool dirty) noexcept;
  void insert_pages(std::uint32_t first, std::uint32_t end, bool dirty) noexcept;
  void set_peak(std::size_t held) noexcept;
  unsigned dirty_blocks(unsigned order, std::uint32_t& cursor, std::span<std::uint32_t> out) noexcept;
  bool release_one(unsigned order, std::size_t& offered) noexcept;

  const std::size_t limit_;
  const bool huge_pages_;
  AddressRange range_;
  const std::uint32_t n_pages_;
  const unsigned top_order_;
  LazyTable table_;
  PageInfo* const pages_;
  SpinLock lock_;
  // Blocks that may hold memory stand at the front of their list; they are taken before all others.
  std::array<std::uint32_t, kOrders> first_{}, last_{};
  std::uint64_t has_free_ = 0, has_dirty_ = 0;  // bit per order
  // Free blocks that are on no list while the system takes their pages: nobody's, so that others need not
  // wait for the system, but for those who find no other block.
  unsigned releasing_ = 0;
  std::atomic<std::size_t> held_{0}, peak_{0}, touched_{0};
};

}  // namespace bitnet::memory
