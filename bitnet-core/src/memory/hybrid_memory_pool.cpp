// Joins the parts: arguments are checked here, small and large blocks told apart, what comes back is looked
// up, and refusals become errors. The parts are small_block_pool, large_block_cache, large_block_pool,
// block_guard and allocation_tracker; what is counted is summed up in hybrid_memory_pool_stats.cpp.
#include "bitnet/core/memory/hybrid_memory_pool.hpp"

#include <fmt/format.h>

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <new>

#include "bitnet/core/error.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
#include "block_guard.hpp"
#include "hybrid_memory_pool_impl.hpp"

namespace bitnet {
namespace {

using memory::GuardHeader;
using memory::GuardState;
using memory::kPageBytes;
using memory::LargeBlockPool;
using memory::Misuse;
using memory::Outcome;
using memory::PageKind;
using memory::Refusal;
using memory::saturating_difference;
using memory::ThreadCache;

constexpr std::int64_t kPublishBytes = std::int64_t{64} << 10;
/// From here on fresh pages of the system are cheaper than writing zeros, and come only as they are touched.
constexpr std::size_t kZeroBySystem = std::size_t{1} << 20;
constexpr std::size_t kHostReleaseBytes = std::size_t{8} << 20;
constexpr int kMostTries = 4;
constexpr std::size_t kLeastThreshold = 1024, kLeastLimit = std::size_t{64} << 10;

MemoryPoolOptions checked(MemoryPoolOptions options) {
  const auto refuse = [&](std::string why) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("memory pool '{}': {}", options.name, why));
  };
  const std::size_t t = options.small_threshold;
  if (!std::has_single_bit(t) || t < kLeastThreshold || t > memory::kLargestSmall)
    refuse(fmt::format("a small threshold of {} bytes: expected a power of two from {} to {}", t,
                       kLeastThreshold, memory::kLargestSmall));
  if (options.limit < kLeastLimit)
    refuse(fmt::format("a limit of {} bytes: expected at least {}", options.limit, kLeastLimit));
  return options;
}

std::size_t pages_of(std::size_t bytes) { return bytes / kPageBytes + (bytes % kPageBytes != 0); }

}  // namespace

bool checks_blocks_by_default() noexcept {
#ifdef NDEBUG
  return false;
#else
  return true;
#endif
}

MemoryPoolOptions host_pool_options() {
  MemoryPoolOptions options;
  options.name = "host";
  options.release_from = kHostReleaseBytes;
  return options;
}

namespace {

using Pool = std::shared_ptr<HybridMemoryPool>;
std::atomic<const Pool*> default_pool{nullptr};

/// A child's parent may have held a lock of the pool in another thread, which the child has not.
void forget_default_pool() { default_pool.store(nullptr, std::memory_order_relaxed); }

}  // namespace

const std::shared_ptr<HybridMemoryPool>& default_memory_pool() {
  if (const Pool* pool = default_pool.load(std::memory_order_acquire)) return *pool;
  static const int registered = pthread_atfork(nullptr, nullptr, forget_default_pool);
  static_cast<void>(registered);  // refused for want of memory alone, in which case a pool is not made either
  auto made = std::make_unique<const Pool>(std::make_shared<HybridMemoryPool>(host_pool_options()));
  const Pool* expected = nullptr;
  if (default_pool.compare_exchange_strong(expected, made.get(), std::memory_order_acq_rel))
    return *made.release();
  return *expected;
}

HybridMemoryPool::Impl::Impl(MemoryPoolOptions o)
    : options(checked(std::move(o))),
      large(options.limit, options.huge_pages),
      small(large, total, options.small_threshold, options.thread_cache_bytes),
      counted(options.tracking != TrackingLevel::kNone),
      waiting(large, counted ? &total : nullptr, std::min(options.large_cache_bytes, options.limit / 8),
              options.release_from),
      publish_from(options.tracking >= TrackingLevel::kStandard ? 1 : kPublishBytes),
      plain(!options.check_blocks && options.tracking < TrackingLevel::kStandard) {
  if (options.tracking >= TrackingLevel::kStandard)
    tracker.emplace(options.tracking == TrackingLevel::kDetailed);
}

