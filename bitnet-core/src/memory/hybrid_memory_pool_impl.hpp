#pragma once
// The parts of a HybridMemoryPool and what joins them; hybrid_memory_pool.cpp gives and takes blocks,
// hybrid_memory_pool_stats.cpp counts them.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "allocation_tracker.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "large_block_cache.hpp"
#include "large_block_pool.hpp"
#include "small_block_pool.hpp"

namespace bitnet {

namespace memory {
/// While other threads are at work, a free may be counted whose allocation was not yet: never below 0.
constexpr std::uint64_t saturating_difference(std::uint64_t allocated, std::uint64_t freed) {
  return allocated - std::min(allocated, freed);
}
}  // namespace memory

struct HybridMemoryPool::Impl {
  /// Throws Error(kInvalidArgument) for options out of range.
  explicit Impl(MemoryPoolOptions o);

  void* allocate(std::size_t bytes, std::size_t alignment, MemoryTag tag, memory::Outcome& outcome,
                 bool zero = false);
  void* allocate_near(std::size_t bytes, std::size_t alignment);
  void fill_zero(void* block, std::size_t bytes, bool is_zero) const;
  void deallocate(void* block);
  std::string leak_report(std::size_t used) const;
  void* allocate_once(std::size_t bytes, std::size_t alignment, memory::Outcome& outcome);
  void* allocate_small(unsigned size_class, std::size_t bytes, memory::Outcome& outcome);
  void* take_small(memory::ThreadCache& cache, unsigned size_class, std::size_t bytes,
                   memory::Outcome& outcome);
  void* allocate_large(std::size_t bytes, memory::Outcome& outcome);
  void free_block(void* block);
  void free_small(memory::ThreadCache& cache, void* block, unsigned size_class);
  void check_guard(void* block, void*& whole) const;
  void* start_of(const void* block, std::size_t& bytes) const;
  std::size_t end_of_block_at(const void* inside) const;
  void publish(memory::ThreadCache& cache, std::int64_t bytes);
  [[noreturn]] void refuse_arguments(std::size_t bytes, std::size_t alignment) const;
  [[noreturn]] void refuse(std::size_t bytes, MemoryTag tag, memory::Refusal why) const;
  [[noreturn]] void refuse_block(const void* block, std::string_view why) const;
  /// Beyond the range's bytes for what does not lie in it.
  std::size_t offset_of(const void* p) const noexcept {
    return reinterpret_cast<std::uintptr_t>(p) - reinterpret_cast<std::uintptr_t>(large.range().base());
  }
  std::size_t used(const memory::SmallBlockPool::Counts& counts) const;
  /// What blocks and the caches of small ones occupy; large ones that wait in their cache are free.
  std::size_t held() const noexcept { return memory::saturating_difference(large.held(), waiting.waiting()); }
  /// Whether something came free.
  bool reclaim(bool now) noexcept;
  void report_damage() noexcept;

  const MemoryPoolOptions options;
  memory::UseTotal total;
  memory::LargeBlockPool large;
  memory::SmallBlockPool small;
  const bool counted;
  memory::LargeBlockCache waiting;  // in front of `large`
  const std::int64_t publish_from;  // bytes
  std::optional<memory::AllocationTracker> tracker;
  const bool plain;  // neither checks blocks nor tracks single ones
  std::atomic<std::uint64_t> refusals{0};
  std::atomic<bool> damage_reported{false};
};

}  // namespace bitnet
