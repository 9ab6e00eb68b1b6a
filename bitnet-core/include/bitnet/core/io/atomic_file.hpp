#pragma once
// Writing files so that a crash, a full disk or an error leaves the old file whole.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace bitnet {

/// A file written aside (same directory, a name of its own), fsynced and renamed over `path` by commit(),
/// with the permissions of the file it replaces; through symbolic links, which stay. Without commit() the
/// destructor removes what was written. Not thread-safe.
class AtomicFile {
 public:
  /// Throws Error(kIo) if the directory is not writable, or `path` exists and is no regular file.
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  /// Appends. Throws Error(kIo) naming the file and the reason (a full disk, say).
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  /// Overwrites earlier bytes, for headers that are known last. Throws Error(kIo), Error(kInvalidArgument)
  /// when the range was not written yet.
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes);
  /// Bytes appended so far.
  std::uint64_t size() const noexcept { return size_; }
  /// fsync, rename, fsync of the directory. Throws Error(kIo); the old file is then still whole.
  void commit();

 private:
  void flush();
  std::filesystem::path path_, aside_;
  int fd_ = -1;
  std::uint64_t size_ = 0;
  std::string buffer_;
};

/// The whole of `text` to `path`, atomically. Throws Error(kIo).
void write_file(const std::filesystem::path& path, std::string_view text);

/// Makes renames and removals in a directory outlast a crash. Some file systems cannot; that is no error.
void sync_directory(const std::filesystem::path& directory) noexcept;

enum class FileKind : std::uint8_t {
  kRegular,  ///< what a model holds; opening a FIFO would wait for a writer that never comes
  kAny,      ///< what a person named: pipes and devices, too
};

/// The whole file as text. Throws Error(kNotFound | kIo), and Error(kInvalidArgument) when larger than
/// `limit`.
std::string read_file(const std::filesystem::path& path, std::uint64_t limit = std::uint64_t{1} << 31,
                      FileKind kind = FileKind::kRegular);

}  // namespace bitnet
