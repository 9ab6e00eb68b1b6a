#pragma once
// Program binaries on disk, so that a process need not compile what an earlier one has. Building them is
// program_cache.hpp's business.
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace bitnet::gpu {

/// Where programs are kept unless the application says otherwise: `bitnet/opencl` in XDG_CACHE_HOME, or in
/// `.cache` of HOME; empty where neither is set.
std::filesystem::path default_program_folder();

/// A folder with a file for each key. Any number of processes may use one at a time: files are renamed into
/// place, and one that is damaged, or of another key, counts as not there. Nothing here throws for what is
/// wrong with the folder: then every program is compiled.
class ProgramStore {
 public:
  using Binary = std::vector<unsigned char>;

  /// An empty folder: nothing is kept.
  explicit ProgramStore(std::filesystem::path folder) : folder_(std::move(folder)) {}

  bool on() const noexcept { return !folder_.empty(); }
  /// `key`: everything that the binary depends on (device, driver, options, source).
  std::optional<Binary> load(std::string_view key) const;
  void store(std::string_view key, const Binary& binary) const;

 private:
  std::filesystem::path path_of(std::string_view key) const;

  std::filesystem::path folder_;
};

}  // namespace bitnet::gpu
