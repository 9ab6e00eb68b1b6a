#pragma once
// --profile: where the time of a command goes, as a trace beside a table on standard error.
#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>

#include "bitnet/cli/app.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/profiler.hpp"
#include "options.hpp"

namespace bitnet::cli {

/// A trace of loading and running, opened before both.
class TraceFile {
 public:
  /// `process`: its name in the trace. Throws what report_path() throws, and Error(kIo) where the file cannot
  /// be written.
  TraceFile(const Values& values, std::string process);
  Profiler* profiler() noexcept { return &profiler_; }
  /// With device_json() and pools_json() in it. Throws Error(kIo).
  void write(const nlohmann::ordered_json& device, const nlohmann::ordered_json& pools, Io& io);
  /// Of what was done until then, if anything; what is wrong with the trace must not hide why the run failed.
  void write_after_failure(Io& io);

 private:
  // Memory is taken as zones come: 15,000 tokens of a model of 30 layers.
  static constexpr std::size_t kZones = std::size_t{1} << 22;
  AtomicFile file_;
  Profiler profiler_{kZones};
  std::string process_;
};

}  // namespace bitnet::cli
