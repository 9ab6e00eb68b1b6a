// Compilation of embedded .cl sources, or of their binaries.
#include "program_cache.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "quirks.hpp"

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

constexpr std::size_t kLogBytes = 2000;  // of a build log in a message: the first errors count

std::string shortened(std::string log) {
  if (log.size() <= kLogBytes) return log;
  const std::size_t left_out = log.size() - kLogBytes;
  log.resize(kLogBytes);
  return fmt::format("{}\n… {} more bytes", log, left_out);
}

std::string text_of(cl_device_id device, cl_device_info what) {
  std::size_t bytes = 0;
  check(clGetDeviceInfo(device, what, 0, nullptr, &bytes), "clGetDeviceInfo");
  std::string text(bytes, '\0');
  check(clGetDeviceInfo(device, what, bytes, text.data(), nullptr), "clGetDeviceInfo");
  text.resize(std::min(text.find('\0'), text.size()));
  return text;
}

}  // namespace

ProgramCache::ProgramCache(cl_context context, cl_device_id device, std::string extra_options,
                           std::filesystem::path folder)
    : context_(context),
      device_(device),
      extra_options_(std::move(extra_options)),
      device_key_(fmt::format("{}\n{}\n{}\n{}\n", text_of(device, CL_DEVICE_NAME),
                              text_of(device, CL_DEVICE_VENDOR), text_of(device, CL_DEVICE_VERSION),
                              text_of(device, CL_DRIVER_VERSION))),
      store_(std::move(folder)) {}

// Ours come last, so that they win: the launch sizes are derived from them.
std::string ProgramCache::all_options(const std::string& options) const {
  return fmt::format("{} {}", extra_options_, options);
}

std::string ProgramCache::key_of(std::string_view source, const std::string& all_options) const {
  return fmt::format("{}{}\n{}", device_key_, all_options, source);
}

ProgramCache::Program& ProgramCache::program(std::string_view source, const std::string& options,
                                             const std::string& name) {
  auto own = std::make_pair(std::string(source), options);
  if (const auto found = programs_.find(own); found != programs_.end()) return found->second;
  const std::string all = all_options(options), key = key_of(source, all);
  Program built{from_store(key, all), true};
  if (!built.object) built = {compile_and_keep(key, source, all, name), false};
  return programs_.emplace(std::move(own), std::move(built)).first->second;
}

ClProgram ProgramCache::compile_and_keep(const std::string& key, std::string_view source,
                                         const std::string& options, const std::string& name) {
  ClProgram built = compile(source, options, name);
  ++compiled_;
  keep(key, built.get());
  return built;
}

ClProgram ProgramCache::compile(std::string_view source, const std::string& options,
                                const std::string& name) {
  const char* text = source.data();
  const std::size_t length = source.size();
  cl_int status = CL_SUCCESS;
  ClProgram built(clCreateProgramWithSource(context_, 1, &text, &length, &status));
  check(status, "clCreateProgramWithSource");
  status = clBuildProgram(built.get(), 1, &device_, options.c_str(), nullptr, nullptr);
  if (status != CL_SUCCESS)
    throw Error(ErrorCode::kDevice,
                fmt::format("program {} does not build with options '{}' ({}):\n{}", name, options,
                            error_name(status), shortened(build_log(built.get(), device_))));
  return built;
}

ClProgram ProgramCache::from_store(const std::string& key, const std::string& options) const {
  const auto binary = store_.load(key);
  if (!binary) return {};
  const unsigned char* bytes = binary->data();
  const std::size_t length = binary->size();
  cl_int status = CL_SUCCESS, of_binary = CL_SUCCESS;
  ClProgram program(clCreateProgramWithBinary(context_, 1, &device_, &length, &bytes, &of_binary, &status));
  if (status != CL_SUCCESS || of_binary != CL_SUCCESS) return {};
  if (clBuildProgram(program.get(), 1, &device_, options.c_str(), nullptr, nullptr) != CL_SUCCESS) return {};
  return program;
}

// Of one device: the contexts here have no more.
void ProgramCache::keep(const std::string& key, cl_program program) const {
  if (!store_.on()) return;
  if (const auto binary = binary_of(program)) store_.store(key, *binary);
}

ClKernel ProgramCache::kernel(std::string_view source, const std::string& options, const std::string& name) {
  Program& from = program(source, options, name);
  cl_int status = CL_SUCCESS;
  ClKernel kernel(clCreateKernel(from.object.get(), name.c_str(), &status));
  if (status != CL_SUCCESS && from.stored) {  // a program, but not the one that it should be
    const std::string all = all_options(options);
    from = {compile_and_keep(key_of(source, all), source, all, name), false};
    kernel = ClKernel(clCreateKernel(from.object.get(), name.c_str(), &status));
  }
  check(status, fmt::format("clCreateKernel({})", name));
  return kernel;
}

}  // namespace bitnet::gpu
