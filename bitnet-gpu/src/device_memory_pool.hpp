#pragma once
// The memory of one OpenCL context as a bitnet::MemoryResource: its blocks are cl_mem handles. The host's
// pool is bitnet-core's HybridMemoryPool.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "bitnet/core/memory/memory_handle.hpp"
#include "bitnet/core/memory/memory_resource.hpp"
#include "cl_objects.hpp"

namespace bitnet::gpu {

/// Buffers that are given back wait for the next request of their size, since drivers take long to make one;
/// trim(), or a request that needs the room, gives them back to the driver. A buffer may be handed out again
/// while work on it is still queued, so all users of a pool must issue their work through one CommandQueue,
/// which keeps it in order. A buffer that is handed out has its memory: drivers that take it at the first use
/// are made to take it at once, on a queue of the pool's own. Thread-safe.
class DeviceMemoryPool final : public MemoryResource {
 public:
  /// `name`: of the device, the only one of the context; `limit`: bytes of all buffers; `largest`: bytes of
  /// one. `shares_host_memory`: mapping a buffer is to copy nothing. Keeps the context alive. Throws
  /// Error(kDevice | kOutOfMemory).
  DeviceMemoryPool(std::string name, cl_context context, std::size_t limit, std::size_t largest,
                   bool shares_host_memory = false);
  ~DeviceMemoryPool() override;

  /// A cl_mem, up to an eighth larger than asked for, so that buffers of about one size can take each other's
  /// place; where that does not fit as large as asked for, and for weights, which stay, up to 255 bytes
  /// larger. `alignment` is
  /// checked, but not heeded: the driver aligns buffers for every type of OpenCL.
  [[nodiscard]] void* allocate(std::size_t bytes, std::size_t alignment = kDefaultAlignment,
                               MemoryTag tag = kUntagged) override;
  [[nodiscard]] void* try_allocate(std::size_t bytes, std::size_t alignment = kDefaultAlignment,
                                   MemoryTag tag = kUntagged) override;
  void deallocate(void* buffer) override;

  std::string_view name() const noexcept override { return name_; }
  MemoryStats stats() const override;
  /// `returned` stays 0: no driver says what it gave back to the system.
  TrimReport trim() override;
  std::vector<TagStats> tags() const;
  /// Bytes that live buffers leave of the limit.
  std::size_t free_bytes() const;
  /// Of MemoryStats::allocations, those that a spare buffer served.
  std::uint64_t reused() const;
  /// Whether a live buffer had another user before this one.
  bool used_before(const void* buffer) const;
  /// `leaving` is told of buffers before they go back to the driver, by the thread that makes them go and
  /// within the call that does: it must not call the pool. Null: nobody is, and nobody is being told.
  void on_release(std::function<void(std::span<const cl_mem>)> leaving);
  /// Throws Error(kOutOfMemory) as allocate() does where the driver has no `bytes` left; `why` is its word.
  [[noreturn]] void refuse(std::size_t bytes, MemoryTag tag, std::string_view why) const;
  cl_context context() const noexcept { return context_.get(); }

 private:
  struct Live {
    std::size_t asked, bytes;
    MemoryTag tag;
    bool used_before;
  };
  struct OfASize {
    std::uint64_t allocations = 0, live = 0;
  };
  // `status`: of the driver, or CL_SUCCESS where the limit alone is in the way.
  void* take(std::size_t bytes, std::size_t alignment, MemoryTag tag, cl_int& status);
  ClMem make(std::size_t bytes, cl_int& status);
  ClMem create(std::size_t bytes, cl_int& status);
  cl_int commit(cl_mem buffer);
  [[noreturn]] void throw_refusal(std::size_t bytes, MemoryTag tag, std::string_view why) const;
  std::string story(std::size_t bytes, MemoryTag tag) const;
  std::size_t left() const;
  std::size_t release_spare();
  void tell(std::span<const cl_mem> leaving) const;

  const std::string name_;
  ClContext context_;
  const std::size_t limit_, largest_;
  const cl_mem_flags flags_;
  mutable std::mutex mutex_;  // everything below is under it
  ClQueue queue_;             // of nothing but commit()
  std::unordered_map<void*, Live> live_;
  std::multimap<std::size_t, ClMem> spare_;  // by size
  std::function<void(std::span<const cl_mem>)> leaving_;
  std::map<std::string_view, TagStats> tags_;
  std::map<std::size_t, OfASize> sizes_;  // by the size that requests are rounded to
  std::size_t used_ = 0, held_ = 0, peak_used_ = 0, peak_held_ = 0;
  std::uint64_t allocations_ = 0, frees_ = 0, refusals_ = 0, reused_ = 0, asked_ = 0, given_ = 0;
};

/// A buffer of a pool that it keeps alive, or none.
class PooledMem {
 public:
  PooledMem() = default;
  /// At least one byte: OpenCL has no empty buffers. Throws what DeviceMemoryPool::allocate throws.
  PooledMem(std::shared_ptr<DeviceMemoryPool> pool, std::size_t bytes, MemoryTag tag)
      : pool_(std::move(pool)), block_(*pool_, bytes == 0 ? 1 : bytes, kDefaultAlignment, tag) {}
  /// None where the pool has no memory left; throws Error(kDevice).
  static PooledMem try_make(const std::shared_ptr<DeviceMemoryPool>& pool, std::size_t bytes, MemoryTag tag) {
    PooledMem made;
    made.block_ = MemoryBlock::try_make(*pool, bytes == 0 ? 1 : bytes, kDefaultAlignment, tag);
    if (made.block_) made.pool_ = pool;
    return made;
  }
  PooledMem(PooledMem&&) noexcept = default;
  PooledMem& operator=(PooledMem&& other) noexcept {
    block_ = std::move(other.block_);  // gives the old block back while its pool is there
    pool_ = std::move(other.pool_);
    return *this;
  }
  cl_mem get() const { return block_ ? static_cast<cl_mem>(block_.data()) : nullptr; }
  std::size_t bytes() const noexcept { return block_ ? block_.size() : 0; }
  bool used_before() const { return block_ && pool_->used_before(block_.data()); }

 private:
  std::shared_ptr<DeviceMemoryPool> pool_;  // outlives the block
  MemoryBlock block_;
};

}  // namespace bitnet::gpu
