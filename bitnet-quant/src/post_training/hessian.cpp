// XᵀX in f32 over blocks of rows, added up in double.
#include "bitnet/quant/hessian.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "post_training/hessian_product.hpp"

namespace bitnet::quant {
namespace {

constexpr std::int64_t kStrip = 256;  // rows or columns at a time: in · 1 KiB of floats

}  // namespace

Hessian::Hessian(std::int64_t in) : in_(in) {
  if (in < 1 || in > (std::int64_t{1} << 20))
    throw Error(ErrorCode::kInvalidArgument, fmt::format("a Hessian of {} inputs: expected 1 … 2^20", in));
  try {
    values_.resize(static_cast<std::size_t>(in * in));
  } catch (const std::bad_alloc&) {
    throw_out_of_memory(fmt::format("a Hessian of {} inputs", in));
  }
}

Hessian::Hessian(std::int64_t in, std::int64_t n_rows, std::vector<double> values)
    : in_(in), n_rows_(n_rows), values_(std::move(values)) {
  if (in < 1 || in > (std::int64_t{1} << 20) || n_rows < 0 ||
      values_.size() != static_cast<std::size_t>(in * in) ||
      !std::all_of(values_.begin(), values_.end(), [](double v) { return std::isfinite(v); }))
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} values, or some that are not finite, for a Hessian of {} inputs from {} rows",
                            values_.size(), in, n_rows));
}

void Hessian::add(const ExecutionContext& context, std::span<const float> x) {
  if (x.size() % static_cast<std::size_t>(in_) != 0)
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{} activations for {} inputs", x.size(), in_));
  const auto bad = std::find_if(x.begin(), x.end(), [](float v) { return !std::isfinite(v); });
  if (bad != x.end())
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("calibration: the activation in row {}, column {} is {}, not finite",
                            n_rows_ + (bad - x.begin()) / in_, (bad - x.begin()) % in_, *bad));
  const auto rows = static_cast<std::int64_t>(x.size()) / in_;
  std::vector<float> strip(static_cast<std::size_t>(in_ * std::min(kStrip, in_)));
  for (std::int64_t r = 0; r < rows; r += kBlockRows) {
    const std::int64_t n = std::min(kBlockRows, rows - r);
    const float* const block = x.data() + r * in_;
    for (std::int64_t c = 0; c < in_; c += kStrip) {
      const std::int64_t width = std::min(kStrip, in_ - c);
      gemm(context, in_, width, n, block, 1, in_, block + c, in_, 1, strip.data(), width, false);
      context.parallel_for(static_cast<std::size_t>(in_), 16, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i)
          for (std::int64_t j = 0; j < width; ++j)
            values_[i * static_cast<std::size_t>(in_) + static_cast<std::size_t>(c + j)] +=
                static_cast<double>(strip[i * static_cast<std::size_t>(width) + static_cast<std::size_t>(j)]);
      });
    }
  }
  n_rows_ += rows;
}

double quadratic_form(const ExecutionContext& context, std::span<const float> m, const Hessian& hessian,
                      CancelFlag cancelled) {
  if (m.size() % static_cast<std::size_t>(hessian.in()) != 0)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} weights for a Hessian of {} inputs", m.size(), hessian.in()));
  const auto out = static_cast<std::int64_t>(m.size()) / hessian.in();
  const std::vector<float> product = post_training::times_hessian(context, m, out, hessian, cancelled);
  double sum = 0;
  for (std::size_t i = 0; i < m.size(); ++i)
    sum += static_cast<double>(product[i]) * static_cast<double>(m[i]);
  return std::max(sum, 0.0);  // roundings alone make it negative
}

namespace post_training {

std::vector<float> rows_of(const Hessian& hessian, std::int64_t first, std::int64_t n) {
  const auto in = static_cast<std::size_t>(hessian.in());
  const auto from =
      hessian.values().subspan(static_cast<std::size_t>(first) * in, static_cast<std::size_t>(n) * in);
  std::vector<float> to(from.size());
  std::transform(from.begin(), from.end(), to.begin(), [](double v) { return static_cast<float>(v); });
  return to;
}

std::vector<float> times_hessian(const ExecutionContext& context, std::span<const float> m, std::int64_t out,
                                 const Hessian& hessian, CancelFlag cancelled) {
  const std::int64_t in = hessian.in();
  std::vector<float> to(static_cast<std::size_t>(out * in));
  for (std::int64_t k = 0; k < in; k += kStrip) {
    throw_if_cancelled(cancelled);
    const std::int64_t n = std::min(kStrip, in - k);
    const std::vector<float> rows = rows_of(hessian, k, n);
    gemm(context, out, in, n, m.data() + k, in, 1, rows.data(), in, 1, to.data(), in, k > 0);
  }
  return to;
}

}  // namespace post_training

}  // namespace bitnet::quant
