#pragma once
// All kernels of one device, each built when it is first asked for. What they compute and how their data lies
// is said in kernels/*.cl; who launches them is opencl_backend.cpp and attention.cpp.
#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>

#include "bitnet/core/dtype.hpp"
#include "bitnet/core/model/model_config.hpp"
#include "command_queue.hpp"
#include "device_traits.hpp"
#include "program_cache.hpp"
#include "tuning_table.hpp"

namespace bitnet::gpu {

/// A kernel that computes `rows` rows a work-item.
struct RowsKernel {
  Kernel kernel;
  std::int64_t rows = 1;
};

/// What of attention is known when its kernels are compiled.
struct AttentionShape {
  DType kv_type = DType::kF16;
  std::int64_t head_dim = 0, page_size = 0, group = 0;  ///< group: query heads of a KV head
  auto key() const { return std::tuple(kv_type, head_dim, page_size, group); }
};

struct AttentionKernelPair {
  Kernel store, attend;
  std::int64_t heads = 1;  ///< query heads of one work-item or group
};

/// Not thread-safe.
class KernelSet {
 public:
  /// Builds what every model needs. Throws Error(kDevice) with the build log.
  KernelSet(ProgramCache& programs, const DeviceTraits& traits, Tuning tuning, cl_device_id device);

  // Later builds throw Error(kDevice) alone.
  /// A kernel of rows.cl.
  const Kernel& rows_op(const char* name);  // of static storage
  /// normalize_quantize.cl; `gate`: its BN_GATE.
  const Kernel& normalize(int gate, bool norm, bool quantize);
  /// ternary_matmul.cl and int8_matmul.cl for so many rows.
  const RowsKernel& ternary(std::int64_t rows);
  const RowsKernel& int8(std::int64_t rows);
  /// dense_matmul.cl for weights of a type.
  const RowsKernel& dense(DType type, std::int64_t rows);
  const AttentionKernelPair& attention(const AttentionShape& shape);

  /// top.cl: of values, or of keys that it has made.
  const Kernel& top(bool of_keys);

  bool wide() const noexcept { return wide_; }
  const Tuning& tuning() const noexcept { return tuning_; }
  /// Bytes of an activation that normalize_quantize.cl writes.
  std::size_t activation_bytes() const noexcept { return wide_ ? 2 : 1; }

 private:
  Kernel build(std::string_view source, const std::string& options, const char* name);
  const RowsKernel& by_rows(std::array<RowsKernel, 2>& pair, std::string_view source, const char* options,
                            const char* name, std::int64_t rows);

  ProgramCache& programs_;
  cl_device_id device_;
  bool wide_;
  const Tuning tuning_;
  std::map<std::string_view, Kernel> rows_ops_;
  std::array<Kernel, 2> top_;
  std::array<Kernel, 12> normalize_;  // [gate][norm][quantize]
  std::array<RowsKernel, 2> ternary_, int8_;
  std::array<std::array<RowsKernel, 2>, 3> dense_;  // f32, f16, bf16
  std::map<decltype(AttentionShape().key()), AttentionKernelPair> attention_;
};

}  // namespace bitnet::gpu
