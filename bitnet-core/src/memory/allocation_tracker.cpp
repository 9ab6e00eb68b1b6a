// Records of live blocks in shards by address, so that threads seldom wait for each other; totals by tag; and
// samples, of which every second goes when there are too many.
#include "allocation_tracker.hpp"

#include <dlfcn.h>
#include <execinfo.h>
#include <fmt/format.h>

#include <algorithm>
#include <new>

namespace bitnet::memory {
namespace {

/// "file(symbol+offset)", as much of it as the dynamic linker knows.
std::string describe_frame(void* address) {
  Dl_info info{};
  if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) return fmt::format("{}", address);
  const auto distance = [address](const void* from) {
    return static_cast<const char*>(address) - static_cast<const char*>(from);
  };
  if (info.dli_sname == nullptr) return fmt::format("{}+{:#x}", info.dli_fname, distance(info.dli_fbase));
  return fmt::format("{}({}+{:#x})", info.dli_fname, info.dli_sname, distance(info.dli_saddr));
}

}  // namespace

AllocationTracker::AllocationTracker(bool with_stacks, double interval)
    : with_stacks_(with_stacks), interval_(interval) {
  samples_.reserve(kSamples);
  if (with_stacks) {  // the first call loads a library
    void* frame = nullptr;
    backtrace(&frame, 1);
  }
}

void AllocationTracker::add(const void* block, std::size_t bytes, MemoryTag tag, std::size_t held) noexcept {
  const double at = now();
  try {
    Record record{bytes, tag, at, {}};
    if (with_stacks_) {
      std::array<void*, kFrames> frames;
      const int depth = backtrace(frames.data(), kFrames);
      record.stack.assign(frames.begin() + std::min(depth, 2), frames.begin() + depth);  // not our own
    }
    Shard& shard = shard_of(block);
    const std::lock_guard guard(shard.mutex);
    shard.blocks.insert_or_assign(block, std::move(record));
  } catch (const std::bad_alloc&) {
    return;
  }
  used_.fetch_add(bytes, std::memory_order_relaxed);
  allocations_.fetch_add(1, std::memory_order_relaxed);
  count(tag, static_cast<std::int64_t>(bytes));
  if (at >= next_sample_.load(std::memory_order_relaxed)) sample(at, held);
}

void AllocationTracker::remove(const void* block, std::size_t held) noexcept {
  std::size_t bytes = 0;
  MemoryTag tag = kUntagged;
  {
    Shard& shard = shard_of(block);
    const std::lock_guard guard(shard.mutex);
    const auto found = shard.blocks.find(block);
    if (found == shard.blocks.end()) return;
    bytes = found->second.bytes;
    tag = found->second.tag;
    shard.blocks.erase(found);
  }
  used_.fetch_sub(bytes, std::memory_order_relaxed);
  count(tag, -static_cast<std::int64_t>(bytes));
  const double at = now();
  if (at >= next_sample_.load(std::memory_order_relaxed)) sample(at, held);
}

void AllocationTracker::clear() noexcept {
  for (Shard& shard : shards_) {
    const std::lock_guard guard(shard.mutex);
    shard.blocks.clear();
  }
  used_.store(0, std::memory_order_relaxed);
  const std::lock_guard guard(tags_mutex_);
  for (auto& [tag, use] : tags_) use.used = 0;
}

void AllocationTracker::count(MemoryTag tag, std::int64_t bytes) noexcept {
  const std::lock_guard guard(tags_mutex_);
  try {
    TagUse& use = tags_[tag];
    use.used += static_cast<std::size_t>(bytes);
    use.peak = std::max(use.peak, use.used);
    if (bytes > 0) ++use.allocations;
  } catch (const std::bad_alloc&) {
    return;  // a tag that was never counted before
  }
}

void AllocationTracker::sample(double at, std::size_t held) noexcept {
  const std::lock_guard guard(samples_mutex_);
  if (at < next_sample_.load(std::memory_order_relaxed)) return;  // another thread was first
  if (samples_.size() == kSamples) {
    for (std::size_t i = 0; i < kSamples / 2; ++i) samples_[i] = samples_[2 * i];
    samples_.resize(kSamples / 2);
    interval_ *= 2;
  }
  samples_.push_back({at, used_.load(std::memory_order_relaxed), held, allocations_.load()});
  next_sample_.store(at + interval_, std::memory_order_relaxed);
}

std::vector<TagStats> AllocationTracker::tags() const {
  const std::lock_guard guard(tags_mutex_);
  std::vector<TagStats> out;
  for (const auto& [tag, use] : tags_) out.push_back({std::string(tag), use.allocations, use.used, use.peak});
  return out;
}

std::vector<MemorySample> AllocationTracker::timeline() const {
  const std::lock_guard guard(samples_mutex_);
  return samples_;
}

std::vector<LiveBlock> AllocationTracker::live_blocks() const {
  std::vector<LiveBlock> out;
  for (const Shard& shard : shards_) {
    const std::lock_guard guard(shard.mutex);
    for (const auto& [address, record] : shard.blocks) {
      LiveBlock& block = out.emplace_back(LiveBlock{address, record.bytes, record.tag, record.seconds, {}});
      for (void* frame : record.stack) block.stack.push_back(describe_frame(frame));
    }
  }
  std::sort(out.begin(), out.end(), [](const LiveBlock& a, const LiveBlock& b) {
    return a.bytes != b.bytes ? a.bytes > b.bytes : a.address < b.address;
  });
  return out;
}

}  // namespace bitnet::memory
