#pragma once
// The integers that ops of a step are given by the host (token ids, positions, page tables) in device memory.
// All layers of a step get the same ones, so they are uploaded once.
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "command_queue.hpp"
#include "device_memory_pool.hpp"

namespace bitnet::gpu {

/// A few arrays of integers, taken in turn, and from the first one on when all that was issued is done: so
/// equal steps have equal launches (launch_recorder.hpp). Not thread-safe.
class StepInputs {
 public:
  StepInputs(CommandQueue& queue, std::shared_ptr<DeviceMemoryPool> memory)
      : queue_(queue), memory_(std::move(memory)) {}
  ~StepInputs();
  StepInputs(const StepInputs&) = delete;
  StepInputs& operator=(const StepInputs&) = delete;

  /// A buffer with `values`, good for what is issued before the next kArrays different ones are asked for, or
  /// the queue has settled.
  /// Waits for nothing that the host has not long forgotten. Throws Error(kDevice).
  cl_mem get(std::span<const std::int32_t> values);

  static constexpr std::size_t kArrays = 8;

 private:
  struct Array {
    std::vector<std::int32_t> values;  // as they are, or will be, in `mem`
    PooledMem mem;
    ClEvent uploaded;
    std::uint64_t failures = 0;  // of the queue, when they were enqueued
    bool filled = false;
  };
  bool holds(const Array& a, std::span<const std::int32_t> values) const;
  void fill(Array& a, std::span<const std::int32_t> values, bool in_use);

  CommandQueue& queue_;
  std::shared_ptr<DeviceMemoryPool> memory_;
  std::array<Array, kArrays> arrays_;
  std::size_t taken_ = 0;      // since the queue has settled
  std::uint64_t settled_ = 0;  // of the queue, when the first of those was
};

}  // namespace bitnet::gpu
