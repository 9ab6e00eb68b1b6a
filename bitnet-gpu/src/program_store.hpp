#pragma once
// Program binaries on disk, so that a process need not compile what an earlier one has. Building them is
// program_cache.hpp's business.
#include <cstdint>
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
/// place, and one that is damaged, or of another key, counts as not there. Beyond a number of bytes those
/// that nobody has asked for for the longest time go. Nothing here throws for what is wrong with the folder:
/// then every program is compiled.
class ProgramStore {
 public:
  using Binary = std::vector<unsigned char>;

  static constexpr std::uintmax_t kMostBytes = std::uintmax_t{1} << 28;  ///< hundreds of models' programs

  /// An empty folder: nothing is kept. `most_bytes`: of all files together; a larger one is kept alone.
  explicit ProgramStore(std::filesystem::path folder, std::uintmax_t most_bytes = kMostBytes)
      : folder_(std::move(folder)), most_bytes_(most_bytes) {}

  bool on() const noexcept { return !folder_.empty(); }
  /// `key`: everything that the binary depends on (device, driver, options, source).
  std::optional<Binary> load(std::string_view key) const;
  void store(std::string_view key, const Binary& binary) const;

 private:
  std::filesystem::path path_of(std::string_view key) const;
  void forget_oldest(const std::filesystem::path& but) const;

  std::filesystem::path folder_;
  std::uintmax_t most_bytes_;
};

}  // namespace bitnet::gpu
