#pragma once
// What a device did, for --verbose. The figures are Backend::statistics().
#include <string>

#include "bitnet/core/device/backend_types.hpp"

namespace bitnet::cli {

/// Lines of launches, waits, copies with their bandwidth, reused buffers and compiled programs, and with
/// times
/// (--profile) one for each kernel; empty for a device that did nothing, as the CPU.
std::string device_lines(const DeviceStatistics& s);

}  // namespace bitnet::cli
