// The buddy system. A free block of order k is 2^k pages that begin at a multiple of 2^k; its buddy is the
// block whose number differs in bit k alone.
#include "large_block_pool.hpp"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <mutex>
#include <thread>

#include "bitnet/core/memory/memory_stats.hpp"
#include "sanitizer.hpp"

namespace bitnet::memory {
namespace {

constexpr std::size_t kLeastRange = std::size_t{64} << 20, kMostRange = std::size_t{1} << 42;

/// Of a page: its PageInfo, and a sixteenth of a Span (small_block_pool.hpp).
constexpr std::size_t kTableBytesOfPage = sizeof(PageInfo) + 2;

/// Room for twice the limit, or twice the machine's memory, so that it is memory that runs out first and not
/// aligned addresses. Where the process may not write to tables of that size (RLIMIT_DATA, or a system that
/// counts what is mapped and not touched), for half of those that it may, so that there is some left for
/// blocks and others.
std::size_t range_bytes(std::size_t limit) {
  const auto pages = static_cast<std::size_t>(std::max(1L, sysconf(_SC_PHYS_PAGES)));
  const std::size_t most = std::min(limit, pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE)));
  std::size_t bytes = std::clamp(std::bit_ceil(std::min(most, kMostRange / 2) * 2), kLeastRange, kMostRange);
  const auto fits = [&] { return LazyTable::fits(bytes / kPageBytes * kTableBytesOfPage); };
  if (fits()) return bytes;
  while (bytes > kLeastRange && !fits()) bytes /= 2;
  return std::max(bytes / 2, kLeastRange);
}

unsigned floor_log2(std::uint32_t n) { return static_cast<unsigned>(std::bit_width(n)) - 1; }

}  // namespace

LargeBlockPool::LargeBlockPool(std::size_t limit, bool huge_pages)
    : limit_(limit),
      huge_pages_(huge_pages),
      range_(range_bytes(limit), kLeastRange),
      n_pages_(static_cast<std::uint32_t>(range_.bytes() / kPageBytes)),
      top_order_(floor_log2(n_pages_)),
      table_(static_cast<std::size_t>(n_pages_) * sizeof(PageInfo)),
      pages_(static_cast<PageInfo*>(table_.data())) {  // all zero: kNothing
  first_.fill(kNone);
  last_.fill(kNone);
  link(0, top_order_, false);
}

LargeBlockPool::~LargeBlockPool() {
  unpoison(range_.base(), touched_.load(std::memory_order_relaxed) * kPageBytes);
}

bool LargeBlockPool::is_free(std::uint32_t page, unsigned order) const noexcept {
  const std::uint32_t state = pages_[page].state.load(std::memory_order_relaxed) & ~kDirty;
  return state == (static_cast<std::uint32_t>(PageKind::kFree) | order << 8);
}

void LargeBlockPool::link(std::uint32_t page, unsigned order, bool dirty) noexcept {
  PageInfo& info = pages_[page];
  info.state.store(static_cast<std::uint32_t>(PageKind::kFree) | order << 8 | (dirty ? kDirty : 0),
                   std::memory_order_relaxed);
  std::uint32_t& end = dirty ? first_[order] : last_[order];
  info.next = dirty ? end : kNone;
  info.previous = dirty ? kNone : end;
  if (end != kNone) (dirty ? pages_[end].previous : pages_[end].next) = page;
  end = page;
  std::uint32_t& other = dirty ? last_[order] : first_[order];
  if (other == kNone) other = page;
  has_free_ |= std::uint64_t{1} << order;
  if (dirty) has_dirty_ |= std::uint64_t{1} << order;
}

void LargeBlockPool::unlink(std::uint32_t page, unsigned order) noexcept {
  PageInfo& info = pages_[page];
  (info.previous == kNone ? first_[order] : pages_[info.previous].next) = info.next;
  (info.next == kNone ? last_[order] : pages_[info.next].previous) = info.previous;
  if (first_[order] == kNone) has_free_ &= ~(std::uint64_t{1} << order);
  if (first_[order] == kNone || !is_dirty(first_[order])) has_dirty_ &= ~(std::uint64_t{1} << order);
  info.state.store(0, std::memory_order_relaxed);
}

void LargeBlockPool::insert(std::uint32_t page, unsigned order, bool dirty) noexcept {
  for (; order < top_order_; ++order) {
    const std::uint32_t buddy = page ^ (std::uint32_t{1} << order);
    if (!is_free(buddy, order)) break;
    dirty = dirty || is_dirty(buddy);
    unlink(buddy, order);
    page = std::min(page, buddy);
  }
  link(page, order, dirty);
}

