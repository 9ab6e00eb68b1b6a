#pragma once
// The one door to the OpenCL backend: an application calls register_backends() and then knows the devices
// only by name, through bitnet::BackendRegistry. No OpenCL type is visible here. Filling a registry is not
// thread-safe (BackendRegistry), nor are the backends: one thread at a time issues ops.
#include <string>

#include "bitnet/core/device/registry.hpp"

namespace bitnet::gpu {

/// How the device programs are built.
struct Options {
  /// Passed to the device's compiler, e.g. "-DBN_OUT_WG=128": every work-group size of
  /// bitnet-gpu/kernels/*.cl is a macro with a default. What the compiler makes of it is the caller's affair;
  /// a program that does not build is an Error(kDevice) with the build log when the backend is created.
  std::string build_options;
};

/// Adds one entry "opencl:<platform>:<device>" for every usable device of every OpenCL platform, in the order
/// of the ICD loader. A device that runs on the host's own cores (CL_DEVICE_TYPE_CPU, such as PoCL) is
/// `emulated`. No driver, a platform that fails to answer, a device without a compiler: each becomes a note
/// in the registry, never an exception. The devices are opened only when the registry creates a backend: that
/// throws Error(kDevice) when the driver refuses and Error(kOutOfMemory) when it has no memory.
///
/// The backend runs kLinear for ternary weights; integers, scales and results are bit-equal to the CPU's. Its
/// prepare() throws Error(kUnsupported) on dense weights, and prepare_embedding() always does: supports()
/// answers for the op, these answer for the weights, and the caller runs what was refused elsewhere.
void register_backends(BackendRegistry& registry, const Options& options = {});

}  // namespace bitnet::gpu
