#pragma once
// The largest values of rows on the device; the programs are kernels/top.cl.
#include <memory>
#include <span>
#include <vector>

#include "bitnet/core/device/backend_types.hpp"
#include "command_queue.hpp"
#include "device_memory_pool.hpp"
#include "kernel_set.hpp"

namespace bitnet::gpu {

/// Not thread-safe.
class TopOp {
 public:
  /// Of each row; more are selected by the host from whole rows.
  static constexpr std::int64_t kMost = 512;

  TopOp(CommandQueue& queue, KernelSet& kernels, std::shared_ptr<DeviceMemoryPool> memory)
      : queue_(queue), kernels_(kernels), memory_(std::move(memory)) {}

  /// out: [rows of x, k], k ≤ kMost. Waits for the device. False where it has no memory left for the scratch
  /// of some k values a thousand: nothing was done. Throws Error(kDevice).
  bool run(const Matrix& x, cl_mem mem, std::int64_t k, std::span<TopValue> out);

 private:
  bool reserve(std::size_t which, std::size_t keys);

  CommandQueue& queue_;
  KernelSet& kernels_;
  std::shared_ptr<DeviceMemoryPool> memory_;
  PooledMem scratch_[2];
  std::vector<cl_ulong> keys_;
};

}  // namespace bitnet::gpu
