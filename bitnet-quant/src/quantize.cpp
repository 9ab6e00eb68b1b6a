// The quantisers' definitions around the ISA kernels: checks, scales, sharing rows between threads. The inner
// loop of absmax is kernels/generic/quantize.inl.hpp.
#include "bitnet/quant/quantize.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "absmean.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/quant/bit_linear.hpp"
#include "kernels/ternary_table.hpp"
#include "self_test.hpp"

namespace bitnet::quant {
namespace {

constexpr float kSmallest = 1e-5f;  // of all definitions' max(…, 1e-5)

/// Quantises one row and returns a; `sum` becomes Σ q. A NaN in the row makes a NaN (max() returns its first
/// argument then), an infinity makes it 0 and 1 / a infinite: either way q is 0, and 0 · (1 / a) is NaN.
float quantize_one(const F32Kernels& floats, const TernaryKernels& kernels, const float* x, std::size_t n,
                   std::int8_t* q, std::int32_t& sum) {
  const float a = 127.0f / std::max(floats.max_abs(x, n), kSmallest);
  sum = kernels.quantize(x, a, q, n);
  return a;
}

/// mean |x|, summed in double in index order: the same bits on every instruction set.
float mean_abs(const float* x, std::size_t n) {
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += std::fabs(static_cast<double>(x[i]));
  return n == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(n));
}

/// The same in 4 bits. With absmean |x·a| ≤ √7 · n stays below the kernel's 2^22, since max|x| ≤ n · mean|x|
/// and n ≤ kMaxColumns.
float quantize_one_int4(const F32Kernels& floats, const TernaryKernels& kernels, const float* x,
                        std::size_t n, bool absmean, std::int8_t* q, std::int32_t& sum) {
  static_assert(2.7 * kMaxColumns < (1 << 22));
  const float a = absmean ? std::sqrt(7.0f) / std::max(mean_abs(x, n), kSmallest)
                          : 7.0f / std::max(floats.max_abs(x, n), kSmallest);
  kernels.quantize(x, a, q, n);
  sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    q[i] = std::clamp(q[i], std::int8_t{-8}, std::int8_t{7});
    sum += q[i];
  }
  return a;
}

void reserve_rows(std::int64_t rows, std::int64_t cols, QuantizedRows& to) {
  to.rows = rows;
  to.cols = cols;
  to.stride = quantized_stride(cols);
  to.values.resize(static_cast<std::size_t>(rows * to.stride));
  to.inv_scales.resize(static_cast<std::size_t>(rows));
  to.sums.resize(static_cast<std::size_t>(rows));
}

/// Rows that are worth a thread: about 16 K elements, some 4 µs.
std::size_t rows_per_part(std::int64_t cols) {
  return std::max<std::size_t>(1, 16384 / std::max<std::size_t>(1, static_cast<std::size_t>(cols)));
}

/// Quantises a row into its place of a QuantizedRows.
class RowQuantizer {
 public:
  RowQuantizer(const ExecutionContext& context, QuantizedRows& to, ActivationForm form)
      : floats_(tested_f32_kernels(context.isa())),
        kernels_(tested_kernels(context.isa())),
        to_(to),
        form_(form) {}

  void operator()(const float* x, std::size_t row) const {
    const auto n = static_cast<std::size_t>(to_.cols), stride = static_cast<std::size_t>(to_.stride);
    std::int8_t* const q = to_.values.data() + row * stride;
    const float a = form_ == ActivationForm::kInt8
                        ? quantize_one(floats_, kernels_, x, n, q, to_.sums[row])
                        : quantize_one_int4(floats_, kernels_, x, n, form_ == ActivationForm::kInt4Absmean, q,
                                            to_.sums[row]);
    to_.inv_scales[row] = 1.0f / a;
    std::fill(q + n, q + stride, std::int8_t{0});
  }

 private:
  const F32Kernels& floats_;
  const TernaryKernels& kernels_;
  QuantizedRows& to_;
  ActivationForm form_;
};

}  // namespace

void AbsmeanSum::add(std::span<const float> w) {
  std::uint32_t not_finite = 0;  // loops without branches: the compiler makes vectors of them
  for (const float v : w)
    not_finite |= static_cast<std::uint32_t>((std::bit_cast<std::uint32_t>(v) & 0x7f800000u) == 0x7f800000u);
  if (not_finite != 0) {
    const auto at = std::find_if(w.begin(), w.end(), [](float v) { return !std::isfinite(v); });
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("absmean: weight {} is {}, not finite",
                            count_ + static_cast<std::size_t>(at - w.begin()), *at));
  }
  double sum = sum_;
  for (const float v : w) sum += std::fabs(static_cast<double>(v));
  sum_ = sum;
  count_ += w.size();
}

