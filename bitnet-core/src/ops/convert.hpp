#pragma once
// Elements of any dtype as floats and back, run by run, and copies between tensors of one shape. The rules
// for NaN and infinities are Tensor::to's.
#include <cstdint>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/tensor.hpp"
#include "kernels/tensor_table.hpp"

namespace bitnet {
struct F32Kernels;
}

namespace bitnet::ops {

/// f32, f16 and bf16.
constexpr bool is_float(DType dtype) noexcept {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}

/// The tables that runs are computed with, tested before their first use in a process.
struct Tables {
  const F32Kernels& f32;
  const TensorKernels& tensor;
};
/// Throws Error(kDevice) where a test fails.
Tables tables(Isa isa);

/// Elements offset, offset + stride, … of `data` as floats to[0 … n): exact but for i32, which is rounded.
/// Not for kTernary.
void load_f32(const Tables& t, DType dtype, const std::byte* data, std::int64_t offset, std::int64_t stride,
              float* to, std::int64_t n) noexcept;
/// The reverse, rounded once.
void store_f32(const Tables& t, const float* from, DType dtype, std::byte* data, std::int64_t offset,
               std::int64_t stride, std::int64_t n) noexcept;

/// One element as a double (exact) and back (rounded once), of any dtype.
double load_element(DType dtype, const std::byte* data, std::int64_t i) noexcept;
void store_element(DType dtype, std::byte* data, std::int64_t i, double v) noexcept;

/// Tensor::uninitialized() of the context's pool: what results and temporaries are.
Tensor make_tensor(const ExecutionContext& context, DType dtype, const Shape& shape);

/// One thread and default_isa(), for functions that are given no context.
const ExecutionContext& one_thread();

/// to = from, same shape and dtype, any strides, no memory in common. Not for kTernary.
void copy_elements(const ExecutionContext& context, const Tensor& from, Tensor& to);
/// A contiguous tensor of its own memory, whatever `from` is.
Tensor copy_of(const ExecutionContext& context, const Tensor& from);
/// to = from converted, same shape, any strides (kTernary: contiguous), no memory in common.
void convert_elements(const ExecutionContext& context, const Tensor& from, Tensor& to);

/// from.contiguous() and from.to(dtype) on the context's threads and of its pool; not to kTernary.
Tensor contiguous(const ExecutionContext& context, const Tensor& from);
Tensor converted(const ExecutionContext& context, const Tensor& from, DType dtype);

}  // namespace bitnet::ops
