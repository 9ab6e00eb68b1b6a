#pragma once
// Moving elements of tensors by index: gather and scatter, rows by number, concatenation. Slices, permutes
// and reshapes copy nothing and are Tensor's own. The rules of ops.hpp hold; every dtype but kTernary moves,
// to the bit. Thread-safe where what a call writes to is no other thread's meanwhile.
#include <cstdint>
#include <span>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/tensor.hpp"

namespace bitnet::ops {

// Indices are i32 tensors with values in [0, size of the axis); others are Error(kInvalidArgument) naming the
// first bad one, where it stands and the range. Nothing is written then.

/// x with `axis` replaced by the shape of `index`: take(x [v, d], index [n], 0) → [n, d] is a look-up of rows
/// (numpy.take).
Tensor take(const ExecutionContext& context, const Tensor& x, const Tensor& index, std::int64_t axis);

/// out[…, i, …] = x[…, index[…, i, …], …] along `axis` (numpy.take_along_axis); index has x's rank and, but
/// for `axis`, x's sizes. Result of index's shape.
Tensor gather(const ExecutionContext& context, const Tensor& x, const Tensor& index, std::int64_t axis);

/// x[…, index[…, i, …], …] = values[…, i, …] along `axis` (numpy.put_along_axis); values have index's shape
/// and x's dtype. Of equal indices the last wins.
void scatter(const ExecutionContext& context, Tensor& x, const Tensor& index, const Tensor& values,
             std::int64_t axis);
/// The same with +=, values of equal indices added in ascending order. f16 and bf16 round after each.
void scatter_add(const ExecutionContext& context, Tensor& x, const Tensor& index, const Tensor& values,
                 std::int64_t axis);

/// The tensors one after the other along an axis that they have; one dtype, the same sizes but for that axis,
/// at least one tensor.
Tensor concat(const ExecutionContext& context, std::span<const Tensor> tensors, std::int64_t axis);
/// The same along a new axis; all of one shape.
Tensor stack(const ExecutionContext& context, std::span<const Tensor> tensors, std::int64_t axis);

}  // namespace bitnet::ops
