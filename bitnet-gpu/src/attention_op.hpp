#pragma once
// Attention on the device: the tables that its kernels read, and their launches. What is computed is said in
// kernels/attention.cl.
#include <cstdint>
#include <vector>

#include "bitnet/core/device/backend_types.hpp"
#include "command_queue.hpp"
#include "kernel_set.hpp"
#include "step_inputs.hpp"

namespace bitnet::gpu {

/// The matrices and caches of AttentionArgs as the kernels take them.
struct AttentionMemory {
  cl_mem q, k, v, out, keys, values;
};

/// Keeps its tables' memory. Not thread-safe.
class AttentionOp {
 public:
  AttentionOp(CommandQueue& queue, KernelSet& kernels, StepInputs& inputs)
      : queue_(queue), kernels_(kernels), inputs_(inputs) {}

  /// Throws Error(kDevice).
  void run(const AttentionArgs& args, const AttentionMemory& memory);

 private:
  /// The kernels' `plan`; returns where the queries begin in it.
  std::uint32_t make_plan(const AttentionArgs& args);

  CommandQueue& queue_;
  KernelSet& kernels_;
  StepInputs& inputs_;
  std::vector<std::int32_t> plan_;
};

}  // namespace bitnet::gpu