float AbsmeanSum::scale() const noexcept {
  const float mean = count_ == 0 ? 0.0f : static_cast<float>(sum_ / static_cast<double>(count_));
  return std::max(mean, kSmallest);
}

void ternarise(std::span<const float> w, float scale, std::int8_t* to) noexcept {
  // round_half_even(v) clamped to ±1 is 0 up to |v| = 0.5 (a half goes to the even 0), else the sign.
  const float inverse = 1.0f / scale;
  const float* const from = w.data();
  for (std::size_t i = 0, n = w.size(); i < n; ++i) {
    const float v = from[i] * inverse;
    to[i] = static_cast<std::int8_t>(static_cast<int>(v > 0.5f) - static_cast<int>(v < -0.5f));
  }
}

TernaryWeights absmean(std::span<const float> w, std::int64_t out, std::int64_t in) {
  if (out < 0 || in < 0 ||
      (in != 0 && static_cast<std::uint64_t>(out) > w.size() / static_cast<std::uint64_t>(in)) ||
      w.size() != static_cast<std::uint64_t>(out) * static_cast<std::uint64_t>(in)) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("absmean: {} weights do not make a matrix of {} x {}", w.size(), out, in));
  }
  AbsmeanSum sum;
  sum.add(w);
  TernaryWeights result{.out = out, .in = in, .trits = {}, .scales = {sum.scale()}, .rows_per_scale = out};
  result.trits.resize(w.size());
  ternarise(w, sum.scale(), result.trits.data());
  return result;
}

float quantize_row(const ExecutionContext& context, std::span<const float> x, std::span<std::int8_t> q) {
  if (x.size() != q.size()) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("quantize_row: {} values into {} places", x.size(), q.size()));
  }
  std::int32_t sum = 0;
  return quantize_one(tested_f32_kernels(context.isa()), tested_kernels(context.isa()), x.data(), x.size(),
                      q.data(), sum);
}

void quantize_rows(const ExecutionContext& context, std::span<const float> x, std::int64_t rows,
                   std::int64_t cols, QuantizedRows& to, ActivationForm form) {
  if (rows < 0 || cols < 0 || cols > kMaxColumns ||
      (cols != 0 && static_cast<std::uint64_t>(rows) > x.size() / static_cast<std::uint64_t>(cols)) ||
      x.size() != static_cast<std::uint64_t>(rows) * static_cast<std::uint64_t>(cols)) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("quantize_rows: {} values do not make {} rows of {} (at most {})", x.size(), rows,
                            cols, kMaxColumns));
  }
  reserve_rows(rows, cols, to);
  const RowQuantizer quantizer(context, to, form);
  context.parallel_for(static_cast<std::size_t>(rows), rows_per_part(cols),
                       [&](std::size_t begin, std::size_t end) {
                         for (std::size_t r = begin; r < end; ++r)
                           quantizer(x.data() + r * static_cast<std::size_t>(cols), r);
                       });
}

void quantize_made_rows(const ExecutionContext& context, std::int64_t rows, std::int64_t cols, MakeRow make,
                        void* state, QuantizedRows& to, ActivationForm form) {
  if (rows < 0 || cols < 0 || cols > kMaxColumns) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("quantize_made_rows: {} rows of {} (at most {})", rows, cols, kMaxColumns));
  }
  reserve_rows(rows, cols, to);
  const RowQuantizer quantizer(context, to, form);
  const auto n = static_cast<std::size_t>(rows);
  const std::size_t parts = std::clamp<std::size_t>(n / rows_per_part(cols), 1, context.threads());
  constexpr std::size_t kLine = 64 / sizeof(float);  // no cache line is of two threads
  const std::size_t stride = (static_cast<std::size_t>(cols) + kLine - 1) / kLine * kLine;
  if (to.scratch.size() < parts * stride + kLine) to.scratch.resize(parts * stride + kLine);
  float* const scratch = to.scratch.data() + (kLine - reinterpret_cast<std::uintptr_t>(to.scratch.data()) /
                                                          sizeof(float) % kLine);
  context.parallel_for(parts, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t part = first; part < last; ++part) {
      float* const row = scratch + part * stride;
      for (std::size_t r = part * n / parts; r < (part + 1) * n / parts; ++r) {
        make(state, static_cast<std::int64_t>(r), row);
        quantizer(row, r);
      }
    }
  });
}

}  // namespace bitnet::quant
