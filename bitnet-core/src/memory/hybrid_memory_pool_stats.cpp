// What a pool says of itself: counts of its parts summed up, what is left when it ends, damage that was met.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <new>

#include "bitnet/core/log.hpp"
#include "hybrid_memory_pool_impl.hpp"

namespace bitnet {
namespace {

using memory::LargeBlockPool;
using memory::saturating_difference;

constexpr std::size_t kReportedLeaks = 8;  // blocks with their stacks

}  // namespace

void HybridMemoryPool::Impl::report_damage() noexcept {
  const void* first = nullptr;
  const std::uint64_t n = small.damaged(first);
  if (n == 0 || damage_reported.exchange(true)) return;
  log(LogLevel::kWarning,
      fmt::format(
          "memory pool '{}': a free block at {} was written to; blocks that were listed behind it are "
          "lost",
          options.name, fmt::ptr(first)));
}

std::size_t HybridMemoryPool::Impl::used(const memory::SmallBlockPool::Counts& counts) const {
  std::uint64_t sum = 0;
  for (unsigned c = 0; c < small.n_classes(); ++c)
    sum += saturating_difference(counts.allocations[c], counts.frees[c]) * small.bytes_of(c);
  const memory::LargeBlockCache::Counts blocks = waiting.counts();
  return saturating_difference(sum, counts.other_bytes) + saturating_difference(blocks.given, blocks.freed);
}

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

MemoryStats HybridMemoryPool::stats() const {
  Impl& pool = *impl_;
  const memory::SmallBlockPool::Counts counts = pool.small.counts();
  const memory::LargeBlockCache::Counts large = pool.waiting.counts();
  const std::size_t large_used = saturating_difference(large.given, large.freed);
  MemoryStats out;
  out.name = pool.options.name;
  out.used = pool.used(counts);
  out.held = pool.held();
  out.limit = pool.options.limit;
  out.peak_held = pool.large.peak_held();
  if (pool.counted)
    out.peak_used =
        std::max(out.used, static_cast<std::size_t>(std::max<std::int64_t>(0, pool.total.peak())));
  out.small_bookkeeping =
      pool.small.table_bytes() + LargeBlockPool::table_bytes(saturating_difference(out.held, large_used));
  out.bookkeeping = pool.large.table_bytes() + pool.small.table_bytes() + pool.waiting.table_bytes();
  out.refusals = pool.refusals.load();
  for (unsigned c = 0; c < pool.small.n_classes(); ++c) {
    out.allocations += counts.allocations[c];
    out.frees += counts.frees[c];
    out.small_given += counts.allocations[c] * pool.small.bytes_of(c);
    if (counts.allocations[c] != 0)
      out.size_classes.push_back({pool.small.bytes_of(c), counts.allocations[c],
                                  saturating_difference(counts.allocations[c], counts.frees[c])});
  }
  if (large.allocations != 0)
    out.size_classes.push_back({0, large.allocations, saturating_difference(large.allocations, large.frees)});
  out.allocations += large.allocations;
  out.frees += large.frees + counts.other_frees;
  out.small_asked = counts.asked;
  out.large_asked = large.asked;
  out.large_given = large.given;
  pool.large.free_bytes(out.free_bytes, out.largest_free);
  out.free_bytes += pool.waiting.waiting();
  out.largest_free = std::max(out.largest_free, pool.waiting.largest_waiting());
  const void* first = nullptr;
  out.damaged = pool.small.damaged(first);
  pool.report_damage();
  return out;
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
