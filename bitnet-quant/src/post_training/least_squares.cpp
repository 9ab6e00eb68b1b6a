// The exact optimum of one scale and its trits, and the pairs of planes that alternate around it.
#include <fmt/format.h>

#include <array>
#include <cmath>
#include <limits>

#include "bitnet/core/error.hpp"
#include "post_training/groups.hpp"

namespace bitnet::quant {
namespace post_training {

Grid make_grid(std::size_t n_weights, std::int64_t out, std::int64_t in, ScaleGroups groups) {
  const auto refuse = [](std::string message) {
    throw Error(ErrorCode::kInvalidArgument, std::move(message));
  };
  std::int64_t cells = 0;
  if (out < 1 || in < 1 || __builtin_mul_overflow(out, in, &cells) ||
      n_weights != static_cast<std::size_t>(cells))
    refuse(fmt::format("{} weights for a matrix [{}, {}]", n_weights, out, in));
  if (groups.rows < 0 || groups.cols < 0 || groups.cols > in || (groups.cols > 0 && in % groups.cols != 0))
    refuse(
        fmt::format("scales of {} rows × {} columns for a matrix [{}, {}]: expected columns that divide {}",
                    groups.rows, groups.cols, out, in, in));
  return {out, in, groups.rows == 0 ? out : std::min(groups.rows, out), groups.cols == 0 ? in : groups.cols};
}

Grid grid_of(const TernaryWeights& w) {
  return make_grid(w.trits.size(), w.out, w.in, {w.rows_per_scale, w.cols_per_scale});
}

TernaryWeights make_ternary(const Grid& grid) {
  TernaryWeights t;
  t.out = grid.out;
  t.in = grid.in;
  t.trits.resize(static_cast<std::size_t>(grid.out * grid.in));
  t.scales.resize(static_cast<std::size_t>(grid.count()));
  t.rows_per_scale = grid.rows;
  t.cols_per_scale = grid.cols == grid.in ? 0 : grid.cols;
  return t;
}

void require_finite(std::span<const float> w, const char* method) {
  const auto bad = std::find_if(w.begin(), w.end(), [](float v) { return !std::isfinite(v); });
  if (bad != w.end())
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{}: weight {} is {}, not finite", method, bad - w.begin(), *bad));
}

namespace {

/// Copies of a group's weights, one row after the other.
void gather(const Grid& grid, std::int64_t g, std::span<const float> w, std::vector<float>& to) {
  to.clear();
  to.reserve(static_cast<std::size_t>((grid.last_row(g) - grid.first_row(g)) * grid.cols));
  for (std::int64_t r = grid.first_row(g); r < grid.last_row(g); ++r) {
    const auto row = w.subspan(static_cast<std::size_t>(r * grid.in + grid.first_col(g)),
                               static_cast<std::size_t>(grid.cols));
    to.insert(to.end(), row.begin(), row.end());
  }
}

void scatter(const Grid& grid, std::int64_t g, std::span<const std::int8_t> trits, TernaryWeights& to) {
  for (std::int64_t r = grid.first_row(g); r < grid.last_row(g); ++r) {
    const auto n = static_cast<std::size_t>(grid.cols);
    const auto from = trits.subspan(static_cast<std::size_t>(r - grid.first_row(g)) * n, n);
    std::copy(from.begin(), from.end(), to.trits.begin() + (r * grid.in + grid.first_col(g)));
  }
}

/// Σ over a group, for one pair of planes: what the best scales a and b for its trits are.
struct PairSums {
  double tt = 0, uu = 0, tu = 0, wt = 0, wu = 0;

