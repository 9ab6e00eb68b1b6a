#pragma once
// absmean (docs/numerics.md) in two passes over values that need not be in memory at once: the scale, then
// the trits. quant::absmean() is both. Private to bitnet-quant.
#include <cstddef>
#include <cstdint>
#include <span>

namespace bitnet::quant {

/// The scale of absmean: fed all weights in index order, in parts of any size.
class AbsmeanSum {
 public:
  /// Throws Error(kInvalidArgument) naming the index of a weight that is not finite.
  void add(std::span<const float> w);
  /// max(mean|W|, 1e-5)
  float scale() const noexcept;

 private:
  double sum_ = 0;
  std::size_t count_ = 0;
};

/// trit = clamp(round_half_even(w · (1/scale)), −1, 1)
void ternarise(std::span<const float> w, float scale, std::int8_t* to) noexcept;

}  // namespace bitnet::quant
