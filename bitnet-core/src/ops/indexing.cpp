// Elements moved by index. Indices are checked before anything is written; what is moved is bytes, one loop
// per element size, but for scatter_add, which adds.
#include "bitnet/core/indexing.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <vector>

#include "bitnet/core/ops.hpp"
#include "ops/checks.hpp"
#include "ops/convert.hpp"
#include "ops/loops.hpp"

namespace bitnet::ops {
namespace {

using Offsets = std::array<std::int64_t, 3>;

/// The indices, contiguous, all within [0, size).
Tensor checked_index(const ExecutionContext& context, std::string_view op, const Tensor& x,
                     const Tensor& index, std::int64_t size, std::int64_t axis) {
  refuse_ternary(op, x);
  if (index.dtype() != DType::kI32)
    invalid(fmt::format("{} from {}: index is {}, i32 wanted", op, describe(x), describe(index)));
  const Tensor c = contiguous(context, index);
  const auto values = c.span<std::int32_t>();
  for (std::size_t i = 0; i < values.size(); ++i)
    if (values[i] < 0 || values[i] >= size)
      invalid(fmt::format("{} from {}: index {}, element {} of {}, is outside axis {} with [0, {})", op,
                          describe(x), values[i], i, describe(index), axis, size));
  return c;
}

/// index has x's rank and, but for `axis`, x's sizes.
void check_along(std::string_view op, const Tensor& x, const Tensor& index, std::size_t axis) {
  bool fits = index.shape().rank() == x.shape().rank();
  for (std::size_t d = 0; fits && d < x.shape().rank(); ++d)
    fits = d == axis || index.shape().dims()[d] == x.shape().dims()[d];
  if (!fits)
    invalid(fmt::format("{}: index {} and {} may differ on axis {} only", op, describe(index), describe(x),
                        axis));
}

/// Calls body(T*'s element type) with the unsigned integer of x's element size.
template <class Body>
void by_size(const Tensor& x, Body body) {
  switch (bits_of(x.dtype())) {
    case 8:
      return body(std::uint8_t{});
    case 16:
      return body(std::uint16_t{});
    default:
      return body(std::uint32_t{});
  }
}

/// The walk over index's shape: x without its stride on `axis`, index, and a third tensor.
Loops<3> loops_along(const Tensor& x, const Tensor& index, const Tensor& other, std::size_t axis) {
  Strides strides{};
  std::ranges::copy(x.strides(), strides.begin());
  strides[axis] = 0;
  return make_loops<3>(index.shape(), {std::span<const std::int64_t>(strides.data(), x.shape().rank()),
                                       index.strides(), other.strides()});
}

/// values as they are before x is written, index likewise; all checks of scatter and scatter_add.
struct Scatter {
  Tensor index, values;
  std::size_t axis;
};
Scatter plan_scatter(const ExecutionContext& context, std::string_view op, const Tensor& x,
                     const Tensor& index, const Tensor& values, std::int64_t axis) {
  same_dtype(op, x, values);
  check_writable(op, x);
  const std::size_t a = axis_of(op, x, axis);
  check_along(op, x, index, a);
  if (!(values.shape() == index.shape()))
    invalid(
        fmt::format("{}: values {} for index {}: one shape wanted", op, describe(values), describe(index)));
  Tensor checked = checked_index(context, op, x, index, x.shape().dims()[a], axis);
  const auto apart = [&](const Tensor& t) { return may_overlap(x, t) ? copy_of(context, t) : t; };
  return {apart(checked), apart(values), a};
}

}  // namespace

Tensor take(const ExecutionContext& context, const Tensor& x, const Tensor& index, std::int64_t axis) {
  const std::size_t a = axis_of("take", x, axis);
  const auto dims = x.shape().dims();
  const Tensor checked = checked_index(context, "take", x, index, dims[a], axis);
  std::vector<std::int64_t> shape(dims.begin(), dims.begin() + static_cast<std::ptrdiff_t>(a));
  shape.insert(shape.end(), index.shape().dims().begin(), index.shape().dims().end());
  shape.insert(shape.end(), dims.begin() + static_cast<std::ptrdiff_t>(a) + 1, dims.end());
  Tensor out = make_tensor(context, x.dtype(), Shape(shape));
  if (out.numel() == 0) return out;
  const Tensor from = contiguous(context, x);
  const auto product = [](std::span<const std::int64_t> d) {
    return static_cast<std::size_t>(
        std::accumulate(d.begin(), d.end(), std::int64_t{1}, std::multiplies<>()));
  };
  const std::size_t size = bits_of(x.dtype()) / 8, block = product(dims.subspan(a + 1)) * size,
                    rows = static_cast<std::size_t>(dims[a]), outer = product(dims.first(a));
  const auto picks = checked.span<std::int32_t>();
  const std::byte* const source = from.data();
  std::byte* const to = out.data();
  context.parallel_for(outer * picks.size(), static_cast<std::size_t>(kParallel) / block + 1,
                       [&](std::size_t begin, std::size_t end) {
                         for (std::size_t i = begin; i < end; ++i) {
                           const std::size_t row =
                               i / picks.size() * rows + static_cast<std::size_t>(picks[i % picks.size()]);
                           std::memcpy(to + i * block, source + row * block, block);
                         }
                       });
  return out;
}

Tensor gather(const ExecutionContext& context, const Tensor& x, const Tensor& index, std::int64_t axis) {
  const std::size_t a = axis_of("gather", x, axis);
  check_along("gather", x, index, a);
  const Tensor checked = checked_index(context, "gather", x, index, x.shape().dims()[a], axis);
  Tensor out = make_tensor(context, x.dtype(), index.shape());
  const auto loops = loops_along(x, checked, out, a);
  const std::int64_t step = x.strides()[a];
  const auto* const picks = reinterpret_cast<const std::int32_t*>(checked.data());
  by_size(x, [&]<class T>(T) {
    const auto* const from = reinterpret_cast<const T*>(x.data());
    auto* const to = reinterpret_cast<T*>(out.data());
    for_each_run(context, loops, [&](const Offsets& at, std::int64_t n) {
      for (std::int64_t i = 0; i < n; ++i)
        to[at[2] + i * loops.inner_stride(2)] =
            from[at[0] + i * loops.inner_stride(0) + picks[at[1] + i * loops.inner_stride(1)] * step];
    });
  });
  return out;
}

void scatter(const ExecutionContext& context, Tensor& x, const Tensor& index, const Tensor& values,
             std::int64_t axis) {
  const Scatter s = plan_scatter(context, "scatter", x, index, values, axis);
  const auto loops = loops_along(x, s.index, s.values, s.axis);
  const std::int64_t step = x.strides()[s.axis];
  const auto* const picks = reinterpret_cast<const std::int32_t*>(s.index.data());
  by_size(x, [&]<class T>(T) {
    auto* const to = reinterpret_cast<T*>(x.data());
    const auto* const from = reinterpret_cast<const T*>(s.values.data());
    // In order, on one thread: of equal indices the last wins.
    for_each_run(one_thread(), loops, [&](const Offsets& at, std::int64_t n) {
      for (std::int64_t i = 0; i < n; ++i)
        to[at[0] + i * loops.inner_stride(0) + picks[at[1] + i * loops.inner_stride(1)] * step] =
            from[at[2] + i * loops.inner_stride(2)];
    });
  });
}

void scatter_add(const ExecutionContext& context, Tensor& x, const Tensor& index, const Tensor& values,
                 std::int64_t axis) {
  const Scatter s = plan_scatter(context, "scatter_add", x, index, values, axis);
  const auto loops = loops_along(x, s.index, s.values, s.axis);
  const std::int64_t step = x.strides()[s.axis];
  const auto* const picks = reinterpret_cast<const std::int32_t*>(s.index.data());
  const auto add = [&](std::int64_t to, std::int64_t from) {
    switch (x.dtype()) {
      case DType::kF32:
        reinterpret_cast<float*>(x.data())[to] += reinterpret_cast<const float*>(s.values.data())[from];
        return;
      case DType::kI8:
      case DType::kI32: {  // wraps
        const double sum =
            load_element(x.dtype(), x.data(), to) + load_element(x.dtype(), s.values.data(), from);
        const auto bits = static_cast<std::uint32_t>(static_cast<std::int64_t>(sum));
        if (x.dtype() == DType::kI8)
          reinterpret_cast<std::int8_t*>(x.data())[to] = static_cast<std::int8_t>(bits);
        else
          reinterpret_cast<std::int32_t*>(x.data())[to] = static_cast<std::int32_t>(bits);
        return;
      }
      default:  // the sum of two 16-bit floats in f32, rounded
        store_element(x.dtype(), x.data(), to,
                      static_cast<float>(load_element(x.dtype(), x.data(), to)) +
                          static_cast<float>(load_element(x.dtype(), s.values.data(), from)));
    }
  };
  for_each_run(one_thread(), loops, [&](const Offsets& at, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i)
      add(at[0] + i * loops.inner_stride(0) + picks[at[1] + i * loops.inner_stride(1)] * step,
          at[2] + i * loops.inner_stride(2));
  });
}

