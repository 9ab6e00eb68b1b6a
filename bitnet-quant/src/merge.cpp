// Adapters added to the weights for good; each linear stays of its kind. A ternary weight has no room for a
// small change, so that most of an update gets lost: what was kept is measured beside the work itself.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/adapter.hpp"
#include "int8_rows.hpp"
#include "model_io/stored_tensor.hpp"

namespace bitnet::quant {
namespace {

/// One adapter's part in one linear.
struct Part {
  const LoraLinear* linear;
  double factor;  // weight · scaling
};

std::vector<Part> parts_of(const LogicalTensor& tensor, std::span<const WeightedAdapter> adapters,
                           std::int64_t out, std::int64_t in) {
  std::vector<Part> parts;
  for (const WeightedAdapter& w : adapters) {
    for (const LoraLinear& l : w.adapter->linears) {
      if (!(l.id == tensor.id)) continue;
      if (l.rank < 1 || l.a.size() != static_cast<std::size_t>(l.rank * in) ||
          l.b.size() != static_cast<std::size_t>(out * l.rank))
        throw Error(ErrorCode::kInvalidArgument,
                    fmt::format("an adapter of {} and {} elements for a linear [{}, {}]", l.a.size(),
                                l.b.size(), out, in));
      parts.push_back({&l, static_cast<double>(w.weight) * static_cast<double>(l.scaling)});
    }
  }
  return parts;
}

/// Row `row` of Δ.
void update_row(std::span<const Part> parts, std::int64_t row, std::span<double> to) {
  std::fill(to.begin(), to.end(), 0.0);
  for (const Part& p : parts) {
    const std::size_t in = to.size();
    for (std::int64_t r = 0; r < p.linear->rank; ++r) {
      const double b =
          p.factor * static_cast<double>(p.linear->b[static_cast<std::size_t>(row * p.linear->rank + r)]);
      const float* const a = p.linear->a.data() + static_cast<std::size_t>(r) * in;
      for (std::size_t i = 0; i < in; ++i) to[i] += b * static_cast<double>(a[i]);
    }
  }
}

/// The sums behind a MergeReport.
struct Sums {
  double ww = 0, dd = 0, tt = 0, moved = 0, missed = 0;

  void add(double w, double d, double stored) {
    ww += w * w;
    dd += d * d;
    tt += (w + d) * (w + d);
    moved += (stored - w) * d;
    missed += (stored - w - d) * (stored - w - d);
  }
  void fill(MergeReport& r) const {
    r.update = ww > 0 ? std::sqrt(dd / ww) : 0;
    r.kept = dd > 0 ? moved / dd : 1;
    r.error = tt > 0 ? std::sqrt(missed / tt) : 0;
  }
};

[[noreturn]] void not_finite(std::int64_t row, std::size_t col, double value) {
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("the merged weight at [{}, {}] is {}", row, col, value));
}

/// W + Δ of one row, in `sum`, from W in `row`.
void add_row(std::span<const double> delta, std::span<const double> row, std::int64_t index,
             std::span<double> sum) {
  for (std::size_t i = 0; i < sum.size(); ++i) {
    sum[i] = row[i] + delta[i];
    if (!std::isfinite(static_cast<float>(sum[i]))) not_finite(index, i, sum[i]);
  }
}

/// Columns that share a scale, and how many such groups a row has.
std::size_t group_width(const TernaryWeights& w) {
  return static_cast<std::size_t>(w.cols_per_scale > 0 ? w.cols_per_scale : w.in);
}
std::size_t groups_across(const TernaryWeights& w) {
  return (static_cast<std::size_t>(w.in) + group_width(w) - 1) / group_width(w);
}

/// One or two planes that stand for W together, with the same groups: those that were, and their copies that
/// become those of M.
struct Planes {
  std::vector<const TernaryWeights*> from;
  std::vector<TernaryWeights*> to;

