// Files written aside, fsynced and renamed; and reading of small files whole. Large ones are mapped:
// mapped_file.cpp.
#include "bitnet/core/io/atomic_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/written_aside.hpp"

namespace bitnet {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{1} << 20;
constexpr int kMostLeftovers = 100'000;

[[noreturn]] void fail(const char* doing, const std::filesystem::path& path,
                       SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kIo, fmt::format("{} '{}': {}", doing, path.string(), std::strerror(errno)), where);
}

[[noreturn]] void fail_not_regular(const char* doing, const std::filesystem::path& path, mode_t mode,
                                   SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kIo,
              fmt::format("{} '{}': {}", doing, path.string(),
                          S_ISDIR(mode) ? "is a directory" : "is not a regular file"),
              where);
}

/// The file that a chain of symbolic links names, also where it does not exist yet: the rename must replace
/// it, not the link.
std::filesystem::path behind_links(std::filesystem::path path) {
  std::error_code error;
  for (int links = 0; std::filesystem::is_symlink(path, error); ++links) {
    if (links == 40) {  // the kernel's own limit
      errno = ELOOP;
      fail("writing", path);
    }
    const std::filesystem::path to = std::filesystem::read_symlink(path, error);
    if (error) throw Error(ErrorCode::kIo, fmt::format("writing '{}': {}", path.string(), error.message()));
    path = path.parent_path() / to;  // an absolute `to` replaces all of it
  }
  return path;
}

void write_all(int fd, const char* data, std::size_t n, const std::filesystem::path& path) {
  while (n > 0) {
    const ssize_t written = ::write(fd, data, n);
    if (written < 0) {
      if (errno == EINTR) continue;
      fail("writing", path);
    }
    data += written;
    n -= static_cast<std::size_t>(written);
  }
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path) : path_(behind_links(std::move(path))) {
  static std::atomic<unsigned> serial{0};
  struct stat old {};
  const bool exists = stat(path_.c_str(), &old) == 0;
  if (exists && !S_ISREG(old.st_mode)) fail_not_regular("writing", path_, old.st_mode);
  remove_abandoned(path_.parent_path(), path_.filename().string());
  // Where locks do not tell, what writers that were killed left is still there; in a container the process id
  // is the same every time.
  for (int tries = 0; fd_ < 0; ++tries) {
    aside_ = path_;
    aside_ += fmt::format(".{}.{}.partial", getpid(), serial.fetch_add(1));
    fd_ = ::open(aside_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ < 0 && (errno != EEXIST || tries == kMostLeftovers)) fail("writing", path_);
    if (fd_ >= 0 && !hold_written_aside(fd_)) close(std::exchange(fd_, -1));
  }
  // A file system without permissions may refuse this; the content is what matters there.
  if (exists) (void)!fchmod(fd_, old.st_mode & 0777);
}

AtomicFile::~AtomicFile() {
  if (fd_ < 0) return;
  unlink(aside_.c_str());
  close(fd_);
}

void AtomicFile::flush() {
  write_all(fd_, buffer_.data(), buffer_.size(), path_);
  buffer_.clear();
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  const char* data = reinterpret_cast<const char*>(bytes.data());
  if (buffer_.size() + bytes.size() > kBufferBytes) flush();
  if (bytes.size() > kBufferBytes) {
    write_all(fd_, data, bytes.size(), path_);
  } else {
    buffer_.append(data, bytes.size());
  }
  size_ += bytes.size();
}

void AtomicFile::write(std::string_view text) {
  write(std::as_bytes(std::span<const char>(text.data(), text.size())));
}

void AtomicFile::write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
  if (offset > size_ || bytes.size() > size_ - offset) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("'{}': write of {} bytes at {} beyond the {} written", path_.string(),
                            bytes.size(), offset, size_));
  }
  flush();
  const char* data = reinterpret_cast<const char*>(bytes.data());
  std::size_t n = bytes.size();
  while (n > 0) {
    const ssize_t written = pwrite(fd_, data, n, static_cast<off_t>(offset));
    if (written < 0) {
      if (errno == EINTR) continue;
      fail("writing", path_);
    }
    data += written;
    offset += static_cast<std::uint64_t>(written);
    n -= static_cast<std::size_t>(written);
  }
}

void AtomicFile::commit() {
  flush();
  if (fsync(fd_) != 0) fail("writing", path_);
  const int fd = std::exchange(fd_, -1);
  // Renamed before it is closed, which gives the lock back. All that closing could still report, fsync() did.
  if (rename(aside_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    unlink(aside_.c_str());
    close(fd);
    errno = error;
    fail("replacing", path_);
  }
  close(fd);
  sync_directory(path_.has_parent_path() ? path_.parent_path() : ".");
}

void sync_directory(const std::filesystem::path& directory) noexcept {
  const int fd = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;
  (void)fsync(fd);
  close(fd);
}

void write_file(const std::filesystem::path& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

std::string read_file(const std::filesystem::path& path, std::uint64_t limit, FileKind kind) {
  const bool regular = kind == FileKind::kRegular;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | (regular ? O_NONBLOCK : 0));
  if (fd < 0) {
    const bool absent = errno == ENOENT || errno == ENOTDIR;
    throw Error(absent ? ErrorCode::kNotFound : ErrorCode::kIo,
                fmt::format("opening '{}': {}", path.string(), std::strerror(errno)));
  }
  struct Close {
    int fd;
    ~Close() { close(fd); }
  } const closer{fd};
  struct stat info {};
  if (fstat(fd, &info) != 0) fail("opening", path);
  if (regular && !S_ISREG(info.st_mode)) fail_not_regular("opening", path, info.st_mode);
  std::string text;
  char chunk[65536];
  for (;;) {
    const ssize_t n = ::read(fd, chunk, sizeof chunk);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) fail("reading", path);
    if (n == 0) return text;
    if (text.size() + static_cast<std::size_t>(n) > limit) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("'{}' is larger than {} bytes", path.string(), limit));
    }
    text.append(chunk, static_cast<std::size_t>(n));
  }
}

}  // namespace bitnet
