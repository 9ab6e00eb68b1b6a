#pragma once
// How fast this machine's threads compute when nothing but arithmetic is in the way: the limits of prompts
// and of large batches. The read bandwidth is bitnet-core's device/bandwidth.hpp.
#include <memory>

#include "bitnet/core/execution.hpp"

namespace bitnet::quant {

/// Peaks of the context's instruction set over all of its threads, measured from registers with as many
/// independent sums as fit. Rates drift with the clock: take a sample before or after each thing that is
/// compared with them. Not thread-safe.
class PeakProbe {
 public:
  explicit PeakProbe(std::shared_ptr<const ExecutionContext> context);
  ~PeakProbe();
  PeakProbe(const PeakProbe&) = delete;
  PeakProbe& operator=(const PeakProbe&) = delete;

  /// Runs both loops for about 10 ms each.
  void sample();
  /// Median over the samples in 10^9 operations/s, where one multiply-add is two operations; 0 before the
  /// first sample(). Products of codes ≤ 2 and int8 with the instruction set's best sequence: tiles of AMX,
  /// dot products of 4, or 16-bit sums that are widened before they can overflow.
  double int8_gops() const;
  /// Likewise in f32 multiply-adds (GFLOP/s).
  double f32_gflops() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitnet::quant
