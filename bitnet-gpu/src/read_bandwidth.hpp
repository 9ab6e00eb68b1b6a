#pragma once
// How fast a device reads its memory. The program is kernels/read_bandwidth.cl; the CPU's figure is
// bitnet-core's BandwidthProbe.
#include <memory>

#include "device_list.hpp"
#include "device_memory_pool.hpp"
#include "device_traits.hpp"
#include "program_cache.hpp"

namespace bitnet::gpu {

/// GB/s (10^9 bytes), the median of a few samples of some 20 ms, the launches among them: of the reading
/// program or of copying, whichever moves more, since a program may fall short of a driver's own. Takes a
/// buffer of bandwidth_probe_bytes() of `memory`, or the largest that the device allows. `queue`: in order,
/// of the context of `memory` and `programs`. Throws Error(kOutOfMemory | kDevice).
double read_bandwidth(const ClDevice& device, const DeviceTraits& traits, cl_command_queue queue,
                      const std::shared_ptr<DeviceMemoryPool>& memory, ProgramCache& programs);

/// GB/s of copying one half of such a buffer to the other one: what is read and what is written, both.
/// Otherwise as read_bandwidth().
double copy_bandwidth(const ClDevice& device, cl_command_queue queue,
                      const std::shared_ptr<DeviceMemoryPool>& memory);

}  // namespace bitnet::gpu
