// See quirks.hpp.
#include "quirks.hpp"

#include <string_view>

namespace bitnet::gpu {

std::optional<ProgramStore::Binary> binary_of(cl_program program) {
  std::size_t length = 0;
  if (clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof length, &length, nullptr) != CL_SUCCESS ||
      length == 0)
    return std::nullopt;
  ProgramStore::Binary binary(length);
  unsigned char* bytes = binary.data();
  if (clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof bytes, &bytes, nullptr) != CL_SUCCESS)
    return std::nullopt;
  return binary;
}

ClKernel kernel_to_record(cl_kernel kernel, const char* function) {
  cl_program program = nullptr;
  check_op(clGetKernelInfo(kernel, CL_KERNEL_PROGRAM, sizeof program, &program, nullptr), "clGetKernelInfo");
  cl_int status = CL_SUCCESS;
  ClKernel made(clCreateKernel(program, function, &status));
  check_op(status, "clCreateKernel");
  return made;
}

// CL_DEVICE_VERSION of "OpenCL 3.0 …" has OpenCL C 3.0.
const char* standard_with_dot_products(cl_device_id device) {
  char version[256] = {};
  check(clGetDeviceInfo(device, CL_DEVICE_VERSION, sizeof version - 1, version, nullptr), "clGetDeviceInfo");
  const std::string_view text(version);
  constexpr std::string_view kBefore = "OpenCL ";
  if (!text.starts_with(kBefore) || text.size() == kBefore.size()) return "CL1.2";
  const char major = text[kBefore.size()];
  return major >= '3' && major <= '9' ? "CL3.0" : major == '2' ? "CL2.0" : "CL1.2";
}

}  // namespace bitnet::gpu
