// See kernel_set.hpp.
#include "kernel_set.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <utility>

#include "kernels.hpp"

namespace bitnet::gpu {
namespace {

// Rows that are few: k of a column is cut in parts, or a GPU has too little to do.
constexpr std::int64_t kFewRows = 16;
constexpr int kMostFewRows = 8;     // of a work-item then
constexpr int kMostFewSums = 4096;  // of a work-group, in local memory: 16 KiB of the 32 that a device has
constexpr int kMostGemmItems = 4;   // BN_GEMM_ITEMS
// Whatever kernel is chosen by the number of rows, it is that of one of these.
constexpr std::int64_t kRowCounts[] = {1, 2, 4, 8, kFewRows, kFewRows + 1};
// Query heads that a work-item computes with one reading of the keys.
constexpr std::int64_t kHeadsWide = 4;

std::string with_common(std::string_view source) { return fmt::format("{}{}", kernels::common, source); }

int type_number(DType type) { return type == DType::kF32 ? 0 : type == DType::kF16 ? 1 : 2; }

/// A source that shares kv_cache.cl.
std::string with_cache(std::string_view source) { return fmt::format("{}{}", kernels::kv_cache, source); }

std::string cache_options(const AttentionShape& shape) {
  const int type = shape.kv_type == DType::kI8 ? 2 : type_number(shape.kv_type);
  return fmt::format("-DBN_KV_TYPE={} -DBN_HEAD_DIM={} -DBN_PAGE_SIZE={} -DBN_GROUP={}", type, shape.head_dim,
                     shape.page_size, shape.group);
}

std::string attention_options(const AttentionShape& shape, std::int64_t heads) {
  return fmt::format("{} -DBN_HEADS={}", cache_options(shape), heads);
}

std::int64_t largest_divisor(std::int64_t n, std::int64_t most) {
  while (n % most != 0) --most;
  return most;
}

}  // namespace

KernelSet::KernelSet(ProgramCache& programs, const DeviceTraits& traits, Tuning tuning, cl_device_id device)
    : programs_(programs),
      device_(device),
      wide_(traits.wide),
      max_work_group_(traits.max_work_group),
      tuning_(std::move(tuning)) {
  rows_op("rope");
  normalize(0, true, true);
  normalize(0, false, true);
  ternary(1);
}

Kernel KernelSet::build(std::string_view source, const std::string& options, const char* name) {
  return in_op([&] {
    Kernel k{programs_.kernel(with_common(source), options, name), name, {}};
    std::size_t local[3] = {};
    check(clGetKernelWorkGroupInfo(k.object.get(), device_, CL_KERNEL_COMPILE_WORK_GROUP_SIZE, sizeof local,
                                   local, nullptr),
          "clGetKernelWorkGroupInfo");
    k.local = {local[0], local[1]};
    return k;
  });
}

const Kernel& KernelSet::rows_op(const char* name) {
  const auto found = rows_ops_.find(name);
  if (found != rows_ops_.end()) return found->second;
  return rows_ops_.emplace(name, build(kernels::rows, "", name)).first->second;
}

const Kernel& KernelSet::normalize(int gate, bool norm, bool quantize, ActivationForm form) {
  const int number = static_cast<int>(form);
  Kernel& k = normalize_[static_cast<std::size_t>(12 * number + 4 * gate + 2 * int{norm} + int{quantize})];
  if (!k.object)
    k = build(kernels::normalize_quantize,
              fmt::format("-DBN_GATE={} -DBN_NORM={:d} -DBN_QUANTIZE={:d} -DBN_FORM={} {}", gate, norm,
                          quantize, number, tuning_.options("normalize_quantize", "any")),
              "normalize_quantize");
  return k;
}

std::string KernelSet::sizes(const char* name, std::string_view tuned_for) const {
  std::string all;
  for (const char* macro : {"BN_OUT_WG", "BN_DENSE_WG"})
    if (const int value = tuning_.value(name, tuned_for, macro, 0); value != 0)
      all += fmt::format("-D{}={} ", macro, value);
  return all;
}

int KernelSet::tuned(const char* name, std::string_view tuned_for, const char* macro) const {
  return std::max(tuning_.value(name, tuned_for, macro, 1), 1);
}

const RowsKernel& KernelSet::by_rows(ByRows& kernels, std::string_view source, const char* options,
                                     const char* tuned_as, const char* name, std::int64_t rows) {
  const std::int64_t most = rows == 1 ? 1 : std::min(tuned(tuned_as, "many", "BN_ROWS"), kMostRows);
  const auto n = std::min(std::bit_ceil(static_cast<std::uint64_t>(rows)), static_cast<std::uint64_t>(most));
  RowsKernel& k = kernels[n - 1];
  if (!k.kernel.object) {
    k.rows = static_cast<std::int64_t>(n);
    k.kernel = build(
        source, fmt::format("{} -DBN_ROWS={} {}", options, n, sizes(tuned_as, rows == 1 ? "one" : "many")),
        name);
  }
  return k;
}

const Kernel& KernelSet::top(bool of_keys) {
  Kernel& k = top_[of_keys ? 1 : 0];
  if (!k.object) k = build(kernels::top, "", of_keys ? "top_of_keys" : "top_of_values");
  return k;
}

const RowsKernel& KernelSet::ternary(std::int64_t rows) {
  constexpr const char* kName = "ternary_matmul";
  if (wide_) return by_rows(ternary_, kernels::ternary_matmul, "", kName, kName, rows);
  return rows <= kFewRows ? few(rows) : gemm();
}

/// As for one row, with as many rows as there are, or as a work-item has of many.
const RowsKernel& KernelSet::few(std::int64_t rows) {
  constexpr const char* kName = "ternary_matmul";
  const int split = tuned(kName, "one", "BN_SPLIT"), items = split * tuned(kName, "one", "BN_OUT_WG");
  const int fit = std::bit_floor(static_cast<unsigned>(std::max(kMostFewSums / items, 1)));
  const auto most =
      static_cast<std::uint64_t>(std::min({tuned(kName, "many", "BN_ROWS"), kMostFewRows, fit}));
  const std::uint64_t n = std::min(std::bit_ceil(static_cast<std::uint64_t>(rows)), rows == 1 ? 1 : most);
  RowsKernel& k = ternary_[n - 1];
  if (!k.kernel.object) {
    k.rows = static_cast<std::int64_t>(n);
    k.kernel = build(kernels::ternary_matmul,
                     fmt::format("-DBN_ROWS={} -DBN_SPLIT={} {}", n, split, sizes(kName, "one")), kName);
  }
  return k;
}

const RowsKernel& KernelSet::gemm() {
  constexpr const char* kName = "ternary_matmul";
  if (gemm_.kernel.object) return gemm_;
  const int columns = tuning_.value(kName, "many", "BN_OUT_WG", 0), rows = tuned(kName, "many", "BN_ROWS");
  // Of options of the caller's own nothing is known but that they fit.
  const int items =
      columns == 0 ? 1 : std::clamp(static_cast<int>(max_work_group_) / columns, 1, kMostGemmItems);
  gemm_.kernel =
      build(kernels::ternary_matmul,
            fmt::format("-DBN_MANY=1 -DBN_ROWS={} -DBN_GEMM_ITEMS={} {}", rows, items, sizes(kName, "many")),
            "ternary_gemm");
  gemm_.rows = rows * items;
  return gemm_;
}

const RowsKernel& KernelSet::groups(std::int64_t rows) {
  return by_rows(groups_, kernels::ternary_groups, "", "ternary_matmul", "ternary_groups", rows);
}

const Kernel& KernelSet::group_sums() {
  if (!group_sums_.object) group_sums_ = build(kernels::ternary_groups, "-DBN_ROWS=1", "group_sums");
  return group_sums_;
}

const RowsKernel& KernelSet::int8(std::int64_t rows) {
  return by_rows(int8_, kernels::int8_matmul, "", "int8_matmul", "int8_matmul", rows);
}

const RowsKernel& KernelSet::dense(DType type, std::int64_t rows) {
  constexpr const char* kTypes[] = {"-DBN_TYPE=0", "-DBN_TYPE=1", "-DBN_TYPE=2"};
  const int n = type_number(type);
  return by_rows(dense_[static_cast<std::size_t>(n)], kernels::dense_matmul, kTypes[n], "dense_matmul",
                 "dense_matmul", rows);
}

/// Rows that become integers of a form.
void KernelSet::need_form(ActivationForm form) {
  forms_[static_cast<std::size_t>(form)] = true;
  normalize(0, true, true, form);
  normalize(0, false, true, form);
  if (gate_ != 0) normalize(gate_, gate_norm_, true, form);
}

void KernelSet::need_ternary(ActivationForm form) {
  need_form(form);
  for (const std::int64_t rows : kRowCounts) ternary(rows);
}

void KernelSet::need_groups(ActivationForm form) {
  need_form(form);
  group_sums();
  for (const std::int64_t rows : kRowCounts) groups(rows);
}

void KernelSet::need_int8(ActivationForm form) {
  need_form(form);
  for (const std::int64_t rows : kRowCounts) int8(rows);
}

void KernelSet::need_dense(DType type) {
  for (const std::int64_t rows : kRowCounts) dense(type, rows);
}

void KernelSet::need_steps(const AttentionShape& shape, bool parts, int gate, bool gate_norm) {
  if (parts) {
    attention_in_parts(shape);
  } else {
    attention(shape);
  }
  normalize(0, true, false);
  gate_ = gate;
  gate_norm_ = gate_norm;
  for (std::size_t form = 0; form < forms_.size(); ++form)
    if (forms_[form]) need_form(static_cast<ActivationForm>(form));
}

AttentionKernels& KernelSet::attention_of(const AttentionShape& shape) {
  const auto found = attention_.find(shape.key());
  if (found != attention_.end()) return found->second;
  AttentionKernels all;
  all.heads = wide_ ? largest_divisor(shape.group, kHeadsWide) : 1;
  const std::string store = with_cache(kernels::kv_store), options = cache_options(shape);
  all.store = build(store, options, "store_keys_values");
  all.rope_and_store = build(store, options, "rope_and_store");
  all.attend = build(with_cache(kernels::attention), attention_options(shape, all.heads), "attention");
  return attention_.emplace(shape.key(), std::move(all)).first->second;
}

const AttentionKernels& KernelSet::attention(const AttentionShape& shape) { return attention_of(shape); }

const AttentionKernels& KernelSet::attention_in_parts(const AttentionShape& shape) {
  AttentionKernels& all = attention_of(shape);
  if (!all.merge.object) {
    const std::string options = attention_options(shape, all.heads) + " -DBN_PARTS=1";
    const std::string source = with_cache(kernels::attention);
    all.parts = build(source, options, "attention");
    all.merge = build(source, options, "attention_merge");
  }
  return all;
}

}  // namespace bitnet::gpu
