// See tune_reference.hpp.
#include "tune_reference.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "bitnet/core/f32_kernels.hpp"

namespace bitnet::gpu {
namespace {

constexpr std::size_t kLanes = 16;  // of a float sum

struct QuantizedRow {
  std::vector<std::int8_t> q;
  float inv_scale = 1;
};

/// `values` times 127 / max|value|, half to even; `least` bounds that maximum from below.
QuantizedRow quantize(std::span<const float> values, float least) {
  QuantizedRow row;
  float most = 0;
  for (const float v : values) most = std::max(most, std::fabs(v));
  const float scale = 127.0f / std::max(most, least);
  for (const float v : values)
    row.q.push_back(static_cast<std::int8_t>(std::clamp(std::nearbyint(v * scale), -128.0f, 127.0f)));
  row.inv_scale = 1.0f / scale;
  return row;
}

std::vector<QuantizedRow> quantized_rows(const TuneProblem& p) {
  std::vector<QuantizedRow> rows;
  for (std::int64_t r = 0; r < p.rows; ++r)
    rows.push_back(quantize(
        std::span(p.x).subspan(static_cast<std::size_t>(r * p.in), static_cast<std::size_t>(p.in)), 1e-5f));
  return rows;
}

std::int32_t dot(const std::int8_t* a, const std::int8_t* b, std::int64_t n) {
  std::int32_t sum = 0;
  for (std::int64_t k = 0; k < n; ++k) sum += static_cast<std::int32_t>(a[k]) * b[k];
  return sum;
}

/// Over 16 lanes, then i with i + 8, + 4, + 2, + 1.
float dot(const float* a, const float* b, std::int64_t n) {
  std::array<float, kLanes> lanes{};
  for (std::int64_t k = 0; k < n; ++k) {
    float& lane = lanes[static_cast<std::size_t>(k) % kLanes];
    lane = std::fma(a[k], b[k], lane);
  }
  for (std::size_t half = kLanes / 2; half > 0; half /= 2)
    for (std::size_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

}  // namespace

std::vector<float> reference_product(const ExecutionContext& context, const TuneProblem& p) {
  std::vector<float> y(static_cast<std::size_t>(p.rows * p.out));
  const std::vector<QuantizedRow> rows = p.halves.empty() ? quantized_rows(p) : std::vector<QuantizedRow>();
  const auto column = [&](std::int64_t o) {
    const auto at = static_cast<std::size_t>(o * p.in), n = static_cast<std::size_t>(p.in);
    const auto result = [&](std::int64_t r) -> float& { return y[static_cast<std::size_t>(r * p.out + o)]; };
    if (!p.halves.empty()) {
      std::vector<float> w(n);
      tested_f32_kernels(context.isa()).f16_to_f32(p.halves.data() + at, w.data(), n);
      for (std::int64_t r = 0; r < p.rows; ++r) result(r) = dot(w.data(), p.x.data() + r * p.in, p.in);
      return;
    }
    const QuantizedRow own =
        p.trits.empty() ? quantize(std::span(p.floats).subspan(at, n), 1e-30f) : QuantizedRow();
    const std::int8_t* const w = p.trits.empty() ? own.q.data() : p.trits.data() + at;
    float most = 0;
    for (std::size_t k = 0; p.trits.empty() && k < n; ++k) most = std::max(most, std::fabs(p.floats[at + k]));
    const float scale = p.trits.empty() ? std::max(most, 1e-30f) / 127.0f : p.scale;
    for (std::int64_t r = 0; r < p.rows; ++r) {
      const QuantizedRow& row = rows[static_cast<std::size_t>(r)];
      result(r) = static_cast<float>(dot(w, row.q.data(), p.in)) * (scale * row.inv_scale);
    }
  };
  context.parallel_for(static_cast<std::size_t>(p.out), 16, [&](std::size_t begin, std::size_t end) {
    for (std::size_t o = begin; o < end; ++o) column(static_cast<std::int64_t>(o));
  });
  return y;
}

}  // namespace bitnet::gpu
