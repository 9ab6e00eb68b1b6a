#pragma once
// What an OpenCL device reaches at most, for reports beside what a model reaches on it.
#include <string_view>

#include "bitnet/gpu/register.hpp"

namespace bitnet::gpu {

/// Measured, medians of some runs.
struct DevicePeaks {
  double copy_gbps = 0;  ///< of a buffer into another one: 10^9 bytes read and as many written are 2
  double int8_gops =
      0;  ///< 10^9 operations/s on small integers, as the kernels do them; a multiply-add is two
  double enqueue_seconds = 0;  ///< that the host takes for one launch with four arguments
  double launch_seconds = 0;   ///< of one launch of nothing in a row of them, until the last one is done
};

/// Of the device of this name, on a queue of its own; some tenths of a second. Opens no backend and keeps
/// nothing; thread-safe. Throws Error(kNotFound) for a name that is not there, Error(kDevice | kOutOfMemory).
DevicePeaks measure_peaks(std::string_view device, const Options& options = {});

}  // namespace bitnet::gpu
