// Planes and groups of columns cut into BitLinears, and their sum.
#include "bitnet/quant/extended_linear.hpp"

#include <algorithm>
#include <numeric>
#include <optional>
#include <utility>

namespace bitnet::quant {

void ExtendedLinear::add_parts(const ExecutionContext& context, const LinearWeights& w,
                               std::vector<Part>& parts) {
  if (w.cols_per_scale == 0) {
    parts.push_back({w.trit_rows != nullptr
                         ? BitLinear(context, w.out, w.in, w.trit_rows, w.scales, w.rows_per_scale)
                         : BitLinear(context, w.out, w.in, w.trits, w.scales, w.rows_per_scale),
                     0});
    return;
  }
  // Where groups are so small that the denser code takes as many lines, the one that is decoded faster.
  const bool as_small = (w.cols_per_scale + 15) / 16 == (w.cols_per_scale + 19) / 20;
  const std::optional<TileCode> code = as_small ? std::optional(TileCode::kTwoBit) : std::nullopt;
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
        {BitLinear(context, w.out, w.cols_per_scale, columns, scales, 1, code), g * w.cols_per_scale});
  }
}

ExtendedLinear::ExtendedLinear(const ExecutionContext& context, const LinearWeights& weights)
    : out_(weights.out), in_(weights.in) {
  add_parts(context, weights, parts_);
  if (weights.second != nullptr) add_parts(context, *weights.second, parts_);
  for (Part& p : parts_) {
    const std::int64_t n = p.linear.in();
    if (n == in_) continue;
    const auto at = std::find_if(columns_.begin(), columns_.end(),
                                 [&](const Columns& c) { return c.first == p.first && c.n == n; });
    p.columns = static_cast<std::size_t>(at - columns_.begin());
    if (at == columns_.end()) columns_.push_back({p.first, n});
  }
}

std::size_t ExtendedLinear::bytes() const noexcept {
  return std::accumulate(parts_.begin(), parts_.end(), std::size_t{0},
                         [](std::size_t n, const Part& p) { return n + p.linear.bytes(); });
}

/// Each group's columns of the rows as rows of their own.
void ExtendedLinear::take_columns(const ExecutionContext& context, const QuantizedRows& x,
                                  ExtendedScratch& scratch) const {
  const auto rows = static_cast<std::size_t>(x.rows);
  std::size_t bytes = 0;
  for (const Columns& c : columns_) bytes += rows * static_cast<std::size_t>(quantized_stride(c.n));
  scratch.values.resize(std::max(scratch.values.size(), bytes));
  scratch.sums.resize(std::max(scratch.sums.size(), rows * columns_.size()));
  const std::size_t grain = std::max<std::size_t>(1, (std::size_t{1} << 14) / static_cast<std::size_t>(in_));
  context.parallel_for(rows, grain, [&](std::size_t begin, std::size_t end) {
    std::int8_t* group = scratch.values.data();
    for (std::size_t g = 0; g < columns_.size(); ++g) {
      const auto [first, n] = columns_[g];
      const auto stride = static_cast<std::size_t>(quantized_stride(n));
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

void ExtendedLinear::forward(const ExecutionContext& context, const QuantizedRows& x,
                             ExtendedScratch& scratch, std::span<float> y) const {
  scratch.sum.resize(std::max(scratch.sum.size(), y.size()));
  if (!columns_.empty()) take_columns(context, x, scratch);
  const QuantizedView whole{x.rows, x.cols, x.stride, x.values.data(), x.inv_scales.data(), x.sums.data()};
  scratch.summands.clear();
  for (const Part& p : parts_) scratch.summands.push_back({&p.linear, whole});
  const std::int8_t* group = scratch.values.data();
  for (std::size_t g = 0; g < columns_.size(); ++g) {
    const std::int64_t stride = quantized_stride(columns_[g].n);
    for (std::size_t i = 0; i < parts_.size(); ++i)
      if (parts_[i].linear.in() != in_ && parts_[i].columns == g)
        scratch.summands[i].x = {
            x.rows, columns_[g].n,       stride,
            group,  x.inv_scales.data(), scratch.sums.data() + g * static_cast<std::size_t>(x.rows)};
    group += x.rows * stride;
  }
  BitLinear::forward_sum(context, scratch.summands, scratch.sum, y);
}

void ExtendedLinear::dequantise_rows(std::int64_t begin, std::int64_t end, std::span<float> to) const {
  const auto in = static_cast<std::size_t>(in_);
  std::vector<std::int8_t> trits(static_cast<std::size_t>((end - begin) * in_));
  std::fill(to.begin(), to.end(), 0.0f);
  for (const Part& p : parts_) {
    const auto n = static_cast<std::size_t>(p.linear.in());
    const std::span<std::int8_t> some(trits.data(), static_cast<std::size_t>(end - begin) * n);
    p.linear.unpack_rows(begin, end, some);
    for (std::int64_t r = begin; r < end; ++r) {
      const auto row = static_cast<std::size_t>(r - begin);
      const float scale = p.linear.row_scales()[static_cast<std::size_t>(r)];
      float* const at = to.data() + row * in + static_cast<std::size_t>(p.first);
      for (std::size_t i = 0; i < n; ++i) at[i] += static_cast<float>(some[row * n + i]) * scale;
    }
  }
}

LinearWeights view_of(const TernaryWeights& weights, ActivationForm activations) {
  LinearWeights w;
  w.out = weights.out;
  w.in = weights.in;
  w.trits = weights.trits;
  w.scales = weights.scales;
  w.rows_per_scale = weights.rows_per_scale;
  w.cols_per_scale = weights.cols_per_scale;
  w.activations = activations;
  return w;
}

LinearWeights view_of(const TwoPlanes& planes, ActivationForm activations) {
  LinearWeights w = view_of(planes.first, activations);
  w.second = std::make_shared<const LinearWeights>(view_of(planes.second));
  return w;
}

}  // namespace bitnet::quant
