#pragma once
// Memory of the CPU backend: zero-filled blocks of the context's pool, from 32 KiB on page-aligned, below
// that at cache lines; large ones are taken from the system only when they are touched.
#include <cstddef>
#include <memory>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"

namespace bitnet::inference::cpu {

/// A buffer in host memory.
class HostBuffer final : public Buffer {
 public:
  /// Throws Error(kOutOfMemory) naming asked and available when the pool or the system has less to give.
  HostBuffer(std::size_t bytes, std::shared_ptr<HybridMemoryPool> pool, MemoryTag tag);
  ~HostBuffer() override;
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;
  std::byte* data() const noexcept { return data_; }

 private:
  std::shared_ptr<HybridMemoryPool> pool_;
  std::byte* data_ = nullptr;
};

/// Bytes that the system and this process's cgroup can still give.
std::size_t available_memory();
/// Bytes that the system has.
std::size_t total_memory();

}  // namespace bitnet::inference::cpu
