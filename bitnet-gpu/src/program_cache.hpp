#pragma once
// Compiled programs of one context, by source and build options. Those of earlier processes come from a
// folder (program_store.hpp).
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "cl_objects.hpp"
#include "program_store.hpp"

namespace bitnet::gpu {

/// Builds a program once per (source, options). Not thread-safe. Programs live as long as the cache.
class ProgramCache {
 public:
  /// `context` and `device` must outlive the cache. `extra_options` precede the options of every build.
  /// Throws Error(kDevice).
  ProgramCache(cl_context context, cl_device_id device, std::string extra_options,
               std::filesystem::path folder = {});

  /// A new kernel object of the program `source` built with `options`. `name` is the kernel's and, in
  /// messages, the program's. Throws Error(kDevice) with the build log, shortened, when the source does not
  /// compile.
  ClKernel kernel(std::string_view source, const std::string& options, const std::string& name);

  std::size_t programs() const noexcept { return programs_.size(); }
  /// Of programs(), those whose source was compiled; the others' binaries were there.
  std::size_t compiled() const noexcept { return compiled_; }

 private:
  struct Program {
    ClProgram object;
    bool stored = false;  ///< in a folder, by whoever can write there
  };
  Program& program(std::string_view source, const std::string& options, const std::string& name);
  ClProgram compile_and_keep(const std::string& key, std::string_view source, const std::string& options,
                             const std::string& name);
  std::string all_options(const std::string& options) const;
  std::string key_of(std::string_view source, const std::string& all_options) const;
  ClProgram compile(std::string_view source, const std::string& options, const std::string& name);
  /// None where the folder has no binary that the driver takes.
  ClProgram from_store(const std::string& key, const std::string& options) const;
  void keep(const std::string& key, cl_program program) const;

  cl_context context_;
  cl_device_id device_;
  std::string extra_options_;
  std::string device_key_;  // device and driver
  ProgramStore store_;
  std::size_t compiled_ = 0;
  std::map<std::pair<std::string, std::string>, Program> programs_;  // (source, options)
};

}  // namespace bitnet::gpu
