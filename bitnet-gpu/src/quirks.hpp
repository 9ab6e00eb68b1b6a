#pragma once
// What single drivers do that the standard does not let one expect, with the reason beside each: the one
// place for that. No driver is asked for its name; whichever behaves so is met so. What a device says that it
// can do is device_traits.hpp's business. Thread-safe, as the driver's own functions are.
#include <optional>

#include "cl_objects.hpp"
#include "program_store.hpp"

namespace bitnet::gpu {

/// The binary of a program that is built for one device; none where the driver gives none or an empty one:
/// such a program is not kept, and compiled by each process.
///
/// PoCL 3.1: of two sub-devices of a context, the second one's binaries are empty.
std::optional<ProgramStore::Binary> binary_of(cl_program program);

/// The OpenCL C, as in "CL3.0", for a device that says that it has cl_khr_integer_dot_product: the latest
/// that it has and that the kernels are tested with. Throws Error(kDevice).
///
/// Clang's OpenCL, which most drivers have inside: it announces that extension to every version of the
/// language, and declares its functions from 2.0 on. Whether they are declared is asked in common.cl, too
/// (BN_DOT_DECLARED), since a driver may have no later version than 1.2.
const char* standard_with_dot_products(cl_device_id device);

/// A kernel object for one launch that is recorded, beside `kernel`, whose program and function it has.
/// Throws Error(kDevice).
///
/// PoCL 3.1: a recorded launch has the arguments that its kernel object has when the recording is enqueued,
/// not those of when it was recorded; so no other launch may have the object.
ClKernel kernel_to_record(cl_kernel kernel, const char* function);

}  // namespace bitnet::gpu
