// Planes and groups of columns cut into BitLinears, and their sum.
#include "cpu/extended_linear.hpp"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

namespace bitnet::inference::cpu {

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
  // Where groups are so small that the denser code takes as many lines, the one that is decoded faster.
  const bool as_small = (w.cols_per_scale + 15) / 16 == (w.cols_per_scale + 19) / 20;
  const std::optional<quant::TileCode> code =
      as_small ? std::optional(quant::TileCode::kTwoBit) : std::nullopt;
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
        {quant::BitLinear(context, w.out, w.cols_per_scale, columns, scales, 1, code), g * w.cols_per_scale});
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
          weights) {}

ExtendedLinear::ExtendedLinear(std::vector<Part> parts, const LinearWeights& weights)
    : PreparedWeights(weights.out, weights.in, true,
                      std::accumulate(parts.begin(), parts.end(), std::size_t{0},
                                      [](std::size_t n, const Part& p) { return n + p.linear.bytes(); })),
      parts_(std::move(parts)),
      activations_(weights.activations) {
  for (Part& p : parts_) {
    const std::int64_t n = p.linear.in();
    if (n == in()) continue;
    const auto at = std::find_if(columns_.begin(), columns_.end(),
                                 [&](const Columns& c) { return c.first == p.first && c.n == n; });
    p.columns = static_cast<std::size_t>(at - columns_.begin());
    if (at == columns_.end()) columns_.push_back({p.first, n});
  }
}

/// Each group's columns of the rows as rows of their own.
void ExtendedLinear::take_columns(const ExecutionContext& context, const quant::QuantizedRows& x,
                                  ExtendedScratch& scratch) const {
  const auto rows = static_cast<std::size_t>(x.rows);
  std::size_t bytes = 0;
  for (const Columns& c : columns_) bytes += rows * static_cast<std::size_t>(quant::quantized_stride(c.n));
  scratch.values.resize(std::max(scratch.values.size(), bytes));
  scratch.sums.resize(std::max(scratch.sums.size(), rows * columns_.size()));
  const std::size_t grain = std::max<std::size_t>(1, (std::size_t{1} << 14) / static_cast<std::size_t>(in()));
  context.parallel_for(rows, grain, [&](std::size_t begin, std::size_t end) {
    std::int8_t* group = scratch.values.data();
    for (std::size_t g = 0; g < columns_.size(); ++g) {
      const auto [first, n] = columns_[g];
      const auto stride = static_cast<std::size_t>(quant::quantized_stride(n));
      for (std::size_t r = begin; r < end; ++r) {
        const auto* const from = x.values.data() + r * static_cast<std::size_t>(x.stride) + first;
        std::int8_t* const to = group + r * stride;
        std::copy(from, from + n, to);
        std::fill(to + n, to + stride, std::int8_t{0});
        scratch.sums[g * rows + r] = std::accumulate(from, from + n, std::int32_t{0});
      }
      group += rows * stride;
    }
  });
}

void ExtendedLinear::forward(const ExecutionContext& context, const quant::QuantizedRows& x,
                             ExtendedScratch& scratch, std::span<float> y) const {
  scratch.sum.resize(std::max(scratch.sum.size(), y.size()));
  if (!columns_.empty()) take_columns(context, x, scratch);
  const quant::QuantizedView whole{x.rows,       x.cols, x.stride, x.values.data(), x.inv_scales.data(),
                                   x.sums.data()};
  scratch.summands.clear();
  for (const Part& p : parts_) scratch.summands.push_back({&p.linear, whole});
  const std::int8_t* group = scratch.values.data();
  for (std::size_t g = 0; g < columns_.size(); ++g) {
    const std::int64_t stride = quant::quantized_stride(columns_[g].n);
    for (std::size_t i = 0; i < parts_.size(); ++i)
      if (parts_[i].linear.in() != in() && parts_[i].columns == g)
        scratch.summands[i].x = {
            x.rows, columns_[g].n,       stride,
            group,  x.inv_scales.data(), scratch.sums.data() + g * static_cast<std::size_t>(x.rows)};
    group += x.rows * stride;
  }
  quant::BitLinear::forward_sum(context, scratch.summands, scratch.sum, y);
}

}  // namespace bitnet::inference::cpu