void HybridMemoryPool::Impl::refuse_arguments(std::size_t bytes, std::size_t alignment) const {
  if (bytes == 0)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("memory pool '{}': asked for 0 bytes, a block has at least 1", options.name));
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("memory pool '{}': asked for an alignment of {}: expected a power of two up to {}",
                          options.name, alignment, kMaxAlignment));
}

void HybridMemoryPool::Impl::refuse(std::size_t bytes, MemoryTag tag, Refusal why) const {
  const std::string limit =
      options.limit == kNoMemoryLimit ? std::string("none") : fmt::format("{} bytes", options.limit);
  constexpr std::string_view kWhy[] = {"", ", no piece of the address range is large enough",
                                       ", the system refuses more"};
  throw Error(ErrorCode::kOutOfMemory,
              fmt::format("memory pool '{}': asked for {} bytes ({}), {} used ({} held), limit {}{}",
                          options.name, bytes, tag == nullptr ? kUntagged : tag, used(small.counts()), held(),
                          limit, kWhy[static_cast<std::size_t>(why)]));
}

void HybridMemoryPool::Impl::refuse_block(const void* block, std::string_view why) const {
  const std::byte* base = large.range().base();
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("memory pool '{}' ({} to {}): {} {}", options.name, fmt::ptr(base),
                          fmt::ptr(base + large.range().bytes()), block, why));
}

void HybridMemoryPool::Impl::publish(ThreadCache& cache, std::int64_t bytes) {
  cache.unpublished += bytes;
  if (cache.unpublished >= publish_from || cache.unpublished <= -publish_from) {
    total.add(cache.unpublished);
    cache.unpublished = 0;
  }
}

void* HybridMemoryPool::Impl::take_small(ThreadCache& cache, unsigned size_class, std::size_t bytes,
                                         Outcome& outcome) {
  void* block = small.allocate(cache, size_class, outcome);
  if (block == nullptr) return nullptr;
  if (counted) {
    cache.asked.add(bytes);
    publish(cache, static_cast<std::int64_t>(small.bytes_of(size_class)));
  }
  return block;
}

void* HybridMemoryPool::Impl::allocate_small(unsigned size_class, std::size_t bytes, Outcome& outcome) {
  if (ThreadCache* cache = small.cache()) [[likely]]
    return take_small(*cache, size_class, bytes, outcome);
  return small.with_shared_cache(
      [&](ThreadCache& cache) { return take_small(cache, size_class, bytes, outcome); });
}

void* HybridMemoryPool::Impl::allocate_large(std::size_t bytes, Outcome& outcome) {
  const std::size_t pages = pages_of(bytes);
  if (pages > large.n_pages() / 2) {
    outcome.why = bytes > options.limit ? Refusal::kLimit : Refusal::kFragmented;
    return nullptr;
  }
  const std::uint32_t page =
      waiting.allocate(static_cast<std::uint32_t>(pages), counted ? bytes : 0, outcome);
  return page == LargeBlockPool::kNone ? nullptr : large.address(page);
}

void* HybridMemoryPool::Impl::allocate_once(std::size_t bytes, std::size_t alignment, Outcome& outcome) {
  if (bytes > options.small_threshold) return allocate_large(bytes, outcome);
  const unsigned size_class =
      alignment <= kDefaultAlignment ? memory::class_of(bytes) : memory::class_of(bytes, alignment);
  return size_class < small.n_classes() ? allocate_small(size_class, bytes, outcome)
                                        : allocate_large(bytes, outcome);
}

