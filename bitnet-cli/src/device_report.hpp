#pragma once
// What a run did on its device and with its memory: lines for --verbose, JSON for --statistics, for `bench`
// and for traces. The figures are Backend::statistics() and those of the pools.
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "bitnet/core/device/backend.hpp"
#include "options.hpp"

namespace bitnet::cli {

/// Lines of launches, waits, copies, reused buffers and compiled programs, and of what was timed
/// (--verbose, --profile) the bandwidth of copies and a line for each kernel; empty for a device that did
/// nothing, as the CPU.
std::string device_lines(const DeviceStatistics& s);

/// The same as JSON; null for a device that did nothing. Bandwidths and kernels are of what was timed
/// (--verbose, --profile).
nlohmann::ordered_json device_json(const DeviceStatistics& s);

/// Each pool that backends take memory from, once, as it is now: use, peaks and fragmentation.
nlohmann::ordered_json pools_json(std::span<const Backend* const> backends);

/// --statistics: the file is found to be writable before anything runs.
class StatisticsFile {
 public:
  /// Throws what report_path() throws, and Error(kIo) where the file cannot be written. Without the option:
  /// nothing.
  explicit StatisticsFile(const Values& values);
  ~StatisticsFile();
  StatisticsFile(const StatisticsFile&) = delete;
  StatisticsFile& operator=(const StatisticsFile&) = delete;
  bool wanted() const noexcept { return file_ != nullptr; }
  /// Throws Error(kIo).
  void write(const nlohmann::ordered_json& figures);

 private:
  struct File;
  std::unique_ptr<File> file_;
};

}  // namespace bitnet::cli
