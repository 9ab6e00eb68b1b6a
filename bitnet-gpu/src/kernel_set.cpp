// See kernel_set.hpp.
#include "kernel_set.hpp"

#include <fmt/format.h>

#include <utility>

#include "kernels.hpp"

namespace bitnet::gpu {
namespace {

// Query heads that a work-item computes with one reading of the keys.
constexpr std::int64_t kHeadsWide = 4;

std::string with_common(std::string_view source) { return fmt::format("{}{}", kernels::common, source); }

int type_number(DType type) { return type == DType::kF32 ? 0 : type == DType::kF16 ? 1 : 2; }

std::int64_t largest_divisor(std::int64_t n, std::int64_t most) {
  while (n % most != 0) --most;
  return most;
}

/// An op may throw nothing but Error(kDevice), whatever the driver lacks.
template <class Body>
auto as_device_error(Body&& body) {
  try {
    return body();
  } catch (const Error& e) {
    if (e.code() == ErrorCode::kDevice) throw;
    throw Error(ErrorCode::kDevice, e.what());
  }
}

}  // namespace

KernelSet::KernelSet(ProgramCache& programs, const DeviceTraits& traits, Tuning tuning, cl_device_id device)
    : programs_(programs), device_(device), wide_(traits.wide), tuning_(std::move(tuning)) {
  rows_op("rope");
  normalize(0, true, true);
  normalize(0, false, true);
  ternary(1);
}

Kernel KernelSet::build(std::string_view source, const std::string& options, const char* name) {
  return as_device_error([&] {
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

const Kernel& KernelSet::normalize(int gate, bool norm, bool quantize) {
  Kernel& k = normalize_[static_cast<std::size_t>(4 * gate + 2 * int{norm} + int{quantize})];
  if (!k.object)
    k = build(kernels::normalize_quantize,
              fmt::format("-DBN_GATE={} -DBN_NORM={:d} -DBN_QUANTIZE={:d} {}", gate, norm, quantize,
                          tuning_.options("normalize_quantize", "any")),
              "normalize_quantize");
  return k;
}

const RowsKernel& KernelSet::by_rows(std::array<RowsKernel, 2>& pair, std::string_view source,
                                     const char* options, const char* name, std::int64_t rows) {
  RowsKernel& k = pair[rows > 1 ? 1 : 0];
  if (!k.kernel.object) {
    const std::string_view tuned_for = rows == 1 ? "one" : "many";
    k.rows = tuning_.value(name, tuned_for, "BN_ROWS", 1);
    // Named where the table has none, too: the launch sizes are derived from them.
    k.kernel =
        build(source,
              fmt::format("{} -DBN_ROWS={} -DBN_SPLIT={} {}", options, k.rows,
                          tuning_.value(name, tuned_for, "BN_SPLIT", 1), tuning_.options(name, tuned_for)),
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
  return by_rows(ternary_, kernels::ternary_matmul, "", "ternary_matmul", rows);
}

const RowsKernel& KernelSet::int8(std::int64_t rows) {
  return by_rows(int8_, kernels::int8_matmul, "", "int8_matmul", rows);
}

const RowsKernel& KernelSet::dense(DType type, std::int64_t rows) {
  constexpr const char* kTypes[] = {"-DBN_TYPE=0", "-DBN_TYPE=1", "-DBN_TYPE=2"};
  const int n = type_number(type);
  return by_rows(dense_[static_cast<std::size_t>(n)], kernels::dense_matmul, kTypes[n], "dense_matmul", rows);
}

const AttentionKernelPair& KernelSet::attention(const AttentionShape& shape) {
  const auto found = attention_.find(shape.key());
  if (found != attention_.end()) return found->second;
  AttentionKernelPair pair;
  pair.heads = wide_ ? largest_divisor(shape.group, kHeadsWide) : 1;
  const int type = shape.kv_type == DType::kI8 ? 2 : type_number(shape.kv_type);
  const std::string options =
      fmt::format("-DBN_KV_TYPE={} -DBN_HEAD_DIM={} -DBN_PAGE_SIZE={} -DBN_GROUP={} -DBN_HEADS={}", type,
                  shape.head_dim, shape.page_size, shape.group, pair.heads);
  pair.store = build(kernels::attention, options, "store_keys_values");
  pair.attend = build(kernels::attention, options, "attention");
  return attention_.emplace(shape.key(), std::move(pair)).first->second;
}

}  // namespace bitnet::gpu