  /// Leaves a scale as it is where its trits are all zero, both where the planes are multiples of each other.
  void solve(double& a, double& b) const {
    const double det = tt * uu - tu * tu;
    if (det > 0.5) {  // integers
      const double next = (wt * uu - wu * tu) / det;
      b = (wu * tt - wt * tu) / det;
      a = next;
    } else if (tt > 0 && uu == 0) {
      a = wt / tt;
    }
  }
};

/// The best trits for scales a and b, the first of several: pairs in a fixed order.
bool choose(std::span<const float> w, double a, double b, std::span<std::int8_t> t,
            std::span<std::int8_t> u) {
  std::array<double, 9> sum{};
  for (std::size_t p = 0; p < 9; ++p)
    sum[p] = a * (static_cast<double>(p / 3) - 1) + b * (static_cast<double>(p % 3) - 1);
  bool changed = false;
  for (std::size_t i = 0; i < w.size(); ++i) {
    const auto old = static_cast<std::size_t>((t[i] + 1) * 3 + u[i] + 1);
    std::size_t best = old;  // an equal one never replaces what is there: the rounds come to an end
    double least = std::abs(static_cast<double>(w[i]) - sum[old]);
    for (std::size_t p = 0; p < 9; ++p) {
      const double error = std::abs(static_cast<double>(w[i]) - sum[p]);
      if (error < least) {
        least = error;
        best = p;
      }
    }
    changed = changed || best != old;
    t[i] = static_cast<std::int8_t>(static_cast<int>(best / 3) - 1);
    u[i] = static_cast<std::int8_t>(static_cast<int>(best % 3) - 1);
  }
  return changed;
}

void fit_pair(std::span<const float> w, std::span<std::int8_t> t, std::span<std::int8_t> u, double& a,
              double& b, int rounds, CancelFlag cancelled) {
  for (int round = 0; round < rounds; ++round) {
    throw_if_cancelled(cancelled);
    PairSums sums;
    for (std::size_t i = 0; i < w.size(); ++i) {
      const double x = static_cast<double>(w[i]), p = t[i], q = u[i];
      sums.tt += p * p;
      sums.uu += q * q;
      sums.tu += p * q;
      sums.wt += x * p;
      sums.wu += x * q;
    }
    sums.solve(a, b);
    if (!choose(w, a, b, t, u)) return;
  }
}

/// A plane with a negative scale is the same plane with other signs.
void make_positive(double& scale, std::span<std::int8_t> trits) {
  if (scale >= 0) return;
  scale = -scale;
  for (std::int8_t& t : trits) t = static_cast<std::int8_t>(-t);
}

}  // namespace
}  // namespace post_training

using post_training::Grid;

std::vector<float> dequantise(const TernaryWeights& w) {
  const Grid grid = post_training::grid_of(w);
  std::vector<float> out(w.trits.size());
  for (std::int64_t r = 0; r < w.out; ++r) {
    const float* const scales = w.scales.data() + r / grid.rows * grid.across();
    for (std::int64_t c = 0; c < w.in; ++c) {
      const auto i = static_cast<std::size_t>(r * w.in + c);
      out[i] = scales[c / grid.cols] * static_cast<float>(w.trits[i]);
    }
  }
  return out;
}

std::optional<TernaryWeights> exactly_ternary(std::span<const float> w, std::int64_t out, std::int64_t in,
                                              ScaleGroups groups, float unit) {
  const Grid grid = post_training::make_grid(w.size(), out, in, groups);
  std::vector<float> least(static_cast<std::size_t>(grid.count()), std::numeric_limits<float>::infinity()),
      most(least.size(), 0.0f);
  for (std::int64_t r = 0; r < out; ++r)
    for (std::int64_t c = 0; c < in; ++c) {
      const float size = std::fabs(w[static_cast<std::size_t>(r * in + c)]);
      const auto g = static_cast<std::size_t>(r / grid.rows * grid.across() + c / grid.cols);
      if (!std::isfinite(size)) return std::nullopt;
      if (size == 0) continue;
      least[g] = std::min(least[g], size);
      most[g] = std::max(most[g], size);
      if (most[g] - least[g] > least[g] * unit) return std::nullopt;
    }
  TernaryWeights to = post_training::make_ternary(grid);
  to.scales = std::move(most);
  for (std::size_t i = 0; i < w.size(); ++i)
    to.trits[i] = static_cast<std::int8_t>(int{w[i] > 0} - int{w[i] < 0});
  return to;
}

float least_squares(std::span<const float> w, std::span<std::int8_t> trits) {
  if (w.size() != trits.size())
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("least squares: {} weights and {} trits", w.size(), trits.size()));
  post_training::require_finite(w, "least squares");
  std::vector<float> sizes(w.size());
  std::transform(w.begin(), w.end(), sizes.begin(), [](float v) { return std::fabs(v); });
  std::sort(sizes.begin(), sizes.end(), std::greater<>());
  double sum = 0, best = 0, scale = 0;
  float smallest = 0;  // that gets a trit
  for (std::size_t k = 0; k < sizes.size() && sizes[k] > 0; ++k) {
    sum += static_cast<double>(sizes[k]);
    const double n = static_cast<double>(k + 1), gain = sum * sum / n;
    // Only a whole run of equal sizes: those at the threshold all get a trit, or none does.
    if (gain < best || (k + 1 < sizes.size() && sizes[k + 1] == sizes[k])) continue;
    best = gain;
    scale = sum / n;
    smallest = sizes[k];
  }
  for (std::size_t i = 0; i < w.size(); ++i) {
    const bool counts = smallest > 0 && std::fabs(w[i]) >= smallest;
    trits[i] = static_cast<std::int8_t>(!counts ? 0 : w[i] > 0 ? 1 : -1);
  }
  return static_cast<float>(scale);
}

