// Joins the parts: arguments are checked here, small and large blocks told apart, what comes back is looked
// up, and refusals become errors. The parts are small_block_pool, large_block_pool, block_guard and
// allocation_tracker.
#include "bitnet/core/memory/hybrid_memory_pool.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <new>
#include <optional>

#include "allocation_tracker.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
#include "block_guard.hpp"
#include "large_block_pool.hpp"
#include "small_block_pool.hpp"

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
using memory::ThreadCache;

constexpr std::int64_t kPublishBytes = std::int64_t{64} << 10;
/// From here on fresh pages of the system are cheaper than writing zeros, and come only as they are touched.
constexpr std::size_t kZeroBySystem = std::size_t{1} << 20;
constexpr std::size_t kHostReleaseBytes = std::size_t{8} << 20;
constexpr std::size_t kReportedLeaks = 8;  // blocks with their stacks
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

/// While other threads are at work, a free may be counted whose allocation was not yet: never below 0.
std::uint64_t left(std::uint64_t allocated, std::uint64_t freed) {
  return allocated - std::min(allocated, freed);
}

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

struct HybridMemoryPool::Impl {
  explicit Impl(MemoryPoolOptions o)
      : options(checked(std::move(o))),
        large(options.limit, options.huge_pages),
        small(large, total, options.small_threshold, options.thread_cache_bytes),
        counted(options.tracking != TrackingLevel::kNone),
        publish_from(options.tracking >= TrackingLevel::kStandard ? 1 : kPublishBytes) {
    if (options.tracking >= TrackingLevel::kStandard)
      tracker.emplace(options.tracking == TrackingLevel::kDetailed);
  }

  void* allocate(std::size_t bytes, std::size_t alignment, MemoryTag tag, Outcome& outcome,
                 bool zero = false);
  void fill_zero(void* block, std::size_t bytes, bool is_zero) const;
  void deallocate(void* block);
  std::string leak_report(std::size_t used) const;
  void* allocate_once(std::size_t bytes, std::size_t alignment, Outcome& outcome);
  void* allocate_small(unsigned size_class, std::size_t bytes, Outcome& outcome);
  void* take_small(ThreadCache& cache, unsigned size_class, std::size_t bytes, Outcome& outcome);
  void* allocate_large(std::size_t bytes, Outcome& outcome);
  void free_block(void* block);
  void free_small(ThreadCache& cache, void* block, unsigned size_class);
  void check_guard(void* block, void*& whole) const;
  void* start_of(const void* block, std::size_t& bytes) const;
  void publish(ThreadCache& cache, std::int64_t bytes);
  [[noreturn]] void refuse_arguments(std::size_t bytes, std::size_t alignment) const;
  [[noreturn]] void refuse(std::size_t bytes, MemoryTag tag, Refusal why) const;
  [[noreturn]] void refuse_block(const void* block, std::string_view why) const;
  /// Beyond the range's bytes for what does not lie in it.
  std::size_t offset_of(const void* p) const noexcept {
    return reinterpret_cast<std::uintptr_t>(p) - reinterpret_cast<std::uintptr_t>(large.range().base());
  }
  std::size_t used(const memory::SmallBlockPool::Counts& counts) const;

