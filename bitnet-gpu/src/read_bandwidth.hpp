#pragma once
// How fast a device reads its memory. The program is kernels/read_bandwidth.cl; the CPU's figure is
// bitnet-core's BandwidthProbe.
#include <memory>

#include "device_list.hpp"
#include "device_memory_pool.hpp"
#include "program_cache.hpp"

namespace bitnet::gpu {

/// GB/s (10^9 bytes), the median of a few samples of some 20 ms, the launches among them. Takes a buffer of
/// bandwidth_probe_bytes() of `memory`, or the largest that the device allows. `queue`: in order, of the
/// context of `memory` and `programs`. Throws Error(kOutOfMemory | kDevice).
double read_bandwidth(const ClDevice& device, cl_command_queue queue,
                      const std::shared_ptr<DeviceMemoryPool>& memory, ProgramCache& programs);

}  // namespace bitnet::gpu
