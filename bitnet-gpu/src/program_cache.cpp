// Compilation of embedded .cl sources.
#include "program_cache.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace bitnet::gpu {
namespace {

std::string build_log(cl_program program, cl_device_id device) {
  std::size_t bytes = 0;
  if (clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, 0, nullptr, &bytes) != CL_SUCCESS)
    return {};
  std::string log(bytes, '\0');
  if (clGetProgramBuildInfo(program, device, CL_PROGRAM_BUILD_LOG, bytes, log.data(), nullptr) != CL_SUCCESS)
    return {};
  log.resize(std::min(log.find('\0'), log.size()));
  return log;
}

}  // namespace

cl_program ProgramCache::program(std::string_view source, const std::string& options,
                                 const std::string& name) {
  auto key = std::make_pair(std::string(source), options);
  if (const auto found = programs_.find(key); found != programs_.end()) return found->second.get();

  const char* text = source.data();
  const std::size_t length = source.size();
  cl_int status = CL_SUCCESS;
  ClProgram built(clCreateProgramWithSource(context_, 1, &text, &length, &status));
  check(status, "clCreateProgramWithSource");
  // Ours come last, so that they win: the launch sizes are derived from them.
  const std::string all_options = fmt::format("-cl-std=CL1.2 {} {}", extra_options_, options);
  status = clBuildProgram(built.get(), 1, &device_, all_options.c_str(), nullptr, nullptr);
  if (status != CL_SUCCESS)
    throw Error(ErrorCode::kDevice,
                fmt::format("program {} does not build with options '{}' ({}):\n{}", name, all_options,
                            error_name(status), build_log(built.get(), device_)));
  return programs_.emplace(std::move(key), std::move(built)).first->second.get();
}

ClKernel ProgramCache::kernel(std::string_view source, const std::string& options, const std::string& name) {
  cl_int status = CL_SUCCESS;
  ClKernel kernel(clCreateKernel(program(source, options, name), name.c_str(), &status));
  check(status, fmt::format("clCreateKernel({})", name));
  return kernel;
}

}  // namespace bitnet::gpu
