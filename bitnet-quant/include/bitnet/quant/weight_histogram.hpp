#pragma once
// How a matrix's weights lie around the values that are stored for them: what reports draw. What was lost in
// figures is metrics.hpp. A plain value and a pure function: thread-safe.
#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "bitnet/quant/model_io.hpp"

namespace bitnet::quant {

/// Weights w counted by w / scale, so that matrices with any scales, and any number of them, can be drawn
/// beside each other and added: trits stand for −1, 0 and 1 on this axis. Of two planes the scales and trits
/// are the first one's. What is not ternary has its root mean square for a scale, which is another unit: it
/// is counted apart and has no threshold.
struct WeightHistogram {
  static constexpr std::size_t kBins =
      96;  ///< from −kEnd to kEnd; the first and the last hold what is beyond
  static constexpr double kEnd = 4;

  static constexpr std::size_t kNotTernary = 3;

  std::array<std::array<std::int64_t, kBins>, 4>
      counts{};  ///< of what is stored as −1, 0 and 1, and of what is not ternary
  bool ternary = false;
  double largest_zero = 0;  ///< largest |w| / scale that is stored as 0, or 0
  double smallest_one = 0;  ///< smallest |w| / scale that is stored as ±1; 0: none is

  /// Where |w| / scale becomes ±1: between the two above; where they overlap (gptq, scales that were changed
  /// later) the edge of a bin with the fewest weights on the wrong side. None where there are not both.
  std::optional<double> threshold() const noexcept;
  void add(const WeightHistogram& other) noexcept;
};

/// Of w, row-major, and what is stored for it. Throws Error(kInvalidArgument) on a tensor that is no matrix
/// or has another size.
WeightHistogram histogram_of(std::span<const float> w, const LogicalTensor& stored);

}  // namespace bitnet::quant