  const MemoryPoolOptions options;
  memory::UseTotal total;
  LargeBlockPool large;
  memory::SmallBlockPool small;
  const bool counted;
  const std::int64_t publish_from;  // bytes
  std::optional<memory::AllocationTracker> tracker;
  std::atomic<std::uint64_t> large_allocations{0}, large_frees{0}, large_asked{0}, large_given{0};
  std::atomic<std::uint64_t> large_freed{0};  // bytes
  std::atomic<std::uint64_t> refusals{0};
};

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
                          options.name, bytes, tag, used(small.counts()), large.held(), limit,
                          kWhy[static_cast<std::size_t>(why)]));
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
  const std::uint32_t page = large.allocate(static_cast<std::uint32_t>(pages), PageKind::kLarge, 0, outcome);
  if (page == LargeBlockPool::kNone) return nullptr;
  large_allocations.fetch_add(1, std::memory_order_relaxed);
  large_given.fetch_add(pages * kPageBytes, std::memory_order_relaxed);
  if (counted) {
    large_asked.fetch_add(bytes, std::memory_order_relaxed);
    total.add(static_cast<std::int64_t>(pages * kPageBytes));
  }
  return large.address(page);
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
  const std::size_t front = options.check_blocks ? memory::guard_front(alignment) : 0;
  std::size_t whole = bytes;
  if (options.check_blocks) {
    const std::size_t more = front + memory::kGuardBack;
    whole = bytes > kNoMemoryLimit / 2 ? bytes : bytes + more;  // what is that large is refused as it is
  }
  void* block = nullptr;
  try {
    block = allocate_once(whole, alignment, outcome);
    if (block == nullptr) [[unlikely]] {
      small.reclaim();
      block = allocate_once(whole, alignment, outcome);
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
    tracker->add(block, bytes, tag, large.held());
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
  const std::uint32_t pages = at_page ? large.free_large(page, options.release_from) : 0;
  if (pages == 0) [[unlikely]]
    refuse_block(block, "is no live block: free already, or not where one begins");
  const std::size_t bytes = std::size_t{pages} * kPageBytes;
  large_frees.fetch_add(1, std::memory_order_relaxed);
  large_freed.fetch_add(bytes, std::memory_order_relaxed);
  if (counted) total.add(-static_cast<std::int64_t>(bytes));
}

void* HybridMemoryPool::Impl::start_of(const void* block, std::size_t& bytes) const {
  auto page = static_cast<std::uint32_t>(offset_of(block) / kPageBytes);
  if (large.info(page).kind() == PageKind::kSpan) return small.block_at(block, bytes);
  // The owner's block begins in the first page of the whole one, or, aligned to a page, in the second.
  if (large.info(page).kind() != PageKind::kLarge && page > 0) --page;
  if (large.info(page).kind() != PageKind::kLarge)
    refuse_block(block, "is no live block: free already, or not where one begins");
  bytes = std::size_t{large.info(page).value.load(std::memory_order_relaxed)} * kPageBytes;
  return large.address(page);
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
  const bool end = state == GuardState::kEndDamaged;
  throw Error(ErrorCode::kInternal,
              end ? fmt::format("memory pool '{}': the block at {} ({} bytes, '{}') was written past its end",
                                options.name, block, header.bytes, header.tag)
                  : fmt::format("memory pool '{}': the header of the block at {} is damaged: mark {:#x}, "
                                "expected {:#x}",
                                options.name, block, header.mark,
                                memory::kGuardMark ^ reinterpret_cast<std::uintptr_t>(block)));
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
    tracker->remove(block, large.held());  // before another thread may get the address
  free_block(whole);
}

std::size_t HybridMemoryPool::Impl::used(const memory::SmallBlockPool::Counts& counts) const {
  std::uint64_t sum = left(large_given.load(), large_freed.load());
  for (unsigned c = 0; c < small.n_classes(); ++c)
    sum += left(counts.allocations[c], counts.frees[c]) * small.bytes_of(c);
  return sum;
}

HybridMemoryPool::HybridMemoryPool(MemoryPoolOptions options)
    : impl_(std::make_unique<Impl>(std::move(options))) {}

std::string HybridMemoryPool::Impl::leak_report(std::size_t used) const {
  std::string text = fmt::format("memory pool '{}' ends with {} bytes in use", options.name, used);
  if (!tracker) return text;
  for (const TagStats& tag : tracker->tags()) {
    if (tag.used != 0) text += fmt::format("; '{}': {} bytes", tag.tag, tag.used);
  }
  if (options.tracking != TrackingLevel::kDetailed) return text;
  std::vector<LiveBlock> blocks = tracker->live_blocks();
  blocks.resize(std::min(blocks.size(), kReportedLeaks));
  for (const LiveBlock& block : blocks)
    text += fmt::format("\n  {} bytes of '{}', asked for at {:.3f} s by {}", block.bytes, block.tag,
                        block.seconds, fmt::join(block.stack, " < "));
  return text;
}

HybridMemoryPool::~HybridMemoryPool() {
  try {
    const std::size_t used = impl_->used(impl_->small.counts());
    if (used == 0) return;
    impl_->large.range().leak();
    log(LogLevel::kWarning, impl_->leak_report(used));
  } catch (const std::bad_alloc&) {  // of the counting or its report: nobody knows whether blocks are in use
    impl_->large.range().leak();
  }
}

void* HybridMemoryPool::allocate(std::size_t bytes, std::size_t alignment, MemoryTag tag) {
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
  const std::size_t begin = impl_->offset_of(from), range = impl_->large.range().bytes();
  if (begin >= range || bytes > range - begin) impl_->refuse_block(from, "is not of this pool");
  const std::size_t first = pages_of(begin) * kPageBytes, last = (begin + bytes) / kPageBytes * kPageBytes;
  if (first >= last) return 0;
  if (impl_->large.range().release(first, last - first)) return last - first;
  std::memset(impl_->large.range().base() + first, 0, last - first);
  return 0;
}

std::string_view HybridMemoryPool::name() const noexcept { return impl_->options.name; }
const MemoryPoolOptions& HybridMemoryPool::options() const noexcept { return impl_->options; }
std::size_t HybridMemoryPool::held() const noexcept { return impl_->large.held(); }

bool HybridMemoryPool::owns(const void* address) const noexcept {
  return impl_->offset_of(address) < impl_->large.range().bytes();
}

MemoryStats HybridMemoryPool::stats() const {
  Impl& pool = *impl_;
  const memory::SmallBlockPool::Counts counts = pool.small.counts();
  MemoryStats out;
  out.name = pool.options.name;
  out.used = pool.used(counts);
  out.held = pool.large.held();
  out.limit = pool.options.limit;
  out.peak_held = pool.large.peak_held();
  if (pool.counted)
    out.peak_used =
        std::max(out.used, static_cast<std::size_t>(std::max<std::int64_t>(0, pool.total.peak())));
  out.bookkeeping = pool.large.table_bytes() + pool.small.table_bytes();
  const std::size_t large_used = left(pool.large_given.load(), pool.large_freed.load());
  out.small_bookkeeping = pool.small.table_bytes() + LargeBlockPool::table_bytes(left(out.held, large_used));
  out.refusals = pool.refusals.load();
  for (unsigned c = 0; c < pool.small.n_classes(); ++c) {
    out.allocations += counts.allocations[c];
    out.frees += counts.frees[c];
    out.small_given += counts.allocations[c] * pool.small.bytes_of(c);
    if (counts.allocations[c] != 0)
      out.size_classes.push_back(
          {pool.small.bytes_of(c), counts.allocations[c], left(counts.allocations[c], counts.frees[c])});
  }
  const std::uint64_t n_large = pool.large_allocations.load(), n_freed = pool.large_frees.load();
  if (n_large != 0) out.size_classes.push_back({0, n_large, left(n_large, n_freed)});
  out.allocations += n_large;
  out.frees += n_freed;
  out.small_asked = counts.asked;
  out.large_asked = pool.large_asked.load();
  out.large_given = pool.large_given.load();
  pool.large.free_bytes(out.free_bytes, out.largest_free);
  return out;
}

TrimReport HybridMemoryPool::trim() {
  const std::size_t before = impl_->large.range().resident();
  impl_->small.reclaim();
  TrimReport report;
  report.offered = impl_->large.release_free();
  const std::size_t after = impl_->large.range().resident();
  report.returned = before - std::min(before, after);
  return report;
}

void HybridMemoryPool::reset() noexcept {
  next_generation();
  impl_->small.reset();
  impl_->large.reset();
  impl_->large_frees.store(impl_->large_allocations.load());
  impl_->large_freed.store(impl_->large_given.load());
  impl_->total.clear();
  if (impl_->tracker) impl_->tracker->clear();
}

std::vector<TagStats> HybridMemoryPool::tags() const {
  return impl_->tracker ? impl_->tracker->tags() : std::vector<TagStats>();
}
std::vector<MemorySample> HybridMemoryPool::timeline() const {
  return impl_->tracker ? impl_->tracker->timeline() : std::vector<MemorySample>();
}
std::vector<LiveBlock> HybridMemoryPool::live_blocks() const {
  return impl_->tracker ? impl_->tracker->live_blocks() : std::vector<LiveBlock>();
}

}  // namespace bitnet
