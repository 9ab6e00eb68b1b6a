// Mean, spread and median of a few measurements.
#include "bitnet/core/statistics.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string_view>
#include <vector>

#include "bitnet/core/error.hpp"

namespace bitnet {
namespace {

void refuse_nan(std::string_view what, std::span<const double> values) {
  const auto nan = std::ranges::find_if(values, [](double v) { return std::isnan(v); });
  if (nan != values.end())
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{} of {} values: value {} is NaN, numbers wanted",
                                                         what, values.size(), nan - values.begin()));
}

}  // namespace

double mean(std::span<const double> values) {
  refuse_nan("mean", values);
  double sum = 0;
  for (const double v : values) sum += v;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

double standard_deviation(std::span<const double> values) {
  refuse_nan("standard deviation", values);
  if (values.size() < 2) return 0;
  const double m = mean(values);
  double squares = 0;
  for (const double v : values) squares += (v - m) * (v - m);
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

double median(std::span<const double> values) {
  refuse_nan("median", values);
  if (values.empty()) return 0;
  std::vector<double> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  const std::size_t half = sorted.size() / 2;
  return sorted.size() % 2 == 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

}  // namespace bitnet
