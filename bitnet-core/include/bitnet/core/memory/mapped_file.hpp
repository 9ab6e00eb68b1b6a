#pragma once
// Read-only memory-mapped files.
#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

namespace bitnet {

/// A whole regular file mapped read-only. Immutable and thread-safe; views into it keep it alive by holding
/// the shared_ptr that open() returns.
class MappedFile {
 public:
  /// Throws Error(kNotFound) if there is no such file, Error(kIo) if it is a directory, not readable or
  /// cannot be mapped. An empty file gives an empty span.
  static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const noexcept { return {data_, size_}; }
  const std::filesystem::path& path() const noexcept { return path_; }
  /// Tells the kernel that the pages of `part` are not needed soon (they can be read again). Never fails.
  void release(std::span<const std::byte> part) const noexcept;

 private:
  MappedFile(std::filesystem::path path, const std::byte* data, std::size_t size);
  std::filesystem::path path_;
  const std::byte* data_;
  std::size_t size_;
};

}  // namespace bitnet
