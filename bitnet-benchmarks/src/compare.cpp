// Welch's t-test, and the verdicts that are made of it; see compare.hpp.
#include "bitnet/benchmarks/compare.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "bitnet/core/error.hpp"

namespace bitnet::benchmarks {
namespace {

/// Continued fraction of the incomplete beta function (Abramowitz and Stegun 26.5.8), by Lentz's method.
double beta_fraction(double a, double b, double x) {
  constexpr double kTiny = 1e-300, kPrecision = 1e-15;
  constexpr int kMostTerms = 10'000;
  const auto guarded = [](double v) { return std::abs(v) < kTiny ? kTiny : v; };
  double c = 1, d = 1 / guarded(1 - (a + b) * x / (a + 1)), value = d;
  for (int m = 1; m < kMostTerms; ++m) {
    const double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    const double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    double change = 1;
    for (const double term : {even, odd}) {
      d = 1 / guarded(1 + term * d);
      c = guarded(1 + term / c);
      change = c * d;
      value *= change;
    }
    if (std::abs(change - 1) < kPrecision) break;
  }
  return value;
}

/// Regularised incomplete beta function I_x(a, b), 0 ≤ x ≤ 1.
double incomplete_beta(double a, double b, double x) {
  if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
  const double front =
      std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log1p(-x));
  if (x < (a + 1) / (a + b + 2)) return front * beta_fraction(a, b, x) / a;
  return 1 - front * beta_fraction(b, a, 1 - x) / b;
}

const Measurement* find(const ResultFile& file, const std::string& name) {
  for (const Measurement& m : file.measurements)
    if (m.name == name) return &m;
  return nullptr;
}

Comparison compare_one(const Measurement& before, const Measurement& after,
                       const ComparisonOptions& options) {
  Comparison c;
  c.name = before.name;
  c.unit = before.unit;
  c.old_mean = before.mean;
  c.new_mean = after.mean;
  c.speed = before.higher_is_better ? after.mean / before.mean : before.mean / after.mean;
  c.p = welch_p_value(before.mean, before.stddev, before.count, after.mean, after.stddev, after.count);
  if (!c.p) return c;
  c.verdict = Verdict::kSame;
  if (*c.p < options.level && c.speed < 1 - options.threshold) c.verdict = Verdict::kSlower;
  if (*c.p < options.level && c.speed > 1 + options.threshold) c.verdict = Verdict::kFaster;
  return c;
}

}  // namespace

std::optional<double> welch_p_value(double mean_a, double stddev_a, std::size_t count_a, double mean_b,
                                    double stddev_b, std::size_t count_b) {
  if (count_a < 2 || count_b < 2) return std::nullopt;
  const auto n_a = static_cast<double>(count_a), n_b = static_cast<double>(count_b);
  const double a = stddev_a * stddev_a / n_a, b = stddev_b * stddev_b / n_b;  // squared errors of the means
  if (a + b == 0) return mean_a == mean_b ? 1 : 0;
  const double t = (mean_a - mean_b) / std::sqrt(a + b);
  const double freedom = (a + b) * (a + b) / (a * a / (n_a - 1) + b * b / (n_b - 1));
  return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t));
}

std::string_view to_string(Verdict verdict) noexcept {
  switch (verdict) {
    case Verdict::kSame:
      return "same";
    case Verdict::kSlower:
      return "SLOWER";
    case Verdict::kFaster:
      return "faster";
    case Verdict::kUnknown:
      break;
  }
  return "one sample: no verdict";
}

bool ComparisonReport::any_slower() const noexcept {
  return std::any_of(tests.begin(), tests.end(),
                     [](const Comparison& c) { return c.verdict == Verdict::kSlower; });
}

ComparisonReport compare(const ResultFile& before, const ResultFile& after,
                         const ComparisonOptions& options) {
  if (before.kind != after.kind) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("'{}' and '{}': one is of bitnet bench, the other of Google Benchmark",
                            before.name, after.name));
  }
  ComparisonReport report;
  for (const auto& [key, value] : before.facts) {
    const auto other = after.facts.find(key);
    if (other != after.facts.end() && other->second != value)
      report.notes.push_back(fmt::format("{} differs: '{}' and '{}'", key, value, other->second));
  }
  for (const Measurement& m : before.measurements) {
    if (const Measurement* now = find(after, m.name)) {
      report.tests.push_back(compare_one(m, *now, options));
    } else {
      report.notes.push_back(fmt::format("'{}' is only in the old file", m.name));
    }
  }
  for (const Measurement& m : after.measurements)
    if (find(before, m.name) == nullptr)
      report.notes.push_back(fmt::format("'{}' is only in the new file", m.name));
  if (report.tests.empty())
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("'{}' and '{}' have no test in common", before.name, after.name));
  return report;
}

}  // namespace bitnet::benchmarks
