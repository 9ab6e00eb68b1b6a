#pragma once
// A row of weights as int8 with its scale, as Int8Linear rounds (docs/numerics.md). Private to bitnet-quant.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

namespace bitnet::quant {

/// Returns the scale: of the largest |w|, 127 of it.
inline float round_int8_row(std::span<const float> w, std::span<std::int8_t> to) {
  constexpr float kSmallest = 1e-30f;
  float peak = kSmallest;
  for (const float v : w) peak = std::max(peak, std::fabs(v));
  const float a = 127.0f / peak;
  for (std::size_t i = 0; i < w.size(); ++i) to[i] = static_cast<std::int8_t>(std::nearbyint(w[i] * a));
  return peak / 127.0f;
}

}  // namespace bitnet::quant