void* HybridMemoryPool::Impl::allocate(std::size_t bytes, std::size_t alignment, MemoryTag tag,
                                       Outcome& outcome, bool zero) {
  if (bytes == 0 || !std::has_single_bit(alignment) || alignment > kMaxAlignment) [[unlikely]]
    refuse_arguments(bytes, alignment);
  if (tag == nullptr) tag = kUntagged;
  const std::size_t front = options.check_blocks ? memory::guard_front(alignment) : 0;
  std::size_t whole = bytes;
  if (options.check_blocks) {
    const std::size_t more = front + memory::kGuardBack;
    whole = bytes > kNoMemoryLimit / 2 ? bytes : bytes + more;  // what is that large is refused as it is
  }
  void* block = nullptr;
  try {
    block = allocate_once(whole, alignment, outcome);
    // What other threads freed meanwhile may wait in their caches again.
    for (int tries = 0; block == nullptr && tries < kMostTries; ++tries) {
      const bool any = reclaim(false);
      block = allocate_once(whole, alignment, outcome);
      if (!any) break;
    }
  } catch (Error& e) {
    e.add_context(fmt::format("memory pool '{}'", options.name));
    throw;
  }
  if (block == nullptr) [[unlikely]] {
    refusals.fetch_add(1, std::memory_order_relaxed);
    return nullptr;
  }
  memory::unpoison(block, whole);
  if (zero) fill_zero(block, whole, outcome.zero);
  if (front != 0) {
    std::byte* seen = memory::guard(block, front, bytes, tag);
    memory::poison(seen - memory::kGuardFront, memory::kGuardFront);
    memory::poison(seen + bytes, memory::kGuardBack);
    block = seen;
  }
  if (tracker) [[unlikely]]
    tracker->add(block, bytes, tag, held());
  return block;
}

/// What most calls need, a small block from the thread's cache; null: the long way, which also says why.
void* HybridMemoryPool::Impl::allocate_near(std::size_t bytes, std::size_t alignment) {
  const bool is_easy = plain && bytes - 1 < options.small_threshold && alignment - 1 < kDefaultAlignment &&
                       (alignment & (alignment - 1)) == 0;
  if (!is_easy) return nullptr;
  ThreadCache* cache = small.near_cache();
  if (cache == nullptr) return nullptr;
  const unsigned size_class = memory::class_of(bytes);
  void* block = small.take(*cache, size_class);
  if (block == nullptr) return nullptr;
  if (counted) {
    cache->asked.add(bytes);
    publish(*cache, static_cast<std::int64_t>(small.bytes_of(size_class)));
  }
  memory::unpoison(block, bytes);
  return block;
}

void HybridMemoryPool::Impl::fill_zero(void* block, std::size_t bytes, bool is_zero) const {
  const auto offset = offset_of(block);
  const bool is_large =
      large.info(static_cast<std::uint32_t>(offset / kPageBytes)).kind() == PageKind::kLarge;
  if (is_large && is_zero) return;
  if (is_large && bytes >= kZeroBySystem && large.range().release(offset, pages_of(bytes) * kPageBytes))
    return;
  std::memset(block, 0, bytes);
}

void HybridMemoryPool::Impl::free_small(ThreadCache& cache, void* block, unsigned size_class) {
  small.free(cache, block, size_class);
  if (counted) publish(cache, -static_cast<std::int64_t>(small.bytes_of(size_class)));
}

void HybridMemoryPool::Impl::free_block(void* block) {
  const auto page = static_cast<std::uint32_t>(offset_of(block) / kPageBytes);
  if (large.info(page).kind() == PageKind::kSpan) [[likely]] {
    unsigned size_class = 0;
    const Misuse misuse = small.check(block, size_class);
    if (misuse == Misuse::kNotABlock) [[unlikely]]
      refuse_block(block, "is not where a block begins");
    if (misuse == Misuse::kAlreadyFree) [[unlikely]]
      refuse_block(block, "is free already");
    if (ThreadCache* cache = small.cache()) [[likely]] {
      free_small(*cache, block, size_class);
    } else {
      small.with_shared_cache([&](ThreadCache& shared) { free_small(shared, block, size_class); });
    }
    return;
  }
  const bool at_page = reinterpret_cast<std::uintptr_t>(block) % kPageBytes == 0;
  if (!at_page || !waiting.free(page)) [[unlikely]]
    refuse_block(block, "is no live block: free already, or not where one begins");
}

