#pragma once
// How fast this machine's threads read memory: the limit of everything that streams weights. Other devices
// are asked through Backend::measure_bandwidth(). The integer and float peaks are bitnet-quant's peak.hpp.
#include <cstddef>
#include <memory>
#include <string>

#include "bitnet/core/execution.hpp"

namespace bitnet {

/// A buffer, and loops that read all of it with all threads of a context: one linear stream with and without
/// prefetch, two and four streams, with the widest loads of the context's instruction set. Which of them is
/// the fastest differs between machines, and a single plain loop can stay at half of what memory gives.
/// Rates drift: take a sample before or after each thing that is compared with them. Not thread-safe.
class BandwidthProbe {
 public:
  /// Takes `bytes` (rounded up to a few KB) of memory in huge pages where the system has them, written once.
  /// Throws Error(kInvalidArgument) for 0, Error(kOutOfMemory).
  BandwidthProbe(std::shared_ptr<const ExecutionContext> context, std::size_t bytes);
  ~BandwidthProbe();
  BandwidthProbe(const BandwidthProbe&) = delete;
  BandwidthProbe& operator=(const BandwidthProbe&) = delete;

  /// Reads the buffer once with each loop; one that the caches hold as often as fills some milliseconds.
  void sample();
  /// Of the loop whose median over the samples is the largest, that median in GB/s (10^9 bytes); 0 before the
  /// first sample().
  double gigabytes_per_second() const;
  /// That loop, e.g. "linear, prefetch 1024"; empty before the first sample().
  std::string best_loop() const;
  std::size_t bytes() const noexcept;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// How much a probe has to read for the rate of memory and not of the caches before it, `cache_bytes` in all:
/// eight times that within 128 MiB … 1 GiB, never less than twice that, at most half of `available_bytes`
/// (then it may be a cache's rate after all), at least 1 MiB.
std::size_t bandwidth_probe_bytes(std::size_t cache_bytes, std::size_t available_bytes) noexcept;

}  // namespace bitnet