  const TernaryWeights& shape() const { return *from[0]; }
  /// That of the columns around `col` in row `row`.
  std::size_t group(std::int64_t row, std::size_t col) const {
    return static_cast<std::size_t>(row / shape().rows_per_scale) * groups_across(shape()) +
           col / group_width(shape());
  }
  static double scale(const TernaryWeights& plane, std::size_t group) {
    return static_cast<double>(plane.scales[group]);
  }
  template <class P>
  static double value(const P& planes, std::size_t group, std::size_t at) {
    double sum = 0;
    for (const TernaryWeights* const p : planes) sum += scale(*p, group) * p->trits[at];
    return sum;
  }
};

/// round_half_even(sum / scale), clamped: 0 up to a half, of which it is the even neighbour.
std::int8_t nearest_trit(double sum, double scale) {
  const double v = scale > 0 ? sum / scale : 0;
  return static_cast<std::int8_t>(static_cast<int>(v > 0.5) - static_cast<int>(v < -0.5));
}

/// The trits of W + Δ at one place, by the scales that were; of two planes the pair that comes nearest, which
/// is the one that was unless another comes nearer.
void choose_trits(Planes& p, double sum, std::size_t group, std::size_t at) {
  if (p.from.size() == 1) {
    p.to[0]->trits[at] = nearest_trit(sum, Planes::scale(*p.from[0], group));
    return;
  }
  const double first = Planes::scale(*p.from[0], group), second = Planes::scale(*p.from[1], group);
  double least = std::fabs(sum - Planes::value(p.from, group, at));
  for (int a = -1; a <= 1; ++a)
    for (int b = -1; b <= 1; ++b)
      if (const double error = std::fabs(sum - first * a - second * b); error < least) {
        least = error;
        p.to[0]->trits[at] = static_cast<std::int8_t>(a);
        p.to[1]->trits[at] = static_cast<std::int8_t>(b);
      }
}

/// The normal equations of the scales of one group: α = ⟨W + Δ, T⟩ / ⟨T, T⟩, of two planes two of them.
struct ScaleEquations {
  double tt = 0, tu = 0, uu = 0, st = 0, su = 0;

