// Locks by flock(), which belong to an open file and are given back when its last descriptor is closed.
#include "bitnet/core/io/written_aside.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

namespace bitnet {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSuffix = ".partial";

/// Takes ".DIGITS" from the end of `name`.
bool take_number(std::string_view& name) noexcept {
  const std::size_t dot = name.rfind('.');
  if (dot == std::string_view::npos || dot + 1 == name.size()) return false;
  if (!std::all_of(name.begin() + static_cast<std::ptrdiff_t>(dot) + 1, name.end(),
                   [](char c) { return c >= '0' && c <= '9'; }))
    return false;
  name = name.substr(0, dot);
  return true;
}

/// What is written under this name; empty where it is no name of what is written aside.
std::string_view stem_of(std::string_view name) noexcept {
  if (!name.ends_with(kSuffix)) return {};
  name.remove_suffix(kSuffix.size());
  return take_number(name) && take_number(name) ? name : std::string_view();
}

void remove_if_abandoned(const fs::path& path) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0 || !(S_ISREG(info.st_mode) || S_ISDIR(info.st_mode))) return;
  const int flags = S_ISDIR(info.st_mode) ? O_RDONLY | O_DIRECTORY : O_RDWR;
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return;
  struct stat opened {
  }, now{};
  // Still under its name: it could have been renamed since, which ends its lock.
  if (flock(fd, LOCK_EX | LOCK_NB) == 0 && fstat(fd, &opened) == 0 && lstat(path.c_str(), &now) == 0 &&
      opened.st_ino == now.st_ino && opened.st_dev == now.st_dev) {
    try {
      fs::remove_all(path);
    } catch (...) {  // what is left of it stays
    }
  }
  close(fd);
}

}  // namespace

bool is_written_aside(std::string_view name) noexcept { return !stem_of(name).empty(); }

bool hold_written_aside(int fd) noexcept {
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) return errno != EWOULDBLOCK;
  struct stat info {};
  return fstat(fd, &info) == 0 && info.st_nlink > 0;
}

void remove_abandoned(const fs::path& directory, std::string_view stem) noexcept {
  if (stem.empty()) return;
  // Not fs::directory_iterator: libstdc++'s ends the program where memory for a name is refused.
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(opendir(directory.empty() ? "." : directory.c_str()),
                                                    &closedir);
  if (entries == nullptr) return;
  while (const dirent* entry = readdir(entries.get())) {
    try {
      if (stem_of(entry->d_name) == stem) remove_if_abandoned(directory / entry->d_name);
    } catch (...) {  // out of memory: it stays
    }
  }
}

}  // namespace bitnet
