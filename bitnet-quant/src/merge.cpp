// Adapters added to the weights for good. A ternary weight has no room for a small change, so that most of an
// update gets lost: what was kept is measured, row by row, beside the work itself.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/adapter.hpp"
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

/// The trits of W + Δ by the scale that was, then the scale by least squares: α = ⟨W + Δ, T⟩ / ⟨T, T⟩.
void merge_group(const LogicalTensor& from, std::span<const Part> parts, std::int64_t first,
                 std::int64_t last, LogicalTensor& to, Sums& sums, MergeReport& report) {
  const auto in = static_cast<std::size_t>(from.weights.in);
  const auto group = static_cast<std::size_t>(first / from.weights.rows_per_scale);
  const auto scale = static_cast<double>(from.weights.scales[group]);
  std::vector<double> delta(in), row(in), sum(in);
  const auto load = [&](std::int64_t r) {
    const std::int8_t* const trits = from.weights.trits.data() + static_cast<std::size_t>(r) * in;
    for (std::size_t i = 0; i < in; ++i) row[i] = scale * trits[i];
    update_row(parts, r, delta);
    add_row(delta, row, r, sum);
  };
  double along = 0, nonzero = 0;
  for (std::int64_t r = first; r < last; ++r) {
    load(r);
    const std::size_t at = static_cast<std::size_t>(r) * in;
    for (std::size_t i = 0; i < in; ++i) {
      // round_half_even, clamped: 0 up to a half (the even neighbour of ± 0.5 is 0).
      const double v = scale > 0 ? sum[i] / scale : 0;
      const auto trit = static_cast<std::int8_t>(static_cast<int>(v > 0.5) - static_cast<int>(v < -0.5));
      to.weights.trits[at + i] = trit;
      report.flips += trit != from.weights.trits[at + i];
      along += sum[i] * trit;
      nonzero += trit != 0;
    }
  }
  if (nonzero > 0) to.weights.scales[group] = static_cast<float>(along / nonzero);
  const auto stored = static_cast<double>(to.weights.scales[group]);
  for (std::int64_t r = first; r < last; ++r) {
    load(r);
    const std::size_t at = static_cast<std::size_t>(r) * in;
    for (std::size_t i = 0; i < in; ++i) sums.add(row[i], delta[i], stored * to.weights.trits[at + i]);
  }
}

LogicalTensor merge_ternary(const LogicalTensor& from, std::span<const Part> parts, Sums& sums,
                            MergeReport& report) {
  if (from.weights.cols_per_scale != 0)
    throw Error(ErrorCode::kUnsupported,
                fmt::format("an adapter cannot be merged into weights with scales by groups of {} columns",
                            from.weights.cols_per_scale));
  LogicalTensor to = from;
  const std::int64_t out = from.weights.out, step = from.weights.rows_per_scale;
  for (std::int64_t first = 0; first < out; first += step)
    merge_group(from, parts, first, std::min(out, first + step), to, sums, report);
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
    LogicalTensor merged =
        tensor.ternary ? merge_ternary(tensor, parts, sums, report) : merge_dense(tensor, parts, sums);
    sums.fill(report);
    reports.push_back(report);
    return merged;
  });
}

}  // namespace bitnet::quant