Tensor concat(const ExecutionContext& context, std::span<const Tensor> tensors, std::int64_t axis) {
  if (tensors.empty()) invalid("concat: no tensor given");
  const Tensor& first = tensors.front();
  const std::size_t a = axis_of("concat", first, axis);
  std::vector<std::int64_t> dims(first.shape().dims().begin(), first.shape().dims().end());
  dims[a] = 0;
  for (const Tensor& t : tensors) {
    same_dtype("concat", first, t);
    bool fits = t.shape().rank() == dims.size();
    for (std::size_t d = 0; fits && d < dims.size(); ++d) fits = d == a || t.shape().dims()[d] == dims[d];
    if (!fits)
      invalid(
          fmt::format("concat: {} and {} may differ on axis {} only", describe(first), describe(t), axis));
    if (__builtin_add_overflow(dims[a], t.shape().dims()[a], &dims[a]))
      invalid(fmt::format("concat: axis {} of {} tensors like {} overflows", axis, tensors.size(),
                          describe(first)));
  }
  Tensor out = make_tensor(context, first.dtype(), Shape(dims));
  std::int64_t at = 0;
  for (const Tensor& t : tensors) {
    const std::int64_t n = t.shape().dims()[a];
    Tensor part = out.slice(static_cast<std::int64_t>(a), at, at + n);
    copy_elements(context, t, part);
    at += n;
  }
  return out;
}

Tensor stack(const ExecutionContext& context, std::span<const Tensor> tensors, std::int64_t axis) {
  if (tensors.empty()) invalid("stack: no tensor given");
  const Shape& shape = tensors.front().shape();
  const auto rank = static_cast<std::int64_t>(shape.rank());
  const std::int64_t a = axis < 0 ? axis + rank + 1 : axis;
  if (a < 0 || a > rank) invalid(fmt::format("stack: new axis {} of {}", axis, describe(tensors.front())));
  std::vector<std::int64_t> dims(shape.dims().begin(), shape.dims().end());
  dims.insert(dims.begin() + a, 1);
  std::vector<Tensor> views;
  for (const Tensor& t : tensors) {
    if (!(t.shape() == shape))
      invalid(fmt::format("stack: {} and {}: one shape wanted", describe(tensors.front()), describe(t)));
    refuse_ternary("stack", t);
    views.push_back(t.reshape(Shape(dims)));
  }
  return concat(context, views, a);
}

}  // namespace bitnet::ops
