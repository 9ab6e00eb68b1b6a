#pragma once
// What every op checks before it computes, with messages that name the op and both sides.
#include <fmt/format.h>

#include <string>
#include <string_view>

#include "bitnet/core/error.hpp"
#include "bitnet/core/tensor.hpp"

namespace bitnet::ops {

[[noreturn]] inline void invalid(std::string message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kInvalidArgument, std::move(message), where);
}

/// "f32 [2, 3]"
inline std::string describe(const Tensor& t) {
  return fmt::format("{} {}", to_string(t.dtype()), t.shape().to_string());
}

inline void refuse_ternary(std::string_view op, const Tensor& t) {
  if (t.dtype() == DType::kTernary)
    invalid(fmt::format("{}: {} has packed elements; convert it with to() first", op, describe(t)));
}

inline void same_dtype(std::string_view op, const Tensor& x, const Tensor& y) {
  refuse_ternary(op, x);
  if (x.dtype() != y.dtype())
    invalid(
        fmt::format("{}: {} and {} differ in dtype; convert one with to()", op, describe(x), describe(y)));
}

inline void floats_only(std::string_view op, const Tensor& t) {
  if (t.dtype() != DType::kF32 && t.dtype() != DType::kF16 && t.dtype() != DType::kBF16)
    invalid(fmt::format("{}: {} given, f32, f16 or bf16 wanted; convert it with to()", op, describe(t)));
}

/// `axis` counted from the front.
inline std::size_t axis_of(std::string_view op, const Tensor& t, std::int64_t axis) {
  const auto rank = static_cast<std::int64_t>(t.shape().rank());
  const std::int64_t a = axis < 0 ? axis + rank : axis;
  if (a < 0 || a >= rank) invalid(fmt::format("{}: axis {} of {}", op, axis, describe(t)));
  return static_cast<std::size_t>(a);
}

/// Whether two tensors may have a byte in common: the ranges that they span overlap.
inline bool may_overlap(const Tensor& a, const Tensor& b) {
  if (a.numel() == 0 || b.numel() == 0) return false;
  const auto last = [](const Tensor& t) {  // strides are ≥ 0
    std::int64_t at = 0;
    for (std::size_t d = 0; d < t.shape().rank(); ++d) at += (t.shape().dims()[d] - 1) * t.strides()[d];
    return t.data() + (static_cast<std::size_t>(at) + 1) * bits_of(t.dtype()) / 8;
  };
  return a.data() < last(b) && b.data() < last(a);
}

/// Refuses to write to a tensor that names one place twice.
inline void check_writable(std::string_view op, const Tensor& x) {
  for (std::size_t d = 0; d < x.shape().rank(); ++d)
    if (x.shape().dims()[d] > 1 && x.strides()[d] == 0)
      invalid(fmt::format("{}: cannot write to {}, which repeats axis {} (a broadcast view); copy it first",
                          op, describe(x), d));
}

}  // namespace bitnet::ops
