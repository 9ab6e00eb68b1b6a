// The quantisers' definitions around the ISA kernels: checks, scales, sharing rows between threads. The inner
// loop of absmax is kernels/generic/quantize.inl.hpp.
#include "bitnet/quant/quantize.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/quant/bit_linear.hpp"
#include "kernels/ternary_table.hpp"

namespace bitnet::quant {
namespace {

constexpr float kSmallest = 1e-5f;  // of both definitions' max(…, 1e-5)

/// Half to even, for |v| < 2^22.
float round_half_even(float v) {
  constexpr float kMagic = 0x1.8p23f;
  return (v + kMagic) - kMagic;
}

/// Quantises one row and returns a; `sum` becomes Σ q.
float quantize_one(const F32Kernels& floats, const TernaryKernels& kernels, const float* x, std::size_t n,
                   std::int8_t* q, std::int32_t& sum) {
  const float a = 127.0f / std::max(floats.max_abs(x, n), kSmallest);
  sum = kernels.quantize(x, a, q, n);
  return a;
}

}  // namespace

TernaryWeights absmean(std::span<const float> w, std::int64_t out, std::int64_t in) {
  if (out < 0 || in < 0 ||
      (in != 0 && static_cast<std::uint64_t>(out) > w.size() / static_cast<std::uint64_t>(in)) ||
      w.size() != static_cast<std::uint64_t>(out) * static_cast<std::uint64_t>(in)) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("absmean: {} weights do not make a matrix of {} x {}", w.size(), out, in));
  }
  double sum = 0;
  for (std::size_t i = 0; i < w.size(); ++i) {
    if (!std::isfinite(w[i]))
      throw Error(ErrorCode::kInvalidArgument, fmt::format("absmean: weight {} is {}, not finite", i, w[i]));
    sum += std::fabs(static_cast<double>(w[i]));
  }
  const float mean = w.empty() ? 0.0f : static_cast<float>(sum / static_cast<double>(w.size()));
  const float scale = std::max(mean, kSmallest), inverse = 1.0f / scale;
  TernaryWeights result{.out = out, .in = in, .trits = {}, .scales = {scale}, .rows_per_scale = out};
  result.trits.resize(w.size());
  for (std::size_t i = 0; i < w.size(); ++i) {
    const float v = std::clamp(w[i] * inverse, -1.0f, 1.0f);  // before rounding: same result, no overflow
    result.trits[i] = static_cast<std::int8_t>(round_half_even(v));
  }
  return result;
}

float quantize_row(const ExecutionContext& context, std::span<const float> x, std::span<std::int8_t> q) {
  if (x.size() != q.size()) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("quantize_row: {} values into {} places", x.size(), q.size()));
  }
  std::int32_t sum = 0;
  return quantize_one(f32_kernels(context.isa()), ternary_kernels(context.isa()), x.data(), x.size(),
                      q.data(), sum);
}

void quantize_rows(const ExecutionContext& context, std::span<const float> x, std::int64_t rows,
                   std::int64_t cols, QuantizedRows& to) {
  if (rows < 0 || cols < 0 || cols > kMaxColumns ||
      (cols != 0 && static_cast<std::uint64_t>(rows) > x.size() / static_cast<std::uint64_t>(cols)) ||
      x.size() != static_cast<std::uint64_t>(rows) * static_cast<std::uint64_t>(cols)) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("quantize_rows: {} values do not make {} rows of {} (at most {})", x.size(), rows,
                            cols, kMaxColumns));
  }
  const std::int64_t stride = (cols + 63) / 64 * 64;  // whole cache lines, and whole lines of every kernel
  to.rows = rows;
  to.cols = cols;
  to.stride = stride;
  to.values.resize(static_cast<std::size_t>(rows * stride));
  to.inv_scales.resize(static_cast<std::size_t>(rows));
  to.sums.resize(static_cast<std::size_t>(rows));
  const F32Kernels& floats = f32_kernels(context.isa());
  const TernaryKernels& kernels = ternary_kernels(context.isa());
  const std::size_t n = static_cast<std::size_t>(cols);
  // About 64 K elements (some 10 µs) are worth a second thread.
  const std::size_t grain = std::max<std::size_t>(1, 65536 / std::max<std::size_t>(1, n));
  context.parallel_for(static_cast<std::size_t>(rows), grain, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      std::int8_t* const q = to.values.data() + r * static_cast<std::size_t>(stride);
      const float a = quantize_one(floats, kernels, x.data() + r * n, n, q, to.sums[r]);
      to.inv_scales[r] = 1.0f / a;
      std::fill(q + n, q + stride, std::int8_t{0});
    }
  });
}

}  // namespace bitnet::quant
