#pragma once
// An OpenCL queue that fails when a test tells it to: a clEnqueueNDRangeKernel of the executable's own stands
// before the driver's. Include it in one source of an executable that is linked with OpenCL and dl.
#include <CL/cl.h>
#include <dlfcn.h>

namespace bitnet::testing {

/// Launches are numbered from 1; those from `first` to `last` fail with CL_OUT_OF_RESOURCES.
struct FailingQueue {
  static constexpr int kNever = 1 << 30;
  int launches = 0, first = kNever, last = kNever;
  void fail_from(int launches_from_now, int n = kNever) {
    first = launches + launches_from_now;
    last = n == kNever ? kNever : first + n - 1;
  }
  void heal() { first = last = kNever; }
};
inline FailingQueue failing_queue;

}  // namespace bitnet::testing

extern "C" __attribute__((visibility("default"))) cl_int CL_API_CALL clEnqueueNDRangeKernel(
    cl_command_queue queue, cl_kernel kernel, cl_uint dimensions, const size_t* offset, const size_t* global,
    const size_t* local, cl_uint n_events, const cl_event* events, cl_event* event) {
  auto& state = bitnet::testing::failing_queue;
  const int n = ++state.launches;
  if (n >= state.first && n <= state.last) return CL_OUT_OF_RESOURCES;
  static const auto driver =
      reinterpret_cast<decltype(&clEnqueueNDRangeKernel)>(dlsym(RTLD_NEXT, "clEnqueueNDRangeKernel"));
  return driver(queue, kernel, dimensions, offset, global, local, n_events, events, event);
}
