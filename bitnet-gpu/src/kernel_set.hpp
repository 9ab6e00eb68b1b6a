#pragma once
// All kernels of one device, each built when it is first asked for, by a need_…() at the latest when weights
// and steps are prepared. What they compute and how their data lies is said in kernels/*.cl; who launches
// them is opencl_backend.cpp, linear_op.cpp, attention_op.cpp and top_op.cpp.
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <tuple>

#include "bitnet/core/device/backend_types.hpp"
#include "bitnet/core/dtype.hpp"
#include "bitnet/core/model/model_config.hpp"
#include "command_queue.hpp"
#include "device_traits.hpp"
#include "program_cache.hpp"
#include "tuning_table.hpp"

namespace bitnet::gpu {

/// Work-groups of `size` that cover so many items.
constexpr std::size_t n_groups(std::int64_t items, std::size_t size) {
  return (static_cast<std::size_t>(items) + size - 1) / size;
}

/// A kernel whose work-groups compute `rows` rows.
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

/// Of kv_store.cl and attention.cl; `parts` and `merge` are for tiles at a time (BN_PARTS).
struct AttentionKernels {
  Kernel store, rope_and_store, attend, parts, merge;
  std::int64_t heads = 1;  ///< query heads of one work-item or group
};

/// Not thread-safe.
class KernelSet {
 public:
  /// Builds what every model needs. Throws Error(kDevice) with the build log.
  KernelSet(ProgramCache& programs, const DeviceTraits& traits, Tuning tuning, cl_device_id device);

  // Builds throw Error(kDevice) alone.
  /// A kernel of rows.cl.
  const Kernel& rows_op(const char* name);  // of static storage
  /// normalize_quantize.cl; `gate`: its BN_GATE.
  const Kernel& normalize(int gate, bool norm, bool quantize, ActivationForm form = ActivationForm::kInt8);
  /// The kernel of ternary_matmul.cl, ternary_groups.cl and int8_matmul.cl for so many rows.
  const RowsKernel& ternary(std::int64_t rows);
  const RowsKernel& groups(std::int64_t rows);
  const RowsKernel& int8(std::int64_t rows);
  const Kernel& group_sums();
  /// dense_matmul.cl for weights of a type.
  const RowsKernel& dense(DType type, std::int64_t rows);
  const AttentionKernels& attention(const AttentionShape& shape);
  /// The same, with `parts` and `merge`, which attention() lacks.
  const AttentionKernels& attention_in_parts(const AttentionShape& shape);

  // What is built ahead, for every number of rows, so that no op compiles. Throw Error(kDevice).
  /// One plane of trits with scales of whole rows; else of trits in general; int8; dense of a type.
  void need_ternary(ActivationForm form);
  void need_groups(ActivationForm form);
  void need_int8(ActivationForm form);
  void need_dense(DType type);
  /// Attention, with parts if they may be of use, and the rows between products: a gate (BN_GATE), with a
  /// norm behind it or not.
  void need_steps(const AttentionShape& shape, bool parts, int gate, bool gate_norm);

  /// top.cl: of values, or of keys that it has made.
  const Kernel& top(bool of_keys);

  bool wide() const noexcept { return wide_; }
  const Tuning& tuning() const noexcept { return tuning_; }

 private:
  Kernel build(std::string_view source, const std::string& options, const char* name);
  AttentionKernels& attention_of(const AttentionShape& shape);
  void need_form(ActivationForm form);
  static constexpr int kMostRows = 16;
  using ByRows = std::array<RowsKernel, kMostRows>;  ///< by the rows of a work-item, from 1 on
  /// The one with as many rows as there are, rounded up to a power of two, or with those of the tuned
  /// program.
  const RowsKernel& by_rows(ByRows& kernels, std::string_view source, const char* options,
                            const char* tuned_as, const char* name, std::int64_t rows);
  const RowsKernel& few(std::int64_t rows);
  const RowsKernel& gemm();
  /// The tuned sizes of work-groups as options.
  std::string sizes(const char* name, std::string_view tuned_for) const;
  int tuned(const char* name, std::string_view tuned_for, const char* macro) const;

  ProgramCache& programs_;
  cl_device_id device_;
  bool wide_;
  std::size_t max_work_group_;
  const Tuning tuning_;
  std::map<std::string_view, Kernel> rows_ops_;
  std::array<Kernel, 2> top_;
  Kernel group_sums_;
  std::array<Kernel, 36> normalize_;  // [form][gate][norm][quantize]
  std::array<bool, 3> forms_{};       // that need_form() has seen
  int gate_ = 0;                      // of need_steps(), 0: none yet
  bool gate_norm_ = false;
  ByRows ternary_, groups_, int8_;
  RowsKernel gemm_;
  std::array<ByRows, 3> dense_;  // f32, f16, bf16
  std::map<decltype(AttentionShape().key()), AttentionKernels> attention_;
};

}  // namespace bitnet::gpu
