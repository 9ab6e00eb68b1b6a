#pragma once
// Fills device memory with what the host computes, a piece at a time: in place where device and host share
// memory, else through two staging buffers, one of which is filled while the other one travels.
#include <cstddef>
#include <functional>
#include <memory>
#include <span>

#include "bitnet/core/execution.hpp"
#include "command_queue.hpp"
#include "device_memory_pool.hpp"

namespace bitnet::gpu {

/// Not thread-safe.
class WeightWriter {
 public:
  /// `in_place`: buffers are mapped, and the driver gives their own memory.
  WeightWriter(std::shared_ptr<const ExecutionContext> context, CommandQueue& queue,
               std::shared_ptr<DeviceMemoryPool> memory, bool in_place)
      : context_(std::move(context)), queue_(queue), memory_(std::move(memory)), in_place_(in_place) {}

  const ExecutionContext& context() const noexcept { return *context_; }

  /// Writes units [begin, end) of unit_bytes each to `to`; called by several threads at once.
  using Fill = std::function<void(std::size_t begin, std::size_t end, std::byte* to)>;
  /// A buffer of `units`, filled by `fill`, whose exceptions pass. Throws Error(kOutOfMemory | kDevice).
  PooledMem write(std::size_t units, std::size_t unit_bytes, const Fill& fill);
  /// A buffer with a copy.
  PooledMem copy(std::span<const std::byte> from);

 private:
  /// body(), whose Error(kOutOfMemory) becomes the pool's.
  template <class Body>
  decltype(auto) driving(std::size_t bytes, Body&& body) const;
  void fill_on_threads(std::size_t begin, std::size_t end, std::size_t unit_bytes, std::byte* to,
                       const Fill& fill) const;
  void write_in_place(cl_mem to, std::size_t units, std::size_t unit_bytes, const Fill& fill);
  void write_staged(const PooledMem& to, std::size_t units, std::size_t unit_bytes, const Fill& fill);
  /// Memory of the host that the driver can copy from by itself.
  ClMem make_staging(std::size_t bytes) const;

  std::shared_ptr<const ExecutionContext> context_;
  CommandQueue& queue_;
  std::shared_ptr<DeviceMemoryPool> memory_;
  bool in_place_;
};

}  // namespace bitnet::gpu
