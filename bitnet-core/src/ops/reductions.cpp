// Reductions over axes. Elements are laid out as rows, unless they are already or the axes that go are the
// slow ones of f32 columns: then rows are added to 16 rows of partial sums, the lanes of a row's sum, so that
// both ways give the same bits. Softmax and norms are normalizations.cpp.
#include "bitnet/core/reductions.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <new>
#include <numeric>

#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/ops.hpp"
#include "ops/checks.hpp"
#include "ops/convert.hpp"
#include "ops/loops.hpp"
#include "ops/rows.hpp"

namespace bitnet::ops {

AxisSplit split_axes(std::size_t rank, std::span<const std::size_t> row) {
  AxisSplit split;
  for (std::size_t d = 0; d < rank; ++d) {
    const bool is_row = std::ranges::find(row, d) != row.end();
    (is_row ? split.row : split.kept).push_back(static_cast<std::int64_t>(d));
  }
  return split;
}

Tensor rows_last(const Tensor& x, const AxisSplit& split) {
  std::vector<std::int64_t> order = split.kept;
  order.insert(order.end(), split.row.begin(), split.row.end());
  return x.permute(order);
}

Tensor rows_back(const Tensor& x, const AxisSplit& split) {
  std::vector<std::int64_t> order = split.kept, inverse(split.kept.size() + split.row.size());
  order.insert(order.end(), split.row.begin(), split.row.end());
  for (std::size_t d = 0; d < order.size(); ++d)
    inverse[static_cast<std::size_t>(order[d])] = static_cast<std::int64_t>(d);
  return x.permute(inverse);
}

Tensor contiguous_rows(const ExecutionContext& context, const Tensor& view, DType dtype) {
  return view.dtype() == dtype && view.is_contiguous() ? view : converted(context, view, dtype);
}

namespace {

std::int64_t product(std::span<const std::int64_t> dims) {
  return std::accumulate(dims.begin(), dims.end(), std::int64_t{1}, std::multiplies<>());
}

/// Rows of `n` elements for which one more thread is worth while.
std::size_t row_grain(std::int64_t n) { return static_cast<std::size_t>(kParallel / (n + 1) + 1); }

/// The value of one row; n > 0 where the op has no value for none.
float reduce_row(const Tables& t, Reduction op, const float* x, std::size_t n) {
  switch (op) {
    case Reduction::kSum:
      return t.f32.sum(x, n);
    case Reduction::kMean:
      return t.f32.sum(x, n) / static_cast<float>(n);
    case Reduction::kMax:
      return t.tensor.max(x, n);
    case Reduction::kMin:
      return t.tensor.min(x, n);
    case Reduction::kVar: {
      const float mean = t.f32.sum(x, n) / static_cast<float>(n);
      return t.tensor.sum_deviations(x, mean, n) / static_cast<float>(n);
    }
    case Reduction::kNormL1:
      return t.tensor.sum_abs(x, n);
    case Reduction::kNormL2:
      return std::sqrt(t.f32.sum_squares(x, n));
    case Reduction::kNormMax:
      return t.f32.max_abs(x, n);
  }
  return 0;
}

/// As the row kernels give it: one NaN for all, and +0 of zeros.
float extreme_of(float v) { return std::isnan(v) ? std::numeric_limits<float>::quiet_NaN() : v + 0.0f; }

/// Sums or extremes over the axes that `view` [kept…, n_row axes] has last, where its last kept axis is
/// columns of stride 1: blocks of columns, all rows of a block one after the other.
void reduce_columns(const ExecutionContext& context, Reduction op, const Tensor& view, std::size_t n_kept,
                    float* out) {
  constexpr std::int64_t kColumns = 256;  // 16 partial rows of them stay in L1
  const auto dims = view.shape().dims();
  const auto strides = view.strides();
  const std::int64_t cols = dims[n_kept - 1], blocks = (cols + kColumns - 1) / kColumns,
                     outer = product(dims.first(n_kept - 1));
  std::vector<std::int64_t> rows;  // offsets of the rows, in order
  const Shape row_shape(dims.subspan(n_kept));
  const auto loops = make_loops<1>(row_shape, {strides.subspan(n_kept)});
  rows.reserve(static_cast<std::size_t>(row_shape.numel()));
  for_each_run(one_thread(), loops, [&](const std::array<std::int64_t, 1>& at, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) rows.push_back(at[0] + i * loops.inner_stride(0));
  });
  const Tables t = tables(context.isa());
  const bool sums = op == Reduction::kSum || op == Reduction::kMean;
  const Binary step = sums ? Binary::kAdd : op == Reduction::kMax ? Binary::kMaximum : Binary::kMinimum;
  const auto combine = t.tensor.binary[static_cast<std::size_t>(step)];
  const float inf = std::numeric_limits<float>::infinity();
  const float start = sums ? 0.0f : op == Reduction::kMax ? -inf : inf;
  const std::size_t grain = row_grain(kColumns * static_cast<std::int64_t>(rows.size()));
  context.parallel_for(
      static_cast<std::size_t>(outer * blocks), grain, [&](std::size_t begin, std::size_t end) {
        alignas(64) float lanes[16][kColumns];
        for (auto block = static_cast<std::int64_t>(begin); block < static_cast<std::int64_t>(end); ++block) {
          const std::int64_t col = block % blocks * kColumns;
          const auto n = static_cast<std::size_t>(std::min(kColumns, cols - col));
          std::int64_t rest = block / blocks, base = col;
          for (std::size_t d = n_kept - 1; d-- > 0;) {
            base += rest % dims[d] * strides[d];
            rest /= dims[d];
          }
          for (auto& lane : lanes) std::fill_n(lane, n, start);
          const float* const x = reinterpret_cast<const float*>(view.data()) + base;
          for (std::size_t r = 0; r < rows.size(); ++r)
            combine(lanes[r % 16], false, x + rows[r], false, lanes[r % 16], n);
          for (std::size_t width = 8; width > 0; width /= 2)
            for (std::size_t i = 0; i < width; ++i)
              combine(lanes[i], false, lanes[i + width], false, lanes[i], n);
          float* const to = out + block / blocks * cols + col;
          for (std::size_t i = 0; i < n; ++i)
            to[i] = op == Reduction::kMean ? lanes[0][i] / static_cast<float>(rows.size())
                    : sums                 ? lanes[0][i]
                                           : extreme_of(lanes[0][i]);
        }
      });
}

bool are_columns(Reduction op, const Tensor& view, std::size_t n_kept) {
  if (op != Reduction::kSum && op != Reduction::kMean && op != Reduction::kMax && op != Reduction::kMin)
    return false;
  return view.dtype() == DType::kF32 && n_kept > 0 && view.strides()[n_kept - 1] == 1 &&
         view.shape().dims()[n_kept - 1] >= 16;
}

/// Sums as i32, which they must fit, extremes in x's own type.
template <class T>
void reduce_integers(const ExecutionContext& context, Reduction op, const Tensor& rows, std::int64_t n,
                     Tensor& out) {
  const auto* const x = reinterpret_cast<const T*>(rows.data());
  auto* const extremes = reinterpret_cast<T*>(out.data());
  auto* const sums = reinterpret_cast<std::int32_t*>(out.data());
  context.parallel_for(static_cast<std::size_t>(out.numel()), row_grain(n),
                       [&](std::size_t begin, std::size_t end) {
                         const auto count = static_cast<std::size_t>(n);
                         for (std::size_t r = begin; r < end; ++r) {
                           const T* const row = x + r * count;
                           if (op == Reduction::kMax) {
                             extremes[r] = *std::max_element(row, row + count);
                           } else if (op == Reduction::kMin) {
                             extremes[r] = *std::min_element(row, row + count);
                           } else {
                             const std::int64_t sum = std::accumulate(row, row + count, std::int64_t{0});
                             if (sum != static_cast<std::int32_t>(sum))
                               invalid(fmt::format("sum of {}: a sum of {} is {}, which i32 does not hold",
                                                   describe(rows), n, sum));
                             sums[r] = static_cast<std::int32_t>(sum);
                           }
                         }
                       });
}

void check_reduction(Reduction op, const Tensor& x, std::int64_t n) {
  refuse_ternary(to_string(op), x);
  const bool integers = op == Reduction::kSum || op == Reduction::kMax || op == Reduction::kMin;
  if (!integers) floats_only(to_string(op), x);
  if (n == 0 && (op == Reduction::kMax || op == Reduction::kMin))
    invalid(fmt::format("{} of {}: there is none of no elements", to_string(op), describe(x)));
}

/// First index of the largest (smallest), a NaN being it.
template <class T>
std::int32_t extreme_index(std::span<const T> row, bool largest) {
  std::size_t best = 0;
  for (std::size_t i = 0; i < row.size(); ++i) {
    if (row[i] != row[i]) return static_cast<std::int32_t>(i);
    if (largest ? row[i] > row[best] : row[i] < row[best]) best = i;
  }
  return static_cast<std::int32_t>(best);
}

Tensor arg_extreme(const ExecutionContext& context, std::string_view op, const Tensor& x, std::int64_t axis,
                   bool largest) {
  refuse_ternary(op, x);
  const std::size_t a[] = {axis_of(op, x, axis)};
  const std::int64_t n = x.shape().dims()[a[0]];
  if (n == 0 || n > std::numeric_limits<std::int32_t>::max())
    invalid(fmt::format("{} of {}: axis {} has {} elements, 1 … 2^31 − 1 wanted", op, describe(x), axis, n));
  const AxisSplit split = split_axes(x.shape().rank(), a);
  const Tensor view = rows_last(x, split);
  const Tensor rows = contiguous_rows(context, view, is_float(x.dtype()) ? DType::kF32 : x.dtype());
  Tensor out = make_tensor(context, DType::kI32, Shape(view.shape().dims().first(split.kept.size())));
  const auto to = out.span<std::int32_t>();
  const Tables t = tables(context.isa());
  const auto float_index = largest ? t.tensor.arg_max : t.tensor.arg_min;
  context.parallel_for(to.size(), row_grain(n), [&](std::size_t begin, std::size_t end) {
    const auto count = static_cast<std::size_t>(n);
    for (std::size_t r = begin; r < end; ++r) {
      if (rows.dtype() == DType::kF32)
        to[r] = static_cast<std::int32_t>(float_index(rows.span<float>().data() + r * count, count));
      else if (rows.dtype() == DType::kI8)
        to[r] = extreme_index(rows.span<std::int8_t>().subspan(r * count, count), largest);
      else
        to[r] = extreme_index(rows.span<std::int32_t>().subspan(r * count, count), largest);
    }
  });
  return out;
}

/// The row axes that `axes` names, ascending.
std::vector<std::size_t> named_axes(Reduction op, const Tensor& x, const Axes& axes) {
  std::vector<std::size_t> which;
  for (std::size_t d = 0; axes.all && d < x.shape().rank(); ++d) which.push_back(d);
  for (const std::int64_t axis : axes.list) {
    const std::size_t d = axis_of(to_string(op), x, axis);
    if (std::ranges::find(which, d) != which.end())
      invalid(fmt::format("{} of {}: axis {} is named twice", to_string(op), describe(x), axis));
    which.push_back(d);
  }
  std::ranges::sort(which);
  return which;
}

}  // namespace

