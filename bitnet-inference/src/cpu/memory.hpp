#pragma once
// Memory of the CPU backend: page-aligned, zero-filled, taken from the system only when it is touched.
#include <cstddef>

#include "bitnet/core/device/backend.hpp"

namespace bitnet::inference::cpu {

/// A buffer in host memory.
class HostBuffer final : public Buffer {
 public:
  /// Throws Error(kOutOfMemory) naming both sizes when the system has less to give.
  explicit HostBuffer(std::size_t bytes);
  ~HostBuffer() override;
  HostBuffer(const HostBuffer&) = delete;
  HostBuffer& operator=(const HostBuffer&) = delete;
  std::byte* data() const noexcept { return data_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t mapped_ = 0;
};

/// Bytes that the system and this process's cgroup can still give.
std::size_t available_memory();
/// Bytes that the system has.
std::size_t total_memory();

}  // namespace bitnet::inference::cpu
