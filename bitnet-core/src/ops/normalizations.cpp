// Softmax along any axis and the norms over the last one: rows of f32, one kernel after the other while a row
// is in cache.
#include <cmath>
#include <cstring>

#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/ops.hpp"
#include "bitnet/core/reductions.hpp"
#include "ops/checks.hpp"
#include "ops/convert.hpp"
#include "ops/loops.hpp"
#include "ops/rows.hpp"

namespace bitnet::ops {
namespace {

/// Calls row(from, to, n) for every row of x along `axis`; both are contiguous floats, and what was written
/// comes back in x's shape and dtype.
template <class Row>
Tensor map_rows(const ExecutionContext& context, std::string_view op, const Tensor& x, std::int64_t axis,
                Row row) {
  floats_only(op, x);
  const std::size_t a[] = {axis_of(op, x, axis)};
  const AxisSplit split = split_axes(x.shape().rank(), a);
  const Tensor rows = contiguous_rows(context, rows_last(x, split), DType::kF32);
  Tensor out = make_tensor(context, DType::kF32, rows.shape());
  const auto n = static_cast<std::size_t>(x.shape().dims()[a[0]]);
  const auto from = rows.span<float>();
  const auto to = out.span<float>();
  if (n > 0) {
    context.parallel_for(to.size() / n, static_cast<std::size_t>(kParallel) / (4 * n) + 1,
                         [&](std::size_t begin, std::size_t end) {
                           for (std::size_t r = begin; r < end; ++r)
                             row(from.data() + r * n, to.data() + r * n, n);
                         });
  }
  const Tensor back = rows_back(out, split);
  return x.dtype() == DType::kF32 ? contiguous(context, back) : converted(context, back, x.dtype());
}

/// The same in x's own memory: rows of contiguous floats where they lie, others through a buffer of one row.
template <class Row>
void map_rows_in_place(const ExecutionContext& context, std::string_view op, Tensor& x, std::int64_t axis,
                       Row row) {
  floats_only(op, x);
  check_writable(op, x);
  const std::size_t a[] = {axis_of(op, x, axis)};
  const AxisSplit split = split_axes(x.shape().rank(), a);
  const Tensor view = rows_last(x, split);
  const std::int64_t n = view.shape()[-1], step = view.strides().back();
  if (x.numel() == 0) return;
  const Tables t = tables(context.isa());
  const std::size_t kept = split.kept.size();
  const auto size = static_cast<std::size_t>(n);
  context.parallel_for(static_cast<std::size_t>(x.numel() / n),
                       static_cast<std::size_t>(kParallel) / (4 * size) + 1,
                       [&](std::size_t begin, std::size_t end) {
                         const bool direct = x.dtype() == DType::kF32 && (step == 1 || n == 1);
                         Tensor buffer = make_tensor(context, DType::kF32, {direct ? 0 : n});
                         for (std::size_t r = begin; r < end; ++r) {
                           auto rest = static_cast<std::int64_t>(r);
                           std::int64_t at = 0;
                           for (std::size_t d = kept; d-- > 0;) {
                             at += rest % view.shape().dims()[d] * view.strides()[d];
                             rest /= view.shape().dims()[d];
                           }
                           if (direct) {
                             float* const p = reinterpret_cast<float*>(x.data()) + at;
                             row(p, p, size);
                             continue;
                           }
                           float* const p = buffer.span<float>().data();
                           load_f32(t, x.dtype(), x.data(), at, step, p, n);
                           row(p, p, size);
                           store_f32(t, p, x.dtype(), x.data(), at, step, n);
                         }
                       });
}

/// A vector of the last axis' size, as floats; a copy if x's memory, which may be written, is its own.
Tensor weights_of(const ExecutionContext& context, std::string_view op, std::string_view name,
                  const Tensor& x, const Tensor& w) {
  if (w.dtype() != x.dtype() || w.shape().rank() != 1 || x.shape().rank() == 0 ||
      w.shape()[0] != x.shape()[-1])
    invalid(fmt::format("{}: {} is {} beside x {}: one {} for each element of its last axis wanted", op, name,
                        describe(w), describe(x), to_string(x.dtype())));
  const Tensor floats = contiguous_rows(context, w, DType::kF32);
  return may_overlap(x, floats) ? copy_of(context, floats) : floats;
}

void check_eps(std::string_view op, const Tensor& x, float eps) {
  floats_only(op, x);
  if (!(eps >= 0) || std::isinf(eps))
    invalid(fmt::format("{} of {}: eps is {}, a number ≥ 0 wanted", op, describe(x), eps));
}

// What the ops do with one row: (from, to, n), where `to` may be `from`.

auto softmax_row(const Tables& t) {
  return [t](const float* from, float* to, std::size_t n) {
    const float m = t.tensor.max(from, n);
    if (to != from) std::memcpy(to, from, n * sizeof(float));
    t.f32.scale(1.0f / t.f32.exp_sum(to, m, n), to, n);
  };
}

auto rms_norm_row(const Tables& t, const Tensor& w, float eps) {
  return [t, w, eps](const float* from, float* to, std::size_t n) {
    t.f32.rms_norm(from, w.span<float>().data(), eps, to, n);
  };
}

auto layer_norm_row(const Tables& t, const Tensor& w, const Tensor& b, float eps) {
  return [t, w, b, eps](const float* from, float* to, std::size_t n) {
    const float mean = t.f32.sum(from, n) / static_cast<float>(n);
    const float var = t.tensor.sum_deviations(from, mean, n) / static_cast<float>(n);
    t.tensor.normalize(from, mean, 1.0f / std::sqrt(var + eps), w.span<float>().data(),
                       b.span<float>().data(), to, n);
  };
}

}  // namespace

Tensor softmax(const ExecutionContext& context, const Tensor& x, std::int64_t axis) {
  return map_rows(context, "softmax", x, axis, softmax_row(tables(context.isa())));
}

void softmax_in_place(const ExecutionContext& context, Tensor& x, std::int64_t axis) {
  map_rows_in_place(context, "softmax", x, axis, softmax_row(tables(context.isa())));
}

Tensor log_softmax(const ExecutionContext& context, const Tensor& x, std::int64_t axis) {
  const Tables t = tables(context.isa());
  return map_rows(context, "log_softmax", x, axis, [&](const float* from, float* to, std::size_t n) {
    const float m = t.tensor.max(from, n);
    std::memcpy(to, from, n * sizeof(float));
    const float sum = t.f32.exp_sum(to, m, n);
    // x − m first: it is exact for x near m, where the result is most likely to be looked at.
    t.tensor.normalize(from, m, 1.0f, nullptr, nullptr, to, n);
    float log_sum = 0;  // by our own log: no libm
    t.tensor.unary[static_cast<std::size_t>(Unary::kLog)](&sum, &log_sum, 1);
    t.tensor.binary[static_cast<std::size_t>(Binary::kSub)](to, false, &log_sum, true, to, n);
  });
}

Tensor rms_norm(const ExecutionContext& context, const Tensor& x, const Tensor& w, float eps) {
  check_eps("rms_norm", x, eps);
  return map_rows(context, "rms_norm", x, -1,
                  rms_norm_row(tables(context.isa()), weights_of(context, "rms_norm", "w", x, w), eps));
}

void rms_norm_in_place(const ExecutionContext& context, Tensor& x, const Tensor& w, float eps) {
  check_eps("rms_norm", x, eps);
  map_rows_in_place(context, "rms_norm", x, -1,
                    rms_norm_row(tables(context.isa()), weights_of(context, "rms_norm", "w", x, w), eps));
}

Tensor layer_norm(const ExecutionContext& context, const Tensor& x, const Tensor& w, const Tensor& b,
                  float eps) {
  check_eps("layer_norm", x, eps);
  return map_rows(context, "layer_norm", x, -1,
                  layer_norm_row(tables(context.isa()), weights_of(context, "layer_norm", "w", x, w),
                                 weights_of(context, "layer_norm", "b", x, b), eps));
}

void layer_norm_in_place(const ExecutionContext& context, Tensor& x, const Tensor& w, const Tensor& b,
                         float eps) {
  check_eps("layer_norm", x, eps);
  map_rows_in_place(context, "layer_norm", x, -1,
                    layer_norm_row(tables(context.isa()), weights_of(context, "layer_norm", "w", x, w),
                                   weights_of(context, "layer_norm", "b", x, b), eps));
}

}  // namespace bitnet::ops
