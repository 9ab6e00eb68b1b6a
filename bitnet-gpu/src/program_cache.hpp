#pragma once
// Compiled programs of one context, by source and build options. In memory only: every process compiles again
// what its driver does not cache itself.
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "cl_objects.hpp"

namespace bitnet::gpu {

/// Builds a program once per (source, options). Not thread-safe. Programs live as long as the cache.
class ProgramCache {
 public:
  /// `context` and `device` must outlive the cache. `extra_options` precede the options of every build.
  ProgramCache(cl_context context, cl_device_id device, std::string extra_options)
      : context_(context), device_(device), extra_options_(std::move(extra_options)) {}

  /// A new kernel object of the program `source` built with `options`. `name` is the kernel's and, in
  /// messages, the program's. Throws Error(kDevice) with the build log when the source does not compile.
  ClKernel kernel(std::string_view source, const std::string& options, const std::string& name);

  std::size_t programs() const noexcept { return programs_.size(); }

 private:
  cl_program program(std::string_view source, const std::string& options, const std::string& name);

  cl_context context_;
  cl_device_id device_;
  std::string extra_options_;
  std::map<std::pair<std::string, std::string>, ClProgram> programs_;  // (source, options)
};

}  // namespace bitnet::gpu
