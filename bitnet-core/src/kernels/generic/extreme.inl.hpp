#pragma once
// The largest of many: comparisons in four registers, then across their lanes. Their order does not show in
// the results, which is why these, other than sums, need not keep to 16 lanes. Included by rows.inl.hpp and
// tensor_rows.inl.hpp.
#include "kernels/generic/block.inl.hpp"

namespace bitnet::kernels {
namespace {

/// Registers that comparisons alternate between: enough to hide their latency.
constexpr int kChains = 4;

/// Calls use(chain, first index, register) for every register of x; the last one is filled up with `pad`.
template <class Use>
BITNET_INLINE void for_each_register(const float* x, std::size_t n, float pad, Use use) {
  constexpr std::size_t kLanes = F32::kLanes, kStep = kChains * kLanes;
  std::size_t i = 0;
  for (; i + kStep <= n; i += kStep) {
    BITNET_UNROLL
    for (int c = 0; c < kChains; ++c) {
      const std::size_t at = i + static_cast<std::size_t>(c) * kLanes;
      use(c, at, F32::load(x + at));
    }
  }
  for (; i + kLanes <= n; i += kLanes) use(0, i, F32::load(x + i));
  if (i == n) return;
  float copy[kLanes];
  for (std::size_t j = 0; j < kLanes; ++j) copy[j] = i + j < n ? x[i + j] : pad;
  use(0, i, F32::load(copy));
}

/// The best lane of all chains. better(v, a) on registers, Q's (four lanes) and single values.
template <class Q, class Reg, class Better>
BITNET_INLINE auto best_lane(const Reg (&chain)[kChains], Better better) {
  Reg all = chain[0];
  BITNET_UNROLL
  for (int c = 1; c < kChains; ++c) all = better(chain[c], all) ? chain[c] : all;
  Q quads[F32::kLanes / 4];
  __builtin_memcpy(quads, &all, sizeof all);
  Q best = quads[0];
  BITNET_UNROLL
  for (int i = 1; i < F32::kLanes / 4; ++i) best = better(quads[i], best) ? quads[i] : best;
  auto one = best[0];
  BITNET_UNROLL
  for (int i = 1; i < 4; ++i) one = better(best[i], one) ? best[i] : one;
  return one;
}

struct Larger {
  template <class T>
  BITNET_INLINE auto operator()(T v, T a) const {
    return v > a;
  }
};
struct Smaller {
  template <class T>
  BITNET_INLINE auto operator()(T v, T a) const {
    return v < a;
  }
};

/// The best so far in every lane. A NaN, which wins no comparison, is never taken.
template <class Reg, class Better>
struct Best {
  Reg chain[kChains];
  BITNET_INLINE explicit Best(Reg start) {
    BITNET_UNROLL
    for (int c = 0; c < kChains; ++c) chain[c] = start;
  }
  BITNET_INLINE void take(int c, Reg v) { chain[c] = Better()(v, chain[c]) ? v : chain[c]; }
};

/// max |x| as bits: magnitudes are ordered as their bits are, those of NaNs last.
struct Magnitudes : Best<F32::Int, Larger> {
  BITNET_INLINE Magnitudes() : Best(F32::Int{}) {}
  BITNET_INLINE void take_float(int c, F32::Reg v) { take(c, reinterpret_cast<F32::Int>(absolute(v))); }
  BITNET_INLINE std::int32_t most() const { return best_lane<simd::IntQuad>(chain, Larger()); }
};

}  // namespace
}  // namespace bitnet::kernels