bool HybridMemoryPool::Impl::reclaim(bool now) noexcept {
  const std::size_t before = large.held();
  small.reclaim(now);
  const bool any = waiting.flush();
  report_damage();
  return any || large.held() < before;
}

void* HybridMemoryPool::Impl::start_of(const void* block, std::size_t& bytes) const {
  auto page = static_cast<std::uint32_t>(offset_of(block) / kPageBytes);
  if (large.info(page).kind() == PageKind::kSpan) return small.block_at(block, bytes);
  // The owner's block begins in the first page of the whole one, or, aligned to a page, in the second.
  const auto pages = [&](std::uint32_t at) {
    const memory::PageInfo& info = large.info(at);
    return info.kind() == PageKind::kLarge ? info.value.load(std::memory_order_relaxed) : 0;
  };
  if (pages(page) == 0 && page > 0 && pages(page - 1) > 1) --page;
  if (pages(page) == 0) refuse_block(block, "is no live block: free already, or not where one begins");
  bytes = std::size_t{pages(page)} * kPageBytes;
  return large.address(page);
}

/// Offset behind the block that the byte lies in, 0 where it lies in none: a span's may be free.
std::size_t HybridMemoryPool::Impl::end_of_block_at(const void* inside) const {
  const auto page = static_cast<std::uint32_t>(offset_of(inside) / kPageBytes);
  if (large.info(page).kind() == PageKind::kSpan) {
    std::size_t bytes = 0;
    const void* begin = small.block_at(inside, bytes);
    return offset_of(begin) + bytes;
  }
  const std::uint32_t head = large.head_of(page);
  if (head == LargeBlockPool::kNone) return 0;
  return (std::size_t{head} + large.info(head).value.load(std::memory_order_relaxed)) * kPageBytes;
}

void HybridMemoryPool::Impl::check_guard(void* block, void*& whole) const {
  std::size_t bytes = 0;
  whole = start_of(block, bytes);
  const auto* first = static_cast<const std::byte*>(whole);
  const auto* seen = static_cast<const std::byte*>(block);
  if (large.info(static_cast<std::uint32_t>((first - large.range().base()) / std::ptrdiff_t{kPageBytes}))
          .kind() == PageKind::kSpan) {
    unsigned size_class = 0;
    const Misuse misuse = small.check(whole, size_class);
    if (misuse != Misuse::kNone)
      refuse_block(block, misuse == Misuse::kAlreadyFree ? "is free already" : "is not where a block begins");
  }
  if (reinterpret_cast<std::uintptr_t>(block) % kDefaultAlignment != 0 || seen < first + memory::kGuardFront)
    refuse_block(block, "is not where a block begins");
  GuardHeader header{};
  const auto left = static_cast<std::size_t>(first + bytes - seen);
  const GuardState state = memory::read_guard(seen, left, header);
  if (state == GuardState::kGood) return;
  if (state == GuardState::kEndDamaged)
    throw Error(ErrorCode::kInternal,
                fmt::format("memory pool '{}': the block at {} ({} bytes, '{}') was written past its end",
                            options.name, block, header.bytes, header.tag));
  for (std::size_t front = memory::kGuardFront; front <= kMaxAlignment && front < bytes; front *= 2) {
    if (first + front != seen && memory::begins_block(first + front, bytes - front))
      refuse_block(block, "is not where a block begins");
  }
  const std::uint64_t mark = memory::kGuardMark ^ reinterpret_cast<std::uintptr_t>(block);
  throw Error(
      ErrorCode::kInternal,
      fmt::format("memory pool '{}': the header of the block at {} is damaged: {}", options.name, block,
                  header.mark != mark
                      ? fmt::format("mark {:#x}, expected {:#x}", header.mark, mark)
                      : fmt::format("check word {:#x} of {} bytes, expected {:#x}", header.check,
                                    header.bytes, memory::guard_check(header))));
}