void LargeBlockPool::insert_pages(std::uint32_t first, std::uint32_t end, bool dirty) noexcept {
  while (first != end) {
    const unsigned aligned = first == 0 ? kOrders : static_cast<unsigned>(std::countr_zero(first));
    const unsigned order = std::min(aligned, floor_log2(end - first));
    // Of what was never committed nothing was ever used, whatever it was joined with meanwhile.
    insert(first, order,
           dirty && range_.any_committed(static_cast<std::size_t>(first) * kPageBytes, kPageBytes << order));
    first += std::uint32_t{1} << order;
  }
}

std::uint32_t LargeBlockPool::allocate(std::uint32_t pages, PageKind kind, std::uint32_t value,
                                       Outcome& outcome) noexcept {
  const unsigned least = static_cast<unsigned>(std::bit_width(pages - 1));
  std::unique_lock guard(lock_);
  const auto orders_free = [&] { return least < kOrders ? has_free_ >> least : 0; };
  std::uint64_t orders = orders_free();
  while (orders == 0 && releasing_ > 0) {  // what is being released is free a moment later
    guard.unlock();
    std::this_thread::yield();
    guard.lock();
    orders = orders_free();
  }
  const std::size_t held = held_.load(std::memory_order_relaxed) + pages;
  if (held > limit_ / kPageBytes) {
    outcome.why = Refusal::kLimit;
    return kNone;
  }
  if (orders == 0) {
    outcome.why = Refusal::kFragmented;
    return kNone;
  }
  unsigned order = least + static_cast<unsigned>(std::countr_zero(orders));
  // Memory that the system has given already is the cheaper one, even where a smaller block would do; but not
  // pieces of more than a sixteenth of the range, of which there are few and which larger requests need.
  if (const std::uint64_t dirty_orders = has_dirty_ >> least; dirty_orders != 0) {
    const unsigned dirty_order = least + static_cast<unsigned>(std::countr_zero(dirty_orders));
    if (dirty_order <= top_order_ - std::min(top_order_, 4u)) order = dirty_order;
  }
  const std::uint32_t page = first_[order];
  const std::size_t bytes = static_cast<std::size_t>(pages) * kPageBytes;
  const bool dirty = is_dirty(page);
  outcome.zero = !dirty;
  unlink(page, order);
  insert_pages(page + pages, page + (std::uint32_t{1} << order), dirty);
  held_.store(held, std::memory_order_relaxed);
  if (page + pages > touched_.load(std::memory_order_relaxed))
    touched_.store(page + pages, std::memory_order_relaxed);
  guard.unlock();
  if (!range_.commit(static_cast<std::size_t>(page) * kPageBytes, bytes,
                     huge_pages_ && bytes >= kHugePageBytes)) {
    guard.lock();
    insert_pages(page, page + pages, dirty);
    held_.store(held_.load(std::memory_order_relaxed) - pages, std::memory_order_relaxed);
    outcome.why = Refusal::kSystem;
    return kNone;
  }
  set_peak(held);
  const std::uint32_t heads = kind == PageKind::kSpan ? pages : 1;
  for (std::uint32_t i = 0; i < heads; ++i) {
    pages_[page + i].value.store(kind == PageKind::kSpan ? value : pages, std::memory_order_relaxed);
    pages_[page + i].state.store(static_cast<std::uint32_t>(kind), std::memory_order_relaxed);
  }
  poison(address(page), bytes);  // what of it may be touched, its owner says
  return page;
}

void LargeBlockPool::set_peak(std::size_t held) noexcept {
  std::size_t peak = peak_.load(std::memory_order_relaxed);
  while (held > peak && !peak_.compare_exchange_weak(peak, held, std::memory_order_relaxed)) {
  }
}

std::uint32_t LargeBlockPool::close(std::uint32_t page) noexcept {
  auto expected = static_cast<std::uint32_t>(PageKind::kLarge);
  if (!pages_[page].state.compare_exchange_strong(expected, static_cast<std::uint32_t>(PageKind::kCached),
                                                  std::memory_order_relaxed))
    return 0;
  const std::uint32_t n = pages_[page].value.load(std::memory_order_relaxed);
  poison(address(page), static_cast<std::size_t>(n) * kPageBytes);
  return n;
}

std::uint32_t LargeBlockPool::head_of(std::uint32_t page) const noexcept {
  for (unsigned order = 0; order <= top_order_; ++order) {  // blocks begin at multiples of such powers
    const std::uint32_t head = page >> order << order;
    if (pages_[head].kind() == PageKind::kLarge)
      return page - head < pages_[head].value.load(std::memory_order_relaxed) ? head : kNone;
  }
  return kNone;
}

