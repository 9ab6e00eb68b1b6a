// Dimensions and element counts, checked for overflow once, when a shape is made.
#include "bitnet/core/shape.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <limits>

#include "bitnet/core/error.hpp"

namespace bitnet {

Shape::Shape(std::initializer_list<std::int64_t> dims)
    : Shape(std::span<const std::int64_t>(dims.begin(), dims.size())) {}

Shape::Shape(std::span<const std::int64_t> dims) : rank_(dims.size()) {
  if (dims.size() > kMaxRank) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("shape has {} dimensions, at most {} are supported", dims.size(), kMaxRank));
  }
  // Zero dimensions are multiplied last: [2^62, 2^62, 0] must not pass as an empty shape whose strides
  // overflow.
  std::int64_t product = 1;
  bool empty = false;
  for (std::size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] < 0) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("shape [{}]: dimension {} is negative", fmt::join(dims, ", "), i));
    }
    dims_[i] = dims[i];
    empty = empty || dims[i] == 0;
    if (dims[i] != 0 && __builtin_mul_overflow(product, dims[i], &product)) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("shape [{}]: the number of elements overflows 64 bits", fmt::join(dims, ", ")));
    }
  }
  numel_ = empty ? 0 : product;
}

std::int64_t Shape::operator[](std::ptrdiff_t axis) const {
  const auto rank = static_cast<std::ptrdiff_t>(rank_);
  const std::ptrdiff_t i = axis < 0 ? axis + rank : axis;
  if (i < 0 || i >= rank) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("axis {} of shape {}", axis, to_string()));
  }
  return dims_[static_cast<std::size_t>(i)];
}

std::string Shape::to_string() const { return fmt::format("[{}]", fmt::join(dims(), ", ")); }

}  // namespace bitnet
