#pragma once
// An OpenCL driver that fails when a test tells it to: functions of the executable's own stand before the
// driver's. Include it in one source of an executable that is linked with OpenCL and dl.
#include <CL/cl.h>
#include <dlfcn.h>

#include <array>
#include <cstddef>

namespace bitnet::testing {

/// Which call fails.
enum class ClCall : std::size_t {
  kLaunch,  ///< clEnqueueNDRangeKernel, at once
  kAsync,   ///< clEnqueueNDRangeKernel says that all is well; the next call that waits fails instead
  kFinish,  ///< clFinish
  kRead,    ///< clEnqueueReadBuffer
  kWrite,   ///< clEnqueueWriteBuffer
  kBuffer,  ///< clCreateBuffer
  kFill,    ///< clEnqueueFillBuffer, the first use of a buffer
};

/// Calls of each kind are numbered from 1; those from `first` to `last` fail: clCreateBuffer and
/// clEnqueueFillBuffer with CL_MEM_OBJECT_ALLOCATION_FAILURE, the others with CL_OUT_OF_RESOURCES.
struct FailingQueue {
  static constexpr int kNever = 1 << 30;
  static constexpr std::size_t kCalls = 7;
  struct Range {
    int calls = 0, first = kNever, last = kNever;
    bool holds() {
      ++calls;
      return calls >= first && calls <= last;
    }
  };
  std::array<Range, kCalls> ranges;
  bool dies = false;       // with the first failure: every call on a queue fails until one is created
  bool dead = false;       //
  bool swallowed = false;  // an asynchronous failure waits to be told
  int failures = 0, queues = 0;
  cl_int write_status = CL_OUT_OF_RESOURCES;  ///< of kWrite
  cl_mem_flags last_flags = 0;                ///< of clCreateBuffer

  Range& of(ClCall call) { return ranges[static_cast<std::size_t>(call)]; }
  void fail_from(ClCall call, int calls_from_now, int n = kNever) {
    Range& r = of(call);
    r.first = r.calls + calls_from_now;
    r.last = n == kNever ? kNever : r.first + n - 1;
  }
  /// Fails once and is dead from there on, until clCreateCommandQueue.
  void die_at(ClCall call, int calls_from_now) {
    fail_from(call, calls_from_now, 1);
    dies = true;
  }
  void heal() {
    for (Range& r : ranges) r.first = r.last = kNever;
    dies = dead = swallowed = false;
    failures = queues = 0;
    write_status = CL_OUT_OF_RESOURCES;
  }
  /// Whether this call on a queue is to fail.
  bool fails(ClCall call) {
    const bool waits = call != ClCall::kLaunch && call != ClCall::kAsync;
    bool yes = of(call).holds() || dead;
    if (waits && swallowed) {
      yes = true;
      swallowed = false;
    }
    if (!yes) return false;
    ++failures;
    dead = dead || dies;
    return true;
  }
};
inline FailingQueue failing_queue;

/// The driver's own function.
template <class Function>
Function* driver(Function*, const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace bitnet::testing

#define BITNET_CL_STANDS_BEFORE extern "C" __attribute__((visibility("default")))

BITNET_CL_STANDS_BEFORE cl_int CL_API_CALL clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel,
                                                                  cl_uint dimensions, const size_t* offset,
                                                                  const size_t* global, const size_t* local,
                                                                  cl_uint n_events, const cl_event* events,
                                                                  cl_event* event) {
  using bitnet::testing::ClCall;
  auto& state = bitnet::testing::failing_queue;
  if (state.fails(ClCall::kLaunch)) return CL_OUT_OF_RESOURCES;
  if (state.fails(ClCall::kAsync)) {
    state.swallowed = true;
    return CL_SUCCESS;
  }
  static const auto real = bitnet::testing::driver(&clEnqueueNDRangeKernel, "clEnqueueNDRangeKernel");
  return real(queue, kernel, dimensions, offset, global, local, n_events, events, event);
}

BITNET_CL_STANDS_BEFORE cl_int CL_API_CALL clFinish(cl_command_queue queue) {
  if (bitnet::testing::failing_queue.fails(bitnet::testing::ClCall::kFinish)) return CL_OUT_OF_RESOURCES;
  static const auto real = bitnet::testing::driver(&clFinish, "clFinish");
  return real(queue);
}

BITNET_CL_STANDS_BEFORE cl_int CL_API_CALL clEnqueueReadBuffer(cl_command_queue queue, cl_mem buffer,
                                                               cl_bool blocking, size_t offset, size_t size,
                                                               void* to, cl_uint n_events,
                                                               const cl_event* events, cl_event* event) {
  if (bitnet::testing::failing_queue.fails(bitnet::testing::ClCall::kRead)) return CL_OUT_OF_RESOURCES;
  static const auto real = bitnet::testing::driver(&clEnqueueReadBuffer, "clEnqueueReadBuffer");
  return real(queue, buffer, blocking, offset, size, to, n_events, events, event);
}

BITNET_CL_STANDS_BEFORE cl_int CL_API_CALL clEnqueueWriteBuffer(cl_command_queue queue, cl_mem buffer,
                                                                cl_bool blocking, size_t offset, size_t size,
                                                                const void* from, cl_uint n_events,
                                                                const cl_event* events, cl_event* event) {
  auto& state = bitnet::testing::failing_queue;
  if (state.fails(bitnet::testing::ClCall::kWrite)) return state.write_status;
  static const auto real = bitnet::testing::driver(&clEnqueueWriteBuffer, "clEnqueueWriteBuffer");
  return real(queue, buffer, blocking, offset, size, from, n_events, events, event);
}

BITNET_CL_STANDS_BEFORE cl_int CL_API_CALL clEnqueueFillBuffer(cl_command_queue queue, cl_mem buffer,
                                                               const void* pattern, size_t pattern_size,
                                                               size_t offset, size_t size, cl_uint n_events,
                                                               const cl_event* events, cl_event* event) {
  auto& state = bitnet::testing::failing_queue;
  if (state.of(bitnet::testing::ClCall::kFill).holds()) {
    ++state.failures;
    return CL_MEM_OBJECT_ALLOCATION_FAILURE;
  }
  static const auto real = bitnet::testing::driver(&clEnqueueFillBuffer, "clEnqueueFillBuffer");
  return real(queue, buffer, pattern, pattern_size, offset, size, n_events, events, event);
}

BITNET_CL_STANDS_BEFORE cl_mem CL_API_CALL clCreateBuffer(cl_context context, cl_mem_flags flags, size_t size,
                                                          void* host, cl_int* status) {
  auto& state = bitnet::testing::failing_queue;
  state.last_flags = flags;
  if (state.of(bitnet::testing::ClCall::kBuffer).holds()) {
    ++state.failures;
    if (status != nullptr) *status = CL_MEM_OBJECT_ALLOCATION_FAILURE;
    return nullptr;
  }
  static const auto real = bitnet::testing::driver(&clCreateBuffer, "clCreateBuffer");
  return real(context, flags, size, host, status);
}

BITNET_CL_STANDS_BEFORE cl_command_queue CL_API_CALL clCreateCommandQueue(
    cl_context context, cl_device_id device, cl_command_queue_properties properties, cl_int* status) {
  auto& state = bitnet::testing::failing_queue;
  ++state.queues;
  state.dead = state.swallowed = false;
  static const auto real = bitnet::testing::driver(&clCreateCommandQueue, "clCreateCommandQueue");
  return real(context, device, properties, status);
}
