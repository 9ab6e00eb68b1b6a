#pragma once
// What a pool knows of single blocks from TrackingLevel::kStandard on: tag, time and, at kDetailed, the stack
// that asked. The counts that every level has are kept by the pools themselves.
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "bitnet/core/memory/memory_resource.hpp"

namespace bitnet::memory {

/// Thread-safe. What cannot be written down for want of memory is left out: tracking fails no allocation.
class AllocationTracker {
 public:
  /// `interval`: seconds between the first samples.
  explicit AllocationTracker(bool with_stacks, double interval = 0.001);

  void add(const void* block, std::size_t bytes, MemoryTag tag, std::size_t held) noexcept;
  void remove(const void* block, std::size_t held) noexcept;
  /// Forgets every block; what happened so far stays counted.
  void clear() noexcept;

  std::vector<TagStats> tags() const;
  std::vector<MemorySample> timeline() const;
  /// Largest first.
  std::vector<LiveBlock> live_blocks() const;

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t kShards = 16, kFrames = 16, kSamples = 1024;
  struct Record {
    std::size_t bytes;
    MemoryTag tag;
    double seconds;
    std::vector<void*> stack;
  };
  struct TagUse {
    std::uint64_t allocations = 0;
    std::size_t used = 0, peak = 0;
  };
  struct alignas(64) Shard {
    mutable std::mutex mutex;
    std::unordered_map<const void*, Record> blocks;
  };

  double now() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  Shard& shard_of(const void* block) {
    return shards_[(reinterpret_cast<std::uintptr_t>(block) >> 4) * 0x9e3779b97f4a7c15 >> 60];
  }
  void count(MemoryTag tag, std::int64_t bytes) noexcept;
  void sample(double at, std::size_t held) noexcept;

  const bool with_stacks_;
  const Clock::time_point start_ = Clock::now();
  std::array<Shard, kShards> shards_;
  std::atomic<std::size_t> used_{0};
  std::atomic<std::uint64_t> allocations_{0};
  mutable std::mutex tags_mutex_;
  std::map<std::string_view, TagUse> tags_;  // under tags_mutex_
  mutable std::mutex samples_mutex_;
  std::vector<MemorySample> samples_;  // under samples_mutex_; has room for kSamples
  double interval_;                    // seconds, under samples_mutex_
  std::atomic<double> next_sample_{0};
};

}  // namespace bitnet::memory
