#pragma once
// Attention on the device: the tables that its kernels read, and their launches, with the rotation of queries
// and keys where that comes right before. What is computed is said in kernels/kv_store.cl and
// kernels/attention.cl.
#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "bitnet/core/device/backend_types.hpp"
#include "command_queue.hpp"
#include "kernel_set.hpp"
#include "linear_op.hpp"
#include "step_inputs.hpp"

namespace bitnet::gpu {

/// The matrices and caches of AttentionArgs as the kernels take them.
struct AttentionMemory {
  DeviceMatrix q, k, v, out;
  cl_mem keys, values;
};

/// Keeps its tables' memory. Rotations are held back until the next op: one launch does those of an
/// attention's queries and keys and stores what is new. Whoever issues anything else calls issue() first. Not
/// thread-safe.
class AttentionOp {
 public:
  AttentionOp(CommandQueue& queue, KernelSet& kernels, StepInputs& inputs,
              std::shared_ptr<DeviceMemoryPool> memory, const DeviceTraits& traits)
      : queue_(queue), kernels_(kernels), inputs_(inputs), memory_(std::move(memory)), traits_(traits) {}

  /// Backend::rope(), held back. Throws Error(kDevice).
  void rope(const DeviceMatrix& x, cl_mem positions, cl_mem table, std::int64_t head_dim);
  /// Whether run() may divide the keys of so many heads, whatever the rows.
  bool may_divide(std::int64_t n_heads, const AttentionShape& shape) const;
  /// Issues the rotations that are held back. Throws Error(kDevice).
  void issue();
  /// Throws Error(kDevice).
  void run(const AttentionArgs& args, const AttentionMemory& memory);

 private:
  struct Rope {
    DeviceMatrix x;
    cl_mem positions = nullptr, table = nullptr;
    std::int64_t head_dim = 0;
    ClMem kept_x, kept_table;  // until it is issued
  };

  bool ropes_of(const AttentionArgs& args, const AttentionMemory& memory) const;
  /// Into how many tiles the keys of these rows are divided, each an own work-group; 1: they are not.
  std::int64_t tiles_of(const AttentionArgs& args, std::int64_t heads_of_a_group) const;
  /// Scratch for them; none where the device has no memory left: then the keys are not divided, which gives
  /// the same bits.
  cl_mem parts(const AttentionArgs& args, std::int64_t n_tiles);
  void store(const AttentionArgs& args, const AttentionMemory& memory, const AttentionKernels& kernels,
             cl_mem plan);
  /// The kernels' `plan`; returns where the queries begin in it.
  std::uint32_t make_plan(const AttentionArgs& args);

  CommandQueue& queue_;
  KernelSet& kernels_;
  StepInputs& inputs_;
  std::shared_ptr<DeviceMemoryPool> memory_;
  const DeviceTraits& traits_;
  std::vector<std::int32_t> plan_;
  std::int64_t most_keys_ = 0;  // that a row of plan_ sees
  PooledMem parts_;             // f32 [rows, heads, tiles, head_dim + 2]
  std::array<Rope, 2> ropes_;
  std::size_t n_ropes_ = 0;  // held back
};

}  // namespace bitnet::gpu