TernaryWeights least_squares(const ExecutionContext& context, std::span<const float> w, std::int64_t out,
                             std::int64_t in, ScaleGroups groups) {
  const Grid grid = post_training::make_grid(w.size(), out, in, groups);
  post_training::require_finite(w, "least squares");
  TernaryWeights to = post_training::make_ternary(grid);
  context.parallel_for(static_cast<std::size_t>(grid.count()), 1, [&](std::size_t begin, std::size_t end) {
    std::vector<float> values;
    std::vector<std::int8_t> trits;
    for (std::size_t g = begin; g < end; ++g) {
      post_training::gather(grid, static_cast<std::int64_t>(g), w, values);
      trits.resize(values.size());
      to.scales[g] = least_squares(values, trits);
      post_training::scatter(grid, static_cast<std::int64_t>(g), trits, to);
    }
  });
  return to;
}

TwoPlanes two_planes(const ExecutionContext& context, std::span<const float> w, std::int64_t out,
                     std::int64_t in, ScaleGroups groups, int rounds, CancelFlag cancelled) {
  const Grid grid = post_training::make_grid(w.size(), out, in, groups);
  post_training::require_finite(w, "two planes");
  TwoPlanes to{post_training::make_ternary(grid), post_training::make_ternary(grid)};
  context.parallel_for(static_cast<std::size_t>(grid.count()), 1, [&](std::size_t begin, std::size_t end) {
    std::vector<float> values, rest;
    std::vector<std::int8_t> t, u;
    for (std::size_t g = begin; g < end; ++g) {
      const auto group = static_cast<std::int64_t>(g);
      post_training::gather(grid, group, w, values);
      t.resize(values.size());
      u.resize(values.size());
      rest.resize(values.size());
      double a = static_cast<double>(least_squares(values, t));
      for (std::size_t i = 0; i < values.size(); ++i)
        rest[i] = static_cast<float>(static_cast<double>(values[i]) - a * t[i]);
      double b = static_cast<double>(least_squares(rest, u));
      post_training::fit_pair(values, t, u, a, b, rounds, cancelled);
      post_training::make_positive(a, t);
      post_training::make_positive(b, u);
      to.first.scales[g] = static_cast<float>(a);
      to.second.scales[g] = static_cast<float>(b);
      post_training::scatter(grid, group, t, to.first);
      post_training::scatter(grid, group, u, to.second);
    }
  });
  return to;
}

}  // namespace bitnet::quant
