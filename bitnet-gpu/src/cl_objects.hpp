#pragma once
// Owning handles for OpenCL objects and the checks around every call. Nothing here knows what is computed.
#include <CL/cl.h>

#include <string>
#include <string_view>
#include <utility>

#include "bitnet/core/error.hpp"

namespace bitnet::gpu {

/// A reference to an OpenCL object, released with it. Move-only.
template <class T, cl_int (*Release)(T)>
class ClHandle {
 public:
  ClHandle() = default;
  explicit ClHandle(T handle) noexcept : handle_(handle) {}
  ClHandle(ClHandle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  ClHandle& operator=(ClHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~ClHandle() {
    if (handle_ != nullptr) Release(handle_);
  }
  T get() const noexcept { return handle_; }
  /// Gives the reference up without releasing it.
  T release() noexcept { return std::exchange(handle_, nullptr); }
  explicit operator bool() const noexcept { return handle_ != nullptr; }

 private:
  T handle_ = nullptr;
};

using ClContext = ClHandle<cl_context, &clReleaseContext>;
using ClQueue = ClHandle<cl_command_queue, &clReleaseCommandQueue>;
using ClMem = ClHandle<cl_mem, &clReleaseMemObject>;
using ClProgram = ClHandle<cl_program, &clReleaseProgram>;
using ClKernel = ClHandle<cl_kernel, &clReleaseKernel>;
using ClEvent = ClHandle<cl_event, &clReleaseEvent>;

/// "CL_OUT_OF_RESOURCES", or "OpenCL error -9999" for a code that the standard does not name.
std::string error_name(cl_int status);

/// CL_COMPLETE (0), more while it is not done, or what it failed with.
cl_int state_of(cl_event event) noexcept;

/// Of a call that takes memory: whether there was none for it.
bool means_memory(cl_int status);

/// Throws on a status that is not CL_SUCCESS: Error(kOutOfMemory) for the codes that mean memory, else
/// Error(kDevice), with the call and the code's name.
void check(cl_int status, std::string_view call, SourceLocation where = SourceLocation::current());

/// As check(), but always Error(kDevice): an op may throw nothing else.
void check_op(cl_int status, std::string_view call, SourceLocation where = SourceLocation::current());

/// What body() gives, for the ops of a backend: whatever the driver lacks, they throw Error(kDevice) alone.
template <class Body>
decltype(auto) in_op(Body&& body) {
  try {
    return body();
  } catch (const Error& e) {
    if (e.code() == ErrorCode::kDevice) throw;
    throw Error(ErrorCode::kDevice, e.what(), e.where());
  }
}

}  // namespace bitnet::gpu
