#pragma once
// bitnet::Backend over one OpenCL device. register.cpp makes it known; the arithmetic is in kernels/*.cl.
#include <memory>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/execution.hpp"
#include "bitnet/gpu/register.hpp"
#include "device_list.hpp"
#include "tuning_table.hpp"

namespace bitnet::gpu {

/// Opens the device and builds its programs. `context`: of the host, whose threads pack the weights; null: a
/// default one. `tuning`: in place of what the tables say, for measuring: then programs are built when they
/// are first used, not when weights are prepared; may be null. Throws Error(kDevice | kOutOfMemory), with the
/// device named, and for a table of Options::tuning_file what tuning_of() throws.
std::unique_ptr<Backend> make_opencl_backend(const ClDevice& device, const Options& options,
                                             std::shared_ptr<const ExecutionContext> context,
                                             const TuningRow* tuning = nullptr);

}  // namespace bitnet::gpu
