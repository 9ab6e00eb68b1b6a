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

/// Room for twice the limit, or twice the machine's memory, so that it is memory that runs out first and not
/// aligned addresses.
std::size_t range_bytes(std::size_t limit) {
  const auto pages = static_cast<std::size_t>(std::max(1L, sysconf(_SC_PHYS_PAGES)));
  const std::size_t most = std::min(limit, pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE)));
  return std::clamp(std::bit_ceil(std::min(most, kMostRange / 2) * 2), kLeastRange, kMostRange);
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
}

void LargeBlockPool::unlink(std::uint32_t page, unsigned order) noexcept {
  PageInfo& info = pages_[page];
  (info.previous == kNone ? first_[order] : pages_[info.previous].next) = info.next;
  (info.next == kNone ? last_[order] : pages_[info.next].previous) = info.previous;
  if (first_[order] == kNone) has_free_ &= ~(std::uint64_t{1} << order);
  info.state.store(0, std::memory_order_relaxed);
}

void LargeBlockPool::insert(std::uint32_t page, unsigned order, bool dirty) noexcept {
  for (; order < top_order_; ++order) {
    const std::uint32_t buddy = page ^ (std::uint32_t{1} << order);
    if (!is_free(buddy, order)) break;
    dirty = dirty || (pages_[buddy].state.load(std::memory_order_relaxed) & kDirty) != 0;
    unlink(buddy, order);
    page = std::min(page, buddy);
  }
  link(page, order, dirty);
}

void LargeBlockPool::insert_pages(std::uint32_t first, std::uint32_t end, bool dirty) noexcept {
  while (first != end) {
    const unsigned aligned = first == 0 ? kOrders : static_cast<unsigned>(std::countr_zero(first));
    const unsigned order = std::min(aligned, floor_log2(end - first));
    insert(first, order, dirty);
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
  const unsigned order = least + static_cast<unsigned>(std::countr_zero(orders));
  const std::uint32_t page = first_[order];
  const std::size_t bytes = static_cast<std::size_t>(pages) * kPageBytes;
  if (!range_.commit(static_cast<std::size_t>(page) * kPageBytes, bytes,
                     huge_pages_ && bytes >= kHugePageBytes)) {
    outcome.why = Refusal::kSystem;
    return kNone;
  }
  const bool dirty = (pages_[page].state.load(std::memory_order_relaxed) & kDirty) != 0;
  outcome.zero = !dirty;
  unlink(page, order);
  insert_pages(page + pages, page + (std::uint32_t{1} << order), dirty);
  const std::uint32_t heads = kind == PageKind::kSpan ? pages : 1;
  for (std::uint32_t i = 0; i < heads; ++i) {
    pages_[page + i].value.store(kind == PageKind::kSpan ? value : pages, std::memory_order_relaxed);
    pages_[page + i].state.store(static_cast<std::uint32_t>(kind), std::memory_order_relaxed);
  }
  held_.store(held, std::memory_order_relaxed);
  if (held > peak_.load(std::memory_order_relaxed)) peak_.store(held, std::memory_order_relaxed);
  poison(address(page), bytes);  // what of it may be touched, its owner says
  if (page + pages > touched_.load(std::memory_order_relaxed))
    touched_.store(page + pages, std::memory_order_relaxed);
  return page;
}

std::uint32_t LargeBlockPool::free_large(std::uint32_t page, std::size_t release_from) noexcept {
  std::unique_lock guard(lock_);
  if (pages_[page].kind() != PageKind::kLarge) return 0;
  const std::uint32_t n = pages_[page].value.load(std::memory_order_relaxed);
  pages_[page].state.store(0, std::memory_order_relaxed);
  const std::size_t bytes = static_cast<std::size_t>(n) * kPageBytes;
  poison(address(page), bytes);
  bool released = false;
  if (bytes >= release_from) {
    ++releasing_;
    guard.unlock();
    released = range_.release(static_cast<std::size_t>(page) * kPageBytes, bytes);
    guard.lock();
    --releasing_;
  }
  insert_pages(page, page + n, !released);
  held_.store(held_.load(std::memory_order_relaxed) - n, std::memory_order_relaxed);
  return n;
}

void LargeBlockPool::free_span(std::uint32_t page, std::uint32_t pages) noexcept {
  const std::lock_guard guard(lock_);
  for (std::uint32_t i = 0; i < pages; ++i) pages_[page + i].state.store(0, std::memory_order_relaxed);
  poison(address(page), static_cast<std::size_t>(pages) * kPageBytes);
  insert_pages(page, page + pages, true);
  held_.store(held_.load(std::memory_order_relaxed) - pages, std::memory_order_relaxed);
}

bool LargeBlockPool::release_one(unsigned order, std::size_t& offered) noexcept {
  const std::size_t bytes = kPageBytes << order;
  std::unique_lock guard(lock_);
  const std::uint32_t page = first_[order];
  if (page == kNone || (pages_[page].state.load(std::memory_order_relaxed) & kDirty) == 0) return false;
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
  has_free_ = 0;
  held_.store(0, std::memory_order_relaxed);
  link(0, top_order_, true);
}

void LargeBlockPool::free_bytes(std::size_t& sum, std::size_t& largest) noexcept {
  const std::lock_guard guard(lock_);
  sum = largest = 0;
  for (unsigned order = 0; order <= top_order_; ++order) {
    for (std::uint32_t page = first_[order]; page != kNone; page = pages_[page].next) {
      if ((pages_[page].state.load(std::memory_order_relaxed) & kDirty) == 0) break;
      const std::size_t bytes =
          range_.committed(static_cast<std::size_t>(page) * kPageBytes, kPageBytes << order);
      sum += bytes;
      largest = std::max(largest, bytes);
    }
  }
}

}  // namespace bitnet::memory
