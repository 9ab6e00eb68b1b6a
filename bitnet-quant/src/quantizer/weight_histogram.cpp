// Counting by w / scale, and the threshold that the counts show.
#include "bitnet/quant/weight_histogram.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "bitnet/core/error.hpp"

namespace bitnet::quant {
namespace {

constexpr double kBinsAUnit = WeightHistogram::kBins / (2 * WeightHistogram::kEnd);

std::size_t bin_of(double x) {
  const double at = std::floor((x + WeightHistogram::kEnd) * kBinsAUnit);
  return static_cast<std::size_t>(std::clamp(at, 0.0, static_cast<double>(WeightHistogram::kBins - 1)));
}

/// w in units of its scale. A scale of 0 stands for zeros; another weight is far from them, and this number
/// stays finite, as files of reports need.
double scaled(float w, float scale) {
  constexpr double kFar = 1e30;
  if (w == 0) return 0;
  const double x = scale > 0 ? static_cast<double>(w) / static_cast<double>(scale)
                             : std::copysign(kFar, static_cast<double>(w));
  return std::clamp(x, -kFar, kFar);
}

void count_trits(std::span<const float> w, const TernaryWeights& t, WeightHistogram& to) {
  const auto in = static_cast<std::size_t>(t.in), out = static_cast<std::size_t>(t.out);
  const std::size_t width = t.cols_per_scale > 0 ? static_cast<std::size_t>(t.cols_per_scale) : in;
  const auto rows = static_cast<std::size_t>(t.rows_per_scale > 0 ? t.rows_per_scale : t.out);
  const std::size_t groups = (in + width - 1) / width;
  double one = std::numeric_limits<double>::infinity();
  std::size_t i = 0;
  for (std::size_t r = 0; r < out; ++r) {
    for (std::size_t g = 0; g < groups; ++g) {
      const float scale = t.scales[r / rows * groups + g];
      for (const std::size_t end = r * in + std::min(in, (g + 1) * width); i < end; ++i) {
        const double x = scaled(w[i], scale);
        ++to.counts[static_cast<std::size_t>(t.trits[i] + 1)][bin_of(x)];
        if (t.trits[i] == 0)
          to.largest_zero = std::max(to.largest_zero, std::fabs(x));
        else
          one = std::min(one, std::fabs(x));
      }
    }
  }
  if (std::isfinite(one)) to.smallest_one = one;
}

}  // namespace

std::optional<double> WeightHistogram::threshold() const noexcept {
  if (!ternary || smallest_one == 0 || largest_zero == 0) return std::nullopt;
  if (largest_zero <= smallest_one) return (largest_zero + smallest_one) / 2;
  constexpr std::size_t kHalf = kBins / 2;
  // Bins by |w| / scale; the wrong ones with the threshold at 0 are all zeros.
  std::int64_t wrong = 0;
  const auto at = [&](std::size_t trit, std::size_t bin) {
    return counts[trit][kHalf + bin] + counts[trit][kHalf - 1 - bin];
  };
  for (std::size_t b = 0; b < kHalf; ++b) wrong += at(1, b);
  std::int64_t least = wrong;
  std::size_t best = 0;
  for (std::size_t b = 0; b < kHalf; ++b) {
    wrong += at(0, b) + at(2, b) - at(1, b);
    if (wrong < least) {
      least = wrong;
      best = b + 1;
    }
  }
  return static_cast<double>(best) / kBinsAUnit;
}

void WeightHistogram::add(const WeightHistogram& other) noexcept {
  for (std::size_t t = 0; t < counts.size(); ++t)
    for (std::size_t b = 0; b < kBins; ++b) counts[t][b] += other.counts[t][b];
  ternary = ternary || other.ternary;
  largest_zero = std::max(largest_zero, other.largest_zero);
  if (other.smallest_one > 0)
    smallest_one = smallest_one > 0 ? std::min(smallest_one, other.smallest_one) : other.smallest_one;
}

WeightHistogram histogram_of(std::span<const float> w, const LogicalTensor& stored) {
  if (stored.shape.rank() != 2 || w.size() != static_cast<std::size_t>(stored.shape.numel()))
    throw Error(ErrorCode::kInvalidArgument, fmt::format("the histogram of {} weights that are stored as {}",
                                                         w.size(), stored.shape.to_string()));
  WeightHistogram h;
  if (stored.ternary || stored.planes) {
    h.ternary = true;
    count_trits(w, stored.ternary ? stored.weights : stored.planes->first, h);
    return h;
  }
  double squares = 0;
  for (const float v : w) squares += static_cast<double>(v) * static_cast<double>(v);
  const auto rms = static_cast<float>(std::sqrt(squares / static_cast<double>(w.size())));
  for (const float v : w) ++h.counts[WeightHistogram::kNotTernary][bin_of(scaled(v, rms))];
  return h;
}

}  // namespace bitnet::quant