void HybridMemoryPool::Impl::deallocate(void* block) {
  if (block == nullptr) return;
  if (offset_of(block) >= large.range().bytes()) [[unlikely]]
    refuse_block(block, "is not of this pool");
  void* whole = block;
  if (options.check_blocks) {
    check_guard(block, whole);
    memory::remove_guard(block);
  }
  if (tracker) [[unlikely]]
    tracker->remove(block, held());  // before another thread may get the address
  free_block(whole);
}

HybridMemoryPool::HybridMemoryPool(MemoryPoolOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}

void* HybridMemoryPool::allocate(std::size_t bytes, std::size_t alignment, MemoryTag tag) {
  if (void* block = impl_->allocate_near(bytes, alignment)) [[likely]]
    return block;
  Outcome outcome;
  void* block = impl_->allocate(bytes, alignment, tag, outcome);
  if (block == nullptr) [[unlikely]]
    impl_->refuse(bytes, tag, outcome.why);
  return block;
}

void* HybridMemoryPool::allocate_zeroed(std::size_t bytes, std::size_t alignment, MemoryTag tag) {
  Outcome outcome;
  void* block = impl_->allocate(bytes, alignment, tag, outcome, true);
  if (block == nullptr) impl_->refuse(bytes, tag, outcome.why);
  return block;
}

void* HybridMemoryPool::try_allocate(std::size_t bytes, std::size_t alignment, MemoryTag tag) {
  Outcome outcome;
  return impl_->allocate(bytes, alignment, tag, outcome);
}

void HybridMemoryPool::deallocate(void* block) { impl_->deallocate(block); }

std::size_t HybridMemoryPool::discard(void* from, std::size_t bytes) {
  const std::size_t begin = impl_->offset_of(from);
  if (begin >= impl_->large.range().bytes()) impl_->refuse_block(from, "is not of this pool");
  const std::size_t end = impl_->end_of_block_at(from);
  if (begin >= end || bytes > end - begin)
    impl_->refuse_block(from, "and what follows is not of one live block");
  const std::size_t first = pages_of(begin) * kPageBytes, last = (begin + bytes) / kPageBytes * kPageBytes;
  if (first >= last) return 0;
  if (impl_->large.range().release(first, last - first)) return last - first;
  std::memset(impl_->large.range().base() + first, 0, last - first);
  return 0;
}

std::string_view HybridMemoryPool::name() const noexcept { return impl_->options.name; }
const MemoryPoolOptions& HybridMemoryPool::options() const noexcept { return impl_->options; }
std::size_t HybridMemoryPool::held() const noexcept { return impl_->held(); }
std::size_t HybridMemoryPool::capacity() const noexcept {
  return std::min(impl_->options.limit, impl_->large.range().bytes());
}

bool HybridMemoryPool::owns(const void* address) const noexcept {
  return impl_->offset_of(address) < impl_->large.range().bytes();
}

TrimReport HybridMemoryPool::trim() {
  const std::size_t before = impl_->large.range().resident();
  impl_->reclaim(true);
  TrimReport report;
  report.offered = impl_->large.release_free();
  const std::size_t after = impl_->large.range().resident();
  report.returned = before - std::min(before, after);
  return report;
}

void HybridMemoryPool::reset() noexcept {
  next_generation();
  impl_->small.reset();
  impl_->waiting.reset();
  impl_->large.reset();
  impl_->total.clear();
  if (impl_->tracker) impl_->tracker->clear();
}

}  // namespace bitnet
