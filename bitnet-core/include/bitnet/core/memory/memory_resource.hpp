#pragma once
// Where memory comes from, as an interface: what owns blocks (pools of the host or of a device) and what asks
// for them (KV pages, arenas, training, staging) meet here. The host's pool is in hybrid_memory_pool.hpp;
// handles that give a block back by themselves are in memory_handle.hpp.
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <string_view>

#include "bitnet/core/memory/memory_stats.hpp"

namespace bitnet {

inline constexpr std::size_t kDefaultAlignment = 16;
inline constexpr std::size_t kMaxAlignment = 4096;

/// Who asks, for reports: a string that lives as long as the program, such as a literal.
using MemoryTag = const char*;
inline constexpr MemoryTag kUntagged = "untagged";

/// Thread-safe: any thread may free what another has allocated. A block is an address on a host's resource,
/// and a driver's handle that must not be dereferenced on a device's.
class MemoryResource {
 public:
  virtual ~MemoryResource() = default;
  MemoryResource(const MemoryResource&) = delete;
  MemoryResource& operator=(const MemoryResource&) = delete;

  /// A block of at least `bytes`, uninitialised. Throws Error(kInvalidArgument) for 0 bytes or an alignment
  /// that is no power of two up to kMaxAlignment, Error(kOutOfMemory) naming asked, used and limit, and
  /// Error(kInternal) where it meets damage to the resource's own data.
  [[nodiscard]] virtual void* allocate(std::size_t bytes, std::size_t alignment = kDefaultAlignment,
                                       MemoryTag tag = kUntagged) = 0;
  /// The same, but null where allocate() throws Error(kOutOfMemory).
  [[nodiscard]] virtual void* try_allocate(std::size_t bytes, std::size_t alignment = kDefaultAlignment,
                                           MemoryTag tag = kUntagged) = 0;
  /// Takes a block back; null does nothing. Throws, and changes nothing, Error(kInvalidArgument) for what is
  /// no live block of this resource (freed already, another's, the inside of a block), and Error(kInternal)
  /// for a block whose surroundings were written to, where the resource checks that.
  virtual void deallocate(void* block) = 0;

  virtual std::string_view name() const noexcept = 0;
  virtual MemoryStats stats() const = 0;
  /// Gives free memory back to the system; live blocks stay where they are.
  virtual TrimReport trim() = 0;

  /// Counts the resource's reset()s: what was allocated before the last one is gone.
  std::uint64_t generation() const noexcept { return generation_.load(std::memory_order_relaxed); }

 protected:
  MemoryResource() = default;
  void next_generation() noexcept { generation_.fetch_add(1, std::memory_order_relaxed); }

 private:
  std::atomic<std::uint64_t> generation_{0};
};

namespace detail {
[[noreturn]] void throw_stale_handle(const MemoryResource* resource, std::uint64_t generation);
void deallocate_or_log(MemoryResource& resource, void* block) noexcept;
}  // namespace detail

/// A resource as a std::pmr::memory_resource, so that containers take it. Like a handle it belongs to one
/// generation: after its resource's reset(), allocating with it throws Error(kInvalidArgument) and what its
/// containers give back is left alone. Errors in giving back are logged: containers do it where none may
/// throw.
class PmrResource final : public std::pmr::memory_resource {
 public:
  explicit PmrResource(MemoryResource& resource, MemoryTag tag = kUntagged)
      : resource_(&resource), tag_(tag), generation_(resource.generation()) {}

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    if (resource_->generation() != generation_) detail::throw_stale_handle(resource_, generation_);
    return resource_->allocate(bytes == 0 ? 1 : bytes, alignment, tag_);
  }
  void do_deallocate(void* block, std::size_t, std::size_t) override {
    if (resource_->generation() == generation_) detail::deallocate_or_log(*resource_, block);
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override {
    const auto* same = dynamic_cast<const PmrResource*>(&other);
    return same != nullptr && same->resource_ == resource_ && same->generation_ == generation_;
  }

  MemoryResource* resource_;
  MemoryTag tag_;
  std::uint64_t generation_;
};

}  // namespace bitnet