std::string_view to_string(Reduction op) noexcept {
  constexpr std::string_view kNames[] = {"sum", "mean",    "max",     "min",
                                         "var", "norm_l1", "norm_l2", "norm_max"};
  return kNames[static_cast<std::size_t>(op)];
}

Tensor reduce(const ExecutionContext& context, Reduction op, const Tensor& x, const Axes& axes) try {
  const auto which = named_axes(op, x, axes);
  const AxisSplit split = split_axes(x.shape().rank(), which);
  const Tensor view = rows_last(x, split);
  const std::size_t n_kept = split.kept.size();
  const std::int64_t n = product(view.shape().dims().subspan(n_kept));
  check_reduction(op, x, n);
  const Shape kept(view.shape().dims().first(n_kept));
  std::vector<std::int64_t> dims(x.shape().dims().begin(), x.shape().dims().end());
  for (const std::size_t d : which) dims[d] = 1;
  const Shape shape = axes.keep_dims ? Shape(dims) : kept;

  if (!is_float(x.dtype())) {
    Tensor out = make_tensor(context, op == Reduction::kSum ? DType::kI32 : x.dtype(), kept);
    const Tensor rows = contiguous_rows(context, view, x.dtype());
    if (x.dtype() == DType::kI8)
      reduce_integers<std::int8_t>(context, op, rows, n, out);
    else
      reduce_integers<std::int32_t>(context, op, rows, n, out);
    return out.reshape(shape);
  }
  Tensor out = make_tensor(context, DType::kF32, kept);
  const auto to = out.span<float>();
  if (!to.empty() && n > 0 && are_columns(op, view, n_kept)) {
    reduce_columns(context, op, view, n_kept, to.data());
  } else if (!to.empty()) {
    const Tensor rows = contiguous_rows(context, view, DType::kF32);
    const Tables t = tables(context.isa());
    const auto from = rows.span<float>();
    const auto count = static_cast<std::size_t>(n);
    context.parallel_for(to.size(), row_grain(n), [&](std::size_t begin, std::size_t end) {
      for (std::size_t r = begin; r < end; ++r) to[r] = reduce_row(t, op, from.data() + r * count, count);
    });
  }
  return (x.dtype() == DType::kF32 ? out : converted(context, out, x.dtype())).reshape(shape);
} catch (const std::bad_alloc&) {
  throw_out_of_memory(fmt::format("{} of {}", to_string(op), describe(x)));
}

Tensor argmax(const ExecutionContext& context, const Tensor& x, std::int64_t axis) {
  return arg_extreme(context, "argmax", x, axis, true);
}

Tensor argmin(const ExecutionContext& context, const Tensor& x, std::int64_t axis) {
  return arg_extreme(context, "argmin", x, axis, false);
}

}  // namespace bitnet::ops
