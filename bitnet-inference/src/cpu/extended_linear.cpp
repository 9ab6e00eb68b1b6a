// Planes and groups of columns cut into BitLinears, and their sum.
#include "cpu/extended_linear.hpp"

#include <algorithm>
#include <numeric>
#include <utility>

namespace bitnet::inference::cpu {
namespace {

/// Columns [first, first + n) of quantised rows, as rows of their own with the same scales.
void take_columns(const ExecutionContext& context, const quant::QuantizedRows& x, std::int64_t first,
                  std::int64_t n, quant::QuantizedRows& to) {
  to.rows = x.rows;
  to.cols = n;
  to.stride = quant::quantized_stride(n);
  to.values.resize(static_cast<std::size_t>(x.rows * to.stride));
  to.inv_scales.assign(x.inv_scales.begin(), x.inv_scales.begin() + x.rows);
  to.sums.resize(static_cast<std::size_t>(x.rows));
  context.parallel_for(static_cast<std::size_t>(x.rows), 32, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      const auto* const from = x.values.data() + r * static_cast<std::size_t>(x.stride) + first;
      auto* const row = to.values.data() + r * static_cast<std::size_t>(to.stride);
      std::copy(from, from + n, row);
      std::fill(row + n, row + to.stride, std::int8_t{0});
      to.sums[r] = std::accumulate(from, from + n, std::int32_t{0});
    }
  });
}

}  // namespace

std::vector<ExtendedLinear::Part> ExtendedLinear::make_parts(const ExecutionContext& context,
                                                             const LinearWeights& w) {
  std::vector<Part> parts;
  if (w.cols_per_scale == 0) {
    parts.push_back({w.trit_rows != nullptr
                         ? quant::BitLinear(context, w.out, w.in, w.trit_rows, w.scales, w.rows_per_scale)
                         : quant::BitLinear(context, w.out, w.in, w.trits, w.scales, w.rows_per_scale),
                     0});
    return parts;
  }
  std::vector<std::int8_t> scratch;
  const std::int8_t* const trits = w.trits_of(0, w.out, scratch);  // once for all groups
  const std::int64_t groups = w.in / w.cols_per_scale;
  std::vector<float> scales(static_cast<std::size_t>(w.out));
  for (std::int64_t g = 0; g < groups; ++g) {
    for (std::int64_t r = 0; r < w.out; ++r)
      scales[static_cast<std::size_t>(r)] = w.scales[static_cast<std::size_t>(r * groups + g)];
    const RowSource<std::int8_t> columns = [&](std::int64_t begin, std::int64_t end, std::int8_t* to) {
      for (std::int64_t r = begin; r < end; ++r, to += w.cols_per_scale)
        std::copy_n(trits + r * w.in + g * w.cols_per_scale, w.cols_per_scale, to);
    };
    parts.push_back(
        {quant::BitLinear(context, w.out, w.cols_per_scale, columns, scales, 1), g * w.cols_per_scale});
  }
  return parts;
}

ExtendedLinear::ExtendedLinear(const ExecutionContext& context, const LinearWeights& weights)
    : ExtendedLinear(
          [&] {
            std::vector<Part> parts = make_parts(context, weights);
            if (weights.second != nullptr)
              for (Part& p : make_parts(context, *weights.second)) parts.push_back(std::move(p));
            return parts;
          }(),
          weights.out, weights.in) {}

ExtendedLinear::ExtendedLinear(std::vector<Part> parts, std::int64_t out, std::int64_t in)
    : PreparedWeights(out, in, true,
                      std::accumulate(parts.begin(), parts.end(), std::size_t{0},
                                      [](std::size_t n, const Part& p) { return n + p.linear.bytes(); })),
      parts_(std::move(parts)) {}

void ExtendedLinear::forward(const ExecutionContext& context, const F32Kernels& kernels,
                             const quant::QuantizedRows& x, ExtendedScratch& scratch,
                             std::span<float> y) const {
  scratch.sum.resize(std::max(scratch.sum.size(), y.size()));
  const std::span<float> more(scratch.sum.data(), y.size());
  for (const Part& p : parts_) {
    const bool first = &p == parts_.data();
    const quant::QuantizedRows* rows = &x;
    if (p.linear.in() != in()) {
      take_columns(context, x, p.first, p.linear.in(), scratch.rows);
      rows = &scratch.rows;
    }
    p.linear.forward(context, *rows, first ? y : more);
    if (first) continue;
    context.parallel_for(y.size(), 1 << 14, [&](std::size_t begin, std::size_t end) {
      kernels.add(more.data() + begin, y.data() + begin, end - begin);
    });
  }
}

}  // namespace bitnet::inference::cpu
