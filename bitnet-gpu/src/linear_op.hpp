#pragma once
// Products with quantised rows on the device: rows made int8 by normalize_quantize.cl, then multiplied by
// ternary, extended or int8 weights, as few launches as there can be. Dense products and what the ops of a
// step are is opencl_backend.cpp.
#include <array>
#include <cstdint>
#include <memory>
#include <span>

#include "bitnet/core/device/backend_types.hpp"
#include "command_queue.hpp"
#include "device_memory_pool.hpp"
#include "kernel_set.hpp"
#include "launch.hpp"
#include "prepared.hpp"

namespace bitnet::gpu {

/// A matrix as kernels take it: floats [rows, cols] from an element of a buffer on.
struct DeviceMatrix {
  cl_mem mem = nullptr;
  cl_ulong offset = 0;  ///< elements
  std::int64_t rows = 0, cols = 0;
  bool operator==(const DeviceMatrix&) const = default;
  /// Rows first … first + n − 1.
  DeviceMatrix part(std::int64_t first, std::int64_t n) const {
    return {mem, offset + static_cast<cl_ulong>(first * cols), n, cols};
  }
};

/// What becomes rows of integers: x, or f(x) · up, and then its RMSNorm if `norm` is there.
struct RowsToQuantize {
  DeviceMatrix x;
  int gate = 0;  ///< BN_GATE
  DeviceMatrix up = {};
  cl_mem norm = nullptr;
  float eps = 0;
};

/// One ternary product that nobody needs at once is held back until the next op, which may be the addition of
/// its result to the residual: then one launch does both. Whoever issues anything else calls issue() first.
/// Not thread-safe.
class LinearOp {
 public:
  LinearOp(CommandQueue& queue, KernelSet& kernels, std::shared_ptr<DeviceMemoryPool> memory)
      : queue_(queue), kernels_(kernels), memory_(std::move(memory)) {}

  static constexpr std::int64_t kChunkRows = 256;  ///< rows quantised at once: bounds the scratch memory

  /// Takes what ops on weights of so many columns, in so many groups, need, so that they allocate nothing.
  /// Throws Error(kOutOfMemory | kDevice).
  void reserve(std::int64_t in, std::int64_t groups);

  /// outs[i] = rows · weights[i]ᵀ, each an OpenClTernary or OpenClExtended. Throws Error(kDevice).
  void run(const RowsToQuantize& rows, std::span<const PreparedWeights* const> weights,
           std::span<const DeviceMatrix> outs);
  /// out = rows · weightsᵀ. Throws Error(kDevice).
  void run(const RowsToQuantize& rows, const OpenClInt8& weights, const DeviceMatrix& out);

  /// x += y as part of the product that is held back, if y is its result. False: nothing was done. Throws
  /// Error(kDevice).
  bool add(const DeviceMatrix& x, const DeviceMatrix& y);
  /// Issues what is held back. Throws Error(kDevice).
  void issue();

 private:
  struct Product {
    const OpenClTernary* weights;
    DeviceMatrix out;
  };
  static constexpr std::size_t kMatrices = 3;  // of a launch

  void quantize(const RowsToQuantize& rows, ActivationForm form);
  void multiply_form(std::span<const PreparedWeights* const> weights, std::span<const DeviceMatrix> outs,
                     ActivationForm form, std::int64_t first, std::int64_t n, bool hold);
  void multiply(std::span<const Product> products, bool hold);
  void multiply(const OpenClExtended& w, const DeviceMatrix& out);
  void multiply(const OpenClInt8& w, const DeviceMatrix& out);
  std::array<std::size_t, 2> groups_of(const RowsKernel& k, std::int64_t rows, std::int64_t out) const;

  CommandQueue& queue_;
  KernelSet& kernels_;
  std::shared_ptr<DeviceMemoryPool> memory_;
  PooledMem rows_;        // i8 [kChunkRows, widest stride], and kSlack more
  PooledMem inv_scales_;  // f32 [kChunkRows]
  PooledMem sums_;        // i32 [kChunkRows]
  PooledMem group_sums_;  // i32 [kChunkRows, most groups]

  Launch held_;                // none where it is of nothing
  DeviceMatrix held_out_;      // its result; no matrix where there are several
  std::array<ClMem, 4> kept_;  // what its arguments name
};

}  // namespace bitnet::gpu
