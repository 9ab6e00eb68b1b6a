#pragma once
// bitnet::Backend over one OpenCL device. register.cpp makes it known; the arithmetic is in kernels/*.cl.
#include <memory>
#include <string>

#include "bitnet/core/device/backend.hpp"
#include "device_list.hpp"

namespace bitnet::gpu {

/// Opens the device and builds its programs. Weights are packed in memory of `staging` on their way. Throws
/// Error(kDevice | kOutOfMemory), with the device named.
std::unique_ptr<Backend> make_opencl_backend(const ClDevice& device, const std::string& build_options,
                                             std::shared_ptr<HybridMemoryPool> staging);

}  // namespace bitnet::gpu