  void add(const Planes& p, double sum, std::size_t at) {
    const double t = p.to[0]->trits[at], u = p.to.size() > 1 ? p.to[1]->trits[at] : 0;
    tt += t * t;
    tu += t * u;
    uu += u * u;
    st += sum * t;
    su += sum * u;
  }
  /// Scales without an equation of their own, or that would turn negative, stay.
  void solve(Planes& p, std::size_t group) const {
    constexpr double kParallel = 1e-9;
    const double det = tt * uu - tu * tu;
    if (tt > 0 && uu == 0) {
      p.to[0]->scales[group] = static_cast<float>(st / tt);
    } else if (det > kParallel * tt * uu) {
      const double first = (st * uu - su * tu) / det, second = (su * tt - st * tu) / det;
      if (first < 0 || second < 0) return;
      p.to[0]->scales[group] = static_cast<float>(first);
      p.to[1]->scales[group] = static_cast<float>(second);
    }
  }
};

void merge_planes(Planes planes, std::span<const Part> parts, Sums& sums, MergeReport& report) {
  const TernaryWeights& shape = planes.shape();
  const auto in = static_cast<std::size_t>(shape.in);
  report.trits = shape.out * shape.in * static_cast<std::int64_t>(planes.to.size());
  std::vector<double> delta(in), row(in), sum(in);
  const auto load = [&](std::int64_t r) {
    const std::size_t at = static_cast<std::size_t>(r) * in;
    for (std::size_t i = 0; i < in; ++i) row[i] = Planes::value(planes.from, planes.group(r, i), at + i);
    update_row(parts, r, delta);
    add_row(delta, row, r, sum);
    return at;
  };
  for (std::int64_t first = 0; first < shape.out; first += shape.rows_per_scale) {
    const std::int64_t last = std::min(shape.out, first + shape.rows_per_scale);
    std::vector<ScaleEquations> equations(groups_across(shape));
    for (std::int64_t r = first; r < last; ++r) {
      const std::size_t at = load(r);
      for (std::size_t i = 0; i < in; ++i) {
        choose_trits(planes, sum[i], planes.group(r, i), at + i);
        for (std::size_t p = 0; p < planes.to.size(); ++p)
          report.flips += planes.to[p]->trits[at + i] != planes.from[p]->trits[at + i];
        equations[i / group_width(shape)].add(planes, sum[i], at + i);
      }
    }
    for (std::size_t g = 0; g < equations.size(); ++g) equations[g].solve(planes, planes.group(first, 0) + g);
    for (std::int64_t r = first; r < last; ++r) {
      const std::size_t at = load(r);
      for (std::size_t i = 0; i < in; ++i)
        sums.add(row[i], delta[i], Planes::value(planes.to, planes.group(r, i), at + i));
    }
  }
}

bool same_groups(const TernaryWeights& a, const TernaryWeights& b) {
  return a.rows_per_scale == b.rows_per_scale && a.cols_per_scale == b.cols_per_scale &&
         a.scales.size() == b.scales.size();
}

LogicalTensor merge_trits(const LogicalTensor& from, std::span<const Part> parts, Sums& sums,
                          MergeReport& report) {
  LogicalTensor to = from;
  if (from.ternary) {
    merge_planes({{&from.weights}, {&to.weights}}, parts, sums, report);
    return to;
  }
  if (!same_groups(from.planes->first, from.planes->second))
    throw Error(ErrorCode::kUnsupported,
                "an adapter cannot be merged into two planes whose scales have other groups");
  to.dense = {};
  merge_planes({{&from.planes->first, &from.planes->second}, {&to.planes->first, &to.planes->second}}, parts,
               sums, report);
  return to;
}

/// Rows that Δ touches are rounded anew, each by its own largest weight; others stay.
LogicalTensor merge_int8(const LogicalTensor& from, std::span<const Part> parts, Sums& sums) {
  const auto in = static_cast<std::size_t>(from.shape[1]);
  LogicalTensor to = from;
  to.dense = {};
  std::vector<double> delta(in), row(in), sum(in);
  std::vector<float> rounded(in);
  for (std::int64_t r = 0; r < from.shape[0]; ++r) {
    const std::size_t at = static_cast<std::size_t>(r) * in;
    const auto s = static_cast<std::size_t>(r);
    for (std::size_t i = 0; i < in; ++i)
      row[i] = static_cast<double>(from.int8->scales[s]) * from.int8->values[at + i];
    update_row(parts, r, delta);
    add_row(delta, row, r, sum);
    if (std::any_of(delta.begin(), delta.end(), [](double d) { return d != 0; })) {
      std::transform(sum.begin(), sum.end(), rounded.begin(), [](double v) { return static_cast<float>(v); });
      to.int8->scales[s] = round_int8_row(rounded, std::span(to.int8->values).subspan(at, in));
    }
    for (std::size_t i = 0; i < in; ++i)
      sums.add(row[i], delta[i],
               static_cast<double>(to.int8->scales[s]) * static_cast<double>(to.int8->values[at + i]));
  }
  return to;
}

LogicalTensor merge_dense(const LogicalTensor& from, std::span<const Part> parts, Sums& sums) {
  const auto in = static_cast<std::size_t>(from.shape[1]);
  std::vector<float> values = from.to_f32();
  std::vector<double> delta(in), row(in), sum(in);
  for (std::int64_t r = 0; r < from.shape[0]; ++r) {
    float* const at = values.data() + static_cast<std::size_t>(r) * in;
    std::copy(at, at + in, row.begin());
    update_row(parts, r, delta);
    add_row(delta, row, r, sum);
    std::transform(sum.begin(), sum.end(), at, [](double v) { return static_cast<float>(v); });
  }
  LogicalTensor to = from;
  to.dense = model_io::encode_floats(from.dtype, values);
  const std::vector<float> before = from.to_f32(), stored = to.to_f32();
  for (std::int64_t r = 0; r < from.shape[0]; ++r) {
    update_row(parts, r, delta);
    for (std::size_t i = 0; i < in; ++i) {
      const std::size_t at = static_cast<std::size_t>(r) * in + i;
      sums.add(static_cast<double>(before[at]), delta[i], static_cast<double>(stored[at]));
    }
  }
  return to;
}

}  // namespace

LogicalTensor merge(const LogicalTensor& tensor, std::span<const WeightedAdapter> adapters,
                    std::vector<MergeReport>& reports) {
  if (!is_linear(tensor.id.role)) return tensor;
  return with_context(fmt::format("tensor '{}'", gguf_name(tensor.id)), [&] {
    const std::int64_t out = tensor.shape[0], in = tensor.shape[1];
    const std::vector<Part> parts = parts_of(tensor, adapters, out, in);
    if (parts.empty()) return tensor;
    MergeReport report;
    report.id = tensor.id;
    report.weights = out * in;
    Sums sums;
    LogicalTensor merged = tensor.ternary || tensor.planes ? merge_trits(tensor, parts, sums, report)
                           : tensor.int8                   ? merge_int8(tensor, parts, sums)
                                                           : merge_dense(tensor, parts, sums);
    sums.fill(report);
    reports.push_back(report);
    return merged;
  });
}

}  // namespace bitnet::quant
