#pragma once
// Weights in device memory, in the layouts of kernels/*.cl, and how they get there. Who multiplies with them
// is linear_op.cpp, with dense ones opencl_backend.cpp.
#include <cstdint>
#include <memory>
#include <vector>

#include "bitnet/core/device/backend_types.hpp"
#include "bitnet/core/execution.hpp"
#include "device_memory_pool.hpp"
#include "weight_writer.hpp"

namespace bitnet::gpu {

constexpr std::int64_t kTileColumns = 16;      // of all packed layouts
constexpr std::int64_t kActivationBlock = 16;  // what rows of activations are padded to

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

/// ternary_matmul.cl's codes and scales.
class OpenClTernary final : public PreparedWeights {
 public:
  OpenClTernary(const LinearWeights& w, PooledMem codes_mem, PooledMem scales_mem)
      : PreparedWeights(w.out, w.in, true, codes_mem.bytes() + scales_mem.bytes()),
        codes(std::move(codes_mem)),
        scales(std::move(scales_mem)),
        rows_per_scale(static_cast<cl_uint>(w.rows_per_scale)),
        activations(w.activations) {}
  const PooledMem codes, scales;
  const cl_uint rows_per_scale;
  const ActivationForm activations;
};

/// ternary_groups.cl's codes and scales: one plane or two, each with scales of groups of columns (of all
/// columns: one group).
class OpenClExtended final : public PreparedWeights {
 public:
  struct Plane {
    PooledMem codes, scales;
    cl_uint group_cols = 0, group_words = 0, groups = 0;
    std::size_t bytes() const noexcept { return codes.bytes() + scales.bytes(); }
  };
  OpenClExtended(const LinearWeights& w, std::vector<Plane> all, std::size_t bytes)
      : PreparedWeights(w.out, w.in, true, bytes), planes(std::move(all)), activations(w.activations) {}
  const std::vector<Plane> planes;
  const ActivationForm activations;
};

/// int8_matmul.cl's table and scales.
class OpenClInt8 final : public PreparedWeights {
 public:
  OpenClInt8(const LinearWeights& w, PooledMem table_mem, PooledMem scales_mem)
      : PreparedWeights(w.out, w.in, false, table_mem.bytes() + scales_mem.bytes()),
        table(std::move(table_mem)),
        scales(std::move(scales_mem)),
        activations(w.activations) {}
  const PooledMem table, scales;
  const ActivationForm activations;
};

/// dense_matmul.cl's matrix.
class OpenClDense final : public PreparedWeights {
 public:
  OpenClDense(const LinearWeights& w, DType kept, PooledMem values_mem)
      : PreparedWeights(w.out, w.in, false, values_mem.bytes()), type(kept), values(std::move(values_mem)) {}
  const DType type;
  const PooledMem values;
};

/// Packs on the threads of `context`, straight into device memory or into a staging buffer. Throws
/// Error(kUnsupported) on sizes beyond the kernels' bounds, Error(kInvalidArgument) on trits other than −1, 0
/// and 1 and on weights that are not finite, Error(kOutOfMemory | kDevice).
std::shared_ptr<const OpenClTernary> prepare_ternary(const LinearWeights& w, WeightWriter& writer);
/// Linears with a second plane or with scales of groups of columns; of any size of group.
std::shared_ptr<const OpenClExtended> prepare_extended(const LinearWeights& w, WeightWriter& writer);
/// Rounded as bitnet-quant's Int8Linear rounds.
std::shared_ptr<const OpenClInt8> prepare_int8(const LinearWeights& w, WeightWriter& writer);
/// As given, or rounded to f16; then Error(kUnsupported) on a finite weight that f16 cannot hold.
std::shared_ptr<const OpenClDense> prepare_dense(const LinearWeights& w, DType kept, WeightWriter& writer);

}  // namespace bitnet::gpu
