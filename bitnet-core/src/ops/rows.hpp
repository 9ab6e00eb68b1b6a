#pragma once
// Tensors as rows: the axes that an op works along moved to the end and laid out as contiguous elements.
#include <cstdint>
#include <span>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/tensor.hpp"

namespace bitnet::ops {

/// `row` axes (ascending, none twice) and the others of a tensor of this rank.
struct AxisSplit {
  std::vector<std::int64_t> kept, row;
};
AxisSplit split_axes(std::size_t rank, std::span<const std::size_t> row);

/// x with the row axes last, a view.
Tensor rows_last(const Tensor& x, const AxisSplit& split);
/// The reverse: x's axes, given in the order of rows_last(), back where they were.
Tensor rows_back(const Tensor& x, const AxisSplit& split);

/// rows_last() as contiguous elements of `dtype`: x's own memory where it is so already.
Tensor contiguous_rows(const ExecutionContext& context, const Tensor& view, DType dtype);

}  // namespace bitnet::ops
