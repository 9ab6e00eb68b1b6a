#pragma once
// What the tests of bitnet-quant share: random matrices and the naive product.
#include <cstdint>
#include <vector>

#include "bitnet/core/rng.hpp"
#include "bitnet/quant/bit_linear.hpp"

namespace bitnet::quant::test {

/// Allocations of this executable so far (allocation_count.cpp: only in quant.kernels, and not under
/// sanitizers).
long allocations();

inline std::vector<float> random_floats(std::int64_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> v(static_cast<std::size_t>(n));
  for (float& x : v) x = static_cast<float>(2 * rng.uniform() - 1);
  return v;
}

/// Trits with every value about equally often; one scale per `rows_per_scale` rows (0: one for all).
inline TernaryWeights random_weights(std::int64_t out, std::int64_t in, std::uint64_t seed,
                                     std::int64_t rows_per_scale = 0) {
  Rng rng(seed);
  TernaryWeights w{.out = out, .in = in, .trits = {}, .scales = {}, .rows_per_scale = rows_per_scale};
  if (rows_per_scale == 0) w.rows_per_scale = out;
  w.trits.resize(static_cast<std::size_t>(out * in));
  for (auto& t : w.trits) t = static_cast<std::int8_t>(rng.next() % 3) - 1;
  for (std::int64_t i = 0; i < out; i += w.rows_per_scale)
    w.scales.push_back(0.25f + 0.5f * static_cast<float>(rng.uniform()));
  return w;
}

/// Rows of any int8, extremes included, laid out as quantize_rows() does.
inline QuantizedRows random_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  Rng rng(seed);
  QuantizedRows x{.rows = rows,
                  .cols = cols,
                  .stride = quantized_stride(cols),
                  .values = {},
                  .inv_scales = {},
                  .sums = {}};
  x.values.assign(static_cast<std::size_t>(rows * x.stride), 0);
  for (std::int64_t r = 0; r < rows; ++r) {
    std::int32_t sum = 0;
    for (std::int64_t c = 0; c < cols; ++c) {
      const auto v = static_cast<std::int8_t>(static_cast<int>(rng.next() % 256) - 128);
      x.values[static_cast<std::size_t>(r * x.stride + c)] = v;
      sum += v;
    }
    x.sums.push_back(sum);
    x.inv_scales.push_back(0.01f + static_cast<float>(rng.uniform()));
  }
  return x;
}

/// acc[rows, out], one term at a time.
inline std::vector<std::int32_t> naive_product(const TernaryWeights& w, const QuantizedRows& x) {
  std::vector<std::int32_t> acc;
  for (std::int64_t r = 0; r < x.rows; ++r)
    for (std::int64_t o = 0; o < w.out; ++o) {
      const std::int8_t* const row = x.values.data() + r * x.stride;
      const std::int8_t* const trits = w.trits.data() + o * w.in;
      std::int32_t sum = 0;
      for (std::int64_t k = 0; k < w.in; ++k) sum += row[k] * trits[k];
      acc.push_back(sum);
    }
  return acc;
}

}  // namespace bitnet::quant::test
