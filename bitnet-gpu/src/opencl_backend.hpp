#pragma once
// bitnet::Backend over one OpenCL device. register.cpp makes it known; the arithmetic is in kernels/*.cl.
#include <memory>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/execution.hpp"
#include "bitnet/gpu/register.hpp"
#include "device_list.hpp"

namespace bitnet::gpu {

/// Opens the device and builds its programs. `context`: of the host, whose threads pack the weights; null: a
/// default one. Throws Error(kDevice | kOutOfMemory), with the device named.
std::unique_ptr<Backend> make_opencl_backend(const ClDevice& device, const Options& options,
                                             std::shared_ptr<const ExecutionContext> context);

}  // namespace bitnet::gpu