void LargeBlockPool::free_large(std::uint32_t page, bool release) noexcept {
  std::unique_lock guard(lock_);
  const std::uint32_t n = pages_[page].value.load(std::memory_order_relaxed);
  bool released = false;
  if (release) {
    ++releasing_;
    guard.unlock();
    released =
        range_.release(static_cast<std::size_t>(page) * kPageBytes, static_cast<std::size_t>(n) * kPageBytes);
    guard.lock();
    --releasing_;
  }
  pages_[page].state.store(0, std::memory_order_relaxed);
  insert_pages(page, page + n, !released);
  held_.store(held_.load(std::memory_order_relaxed) - n, std::memory_order_relaxed);
}

void LargeBlockPool::free_list(std::uint32_t first) noexcept {
  constexpr int kAtOnce = 16;  // others may want the lock
  while (first != kNone) {
    const std::lock_guard guard(lock_);
    for (int i = 0; i < kAtOnce && first != kNone; ++i) {
      const std::uint32_t page = first, n = pages_[page].value.load(std::memory_order_relaxed);
      first = pages_[page].next;
      pages_[page].state.store(0, std::memory_order_relaxed);
      insert_pages(page, page + n, true);
      held_.store(held_.load(std::memory_order_relaxed) - n, std::memory_order_relaxed);
    }
  }
}

void LargeBlockPool::free_span(std::uint32_t page, std::uint32_t pages) noexcept {
  poison(address(page), static_cast<std::size_t>(pages) * kPageBytes);
  for (std::uint32_t i = 0; i < pages; ++i) pages_[page + i].state.store(0, std::memory_order_relaxed);
  const std::lock_guard guard(lock_);
  insert_pages(page, page + pages, true);
  held_.store(held_.load(std::memory_order_relaxed) - pages, std::memory_order_relaxed);
}

bool LargeBlockPool::release_one(unsigned order, std::size_t& offered) noexcept {
  const std::size_t bytes = kPageBytes << order;
  std::unique_lock guard(lock_);
  const std::uint32_t page = first_[order];
  if (page == kNone || !is_dirty(page)) return false;
  unlink(page, order);
  const std::size_t offset = static_cast<std::size_t>(page) * kPageBytes;
  const std::size_t committed = range_.committed(offset, bytes);
  ++releasing_;
  guard.unlock();
  const bool released = range_.release(offset, bytes);
  guard.lock();
  --releasing_;
  insert(page, order, !released);
  if (released) offered += committed;
  return released;
}

std::size_t LargeBlockPool::release_free() noexcept {
  std::size_t offered = 0;
  for (unsigned order = 0; order <= top_order_; ++order) {
    while (release_one(order, offered)) {
    }
  }
  return offered;
}

void LargeBlockPool::reset() noexcept {
  const std::lock_guard guard(lock_);
  poison(range_.base(), touched_.load(std::memory_order_relaxed) * kPageBytes);
  table_.clear();
  first_.fill(kNone);
  last_.fill(kNone);
  has_free_ = has_dirty_ = 0;
  held_.store(0, std::memory_order_relaxed);
  link(0, top_order_, true);
}

unsigned LargeBlockPool::dirty_blocks(unsigned order, std::uint32_t& cursor,
                                      std::span<std::uint32_t> out) noexcept {
  const std::lock_guard guard(lock_);
  std::uint32_t page = first_[order];
  if (cursor != kNone) page = is_free(cursor, order) && is_dirty(cursor) ? pages_[cursor].next : kNone;
  unsigned n = 0;
  for (; n < out.size() && page != kNone && is_dirty(page); page = pages_[page].next)
    out[n++] = cursor = page;
  return n;
}

void LargeBlockPool::free_bytes(std::size_t& sum, std::size_t& largest) noexcept {
  sum = largest = 0;
  std::array<std::uint32_t, 64> found;
  for (unsigned order = 0; order <= top_order_; ++order) {
    std::uint32_t cursor = kNone;
    for (unsigned n = found.size(); n == found.size();) {
      n = dirty_blocks(order, cursor, found);
      for (unsigned i = 0; i < n; ++i) {
        const std::size_t bytes =
            range_.committed(static_cast<std::size_t>(found[i]) * kPageBytes, kPageBytes << order);
        sum += bytes;
        largest = std::max(largest, bytes);
      }
    }
  }
}

}  // namespace bitnet::memory
