#pragma once
// Files whose storage fails when a test tells it to: open, read, write, pwrite, fsync and rename of the
// executable's own stand before the C library's. Include it in one source of an executable.
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdarg>
#include <string>
#include <string_view>

namespace bitnet::testing {

/// From the `nth` call of `call` on a file whose path ends with `path` on, `n` of them fail with `error`. The
/// first of these reads or writes a piece of what it was asked before that, so that a line or a file is torn.
struct FailingFiles {
  static constexpr int kForGood = 1 << 30;
  std::string call, path;
  int nth = 0, n = 0, error = EIO;
  int calls = 0, failures = 0;
  bool is_torn = false;  // the first failure's piece was done

  void fail(std::string_view which, std::string_view file, int from = 1, int times = 1, int code = EIO) {
    call = which;
    path = file;
    nth = from;
    n = times;
    error = code;
    calls = failures = 0;
    is_torn = false;
  }
  void heal() { call.clear(); }

  bool fails(std::string_view which, std::string_view file) {
    if (call != which || !file.ends_with(path)) return false;
    ++calls;
    if (calls < nth || calls - nth >= n) return false;
    ++failures;
    errno = error;
    return true;
  }
  bool fails(std::string_view which, int fd) {
    if (call != which) return false;
    char name[PATH_MAX];
    const ssize_t length = readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), name, sizeof name);
    return length > 0 && fails(which, std::string_view(name, static_cast<std::size_t>(length)));
  }
  /// How many bytes to do at once: a piece before the first failure.
  std::size_t share(std::string_view which, int fd, std::size_t bytes) {
    if (call != which || is_torn || bytes < 2) return bytes;
    FailingFiles copy = *this;
    if (!copy.fails(which, fd)) return bytes;
    is_torn = true;
    return std::min<std::size_t>(bytes / 2, 64);
  }
};
inline FailingFiles failing_files;

}  // namespace bitnet::testing

#define BITNET_STANDS_BEFORE extern "C" __attribute__((visibility("default")))

BITNET_STANDS_BEFORE int open(const char* path, int flags, ...) {
  mode_t mode = 0;
  if ((flags & O_CREAT) != 0) {
    va_list more;
    va_start(more, flags);
    mode = va_arg(more, mode_t);
    va_end(more);
  }
  if (bitnet::testing::failing_files.fails("open", path)) return -1;
  return static_cast<int>(syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

BITNET_STANDS_BEFORE ssize_t read(int fd, void* to, size_t n) {
  auto& files = bitnet::testing::failing_files;
  if (const std::size_t piece = files.share("read", fd, n); piece < n)
    return syscall(SYS_read, fd, to, piece);
  if (files.fails("read", fd)) return -1;
  return syscall(SYS_read, fd, to, n);
}

BITNET_STANDS_BEFORE ssize_t write(int fd, const void* from, size_t n) {
  auto& files = bitnet::testing::failing_files;
  if (const std::size_t piece = files.share("write", fd, n); piece < n)
    return syscall(SYS_write, fd, from, piece);
  if (files.fails("write", fd)) return -1;
  return syscall(SYS_write, fd, from, n);
}

BITNET_STANDS_BEFORE ssize_t pwrite(int fd, const void* from, size_t n, off_t at) {
  auto& files = bitnet::testing::failing_files;
  if (const std::size_t piece = files.share("pwrite", fd, n); piece < n)
    return syscall(SYS_pwrite64, fd, from, piece, at);
  if (files.fails("pwrite", fd)) return -1;
  return syscall(SYS_pwrite64, fd, from, n, at);
}

BITNET_STANDS_BEFORE int fsync(int fd) {
  if (bitnet::testing::failing_files.fails("fsync", fd)) return -1;
  return static_cast<int>(syscall(SYS_fsync, fd));
}

BITNET_STANDS_BEFORE int rename(const char* from, const char* to) noexcept {
  if (bitnet::testing::failing_files.fails("rename", to)) return -1;
  return static_cast<int>(syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0));
}
