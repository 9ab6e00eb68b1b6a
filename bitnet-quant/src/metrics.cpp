// See metrics.hpp.
#include "bitnet/quant/metrics.hpp"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/post_training.hpp"

namespace bitnet::quant {

double WeightMetrics::mse() const noexcept { return weights > 0 ? noise / static_cast<double>(weights) : 0; }

double WeightMetrics::sqnr_db() const noexcept {
  if (noise == 0) return std::numeric_limits<double>::infinity();
  return 10 * std::log10(signal / noise);
}

double WeightMetrics::cosine() const noexcept {
  if (signal == 0 && stored == 0) return 1;
  return signal > 0 && stored > 0 ? product / std::sqrt(signal * stored) : 0;
}

double WeightMetrics::relative_error() const noexcept {
  if (noise == 0) return 0;
  return signal > 0 ? std::sqrt(noise / signal) : std::numeric_limits<double>::infinity();
}

double WeightMetrics::output_error() const noexcept {
  return output_signal > 0 ? output_noise / output_signal : 0;
}

double WeightMetrics::zero_fraction() const noexcept {
  const std::int64_t all = trits[0] + trits[1] + trits[2];
  return all > 0 ? static_cast<double>(trits[1]) / static_cast<double>(all) : 0;
}

double WeightMetrics::entropy() const noexcept {
  const auto all = static_cast<double>(trits[0] + trits[1] + trits[2]);
  double bits = 0;
  for (const std::int64_t n : trits)
    if (n > 0) bits -= static_cast<double>(n) / all * std::log2(static_cast<double>(n) / all);
  return bits;
}

void WeightMetrics::add(const WeightMetrics& other) noexcept {
  weights += other.weights;
  signal += other.signal;
  noise += other.noise;
  product += other.product;
  stored += other.stored;
  output_signal += other.output_signal;
  output_noise += other.output_noise;
  for (std::size_t i = 0; i < trits.size(); ++i) trits[i] += other.trits[i];
}

WeightMetrics measure(const ExecutionContext& context, std::span<const float> w,
                      std::span<const float> stored, std::int64_t in, const Hessian* hessian,
                      CancelFlag cancelled) {
  if (w.size() != stored.size() || in < 1 || w.size() % static_cast<std::size_t>(in) != 0 ||
      (hessian != nullptr && hessian->in() != in))
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("{} weights and {} that are stored, with {} columns{}", w.size(), stored.size(), in,
                    hessian != nullptr ? fmt::format(" and a Hessian of {} inputs", hessian->in()) : ""));
  WeightMetrics m;
  m.weights = static_cast<std::int64_t>(w.size());
  std::vector<float> error(hessian != nullptr ? w.size() : 0);
  for (std::size_t i = 0; i < w.size(); ++i) {
    const double x = static_cast<double>(w[i]), q = static_cast<double>(stored[i]);
    if (!std::isfinite(x) || !std::isfinite(q))
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("weight {} is {}, stored as {}: not finite", i, w[i], stored[i]));
    m.signal += x * x;
    m.noise += (x - q) * (x - q);
    m.product += x * q;
    m.stored += q * q;
    if (hessian != nullptr) error[i] = static_cast<float>(x - q);
  }
  if (hessian != nullptr) {
    m.output_signal = quadratic_form(context, w, *hessian, cancelled);
    m.output_noise = quadratic_form(context, error, *hessian, cancelled);
  }
  return m;
}

WeightMetrics measure(const ExecutionContext& context, std::span<const float> w, const TernaryWeights& stored,
                      const Hessian* hessian, CancelFlag cancelled) {
  WeightMetrics m = measure(context, w, dequantise(stored), stored.in, hessian, cancelled);
  for (const std::int8_t t : stored.trits) ++m.trits[static_cast<std::size_t>(t + 1)];
  return m;
}

WeightMetrics measure(const ExecutionContext& context, std::span<const float> w, const LogicalTensor& stored,
                      const Hessian* hessian, CancelFlag cancelled) {
  if (stored.shape.rank() != 2)
    throw Error(ErrorCode::kInvalidArgument, "the metrics of a tensor that is no matrix");
  WeightMetrics m = measure(context, w, stored.to_f32(), stored.shape[1], hessian, cancelled);
  const auto count = [&](const TernaryWeights& plane) {
    for (const std::int8_t t : plane.trits) ++m.trits[static_cast<std::size_t>(t + 1)];
  };
  if (stored.ternary) count(stored.weights);
  if (stored.planes) {
    count(stored.planes->first);
    count(stored.planes->second);
  }
  return m;
}

}  // namespace bitnet::quant
