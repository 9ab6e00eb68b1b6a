// Read-only mappings of regular files, and giving pages back that are no longer needed.
#include "bitnet/core/memory/mapped_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <utility>

#include "bitnet/core/error.hpp"

namespace bitnet {
namespace {

[[noreturn]] void fail(ErrorCode code, const std::filesystem::path& path, int error,
                       SourceLocation where = SourceLocation::current()) {
  throw Error(code, fmt::format("opening '{}': {}", path.string(), std::strerror(error)), where);
}

/// A file descriptor that closes itself.
struct Fd {
  int value;
  ~Fd() {
    if (value >= 0) close(value);
  }
};

}  // namespace

std::shared_ptr<const MappedFile> MappedFile::open(const std::filesystem::path& path) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const Fd fd{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)};
  if (fd.value < 0)
    fail(errno == ENOENT || errno == ENOTDIR ? ErrorCode::kNotFound : ErrorCode::kIo, path, errno);
  struct stat info {};
  if (fstat(fd.value, &info) != 0) fail(ErrorCode::kIo, path, errno);
  if (!S_ISREG(info.st_mode)) {
    throw Error(ErrorCode::kIo,
                fmt::format("opening '{}': {}", path.string(),
                            S_ISDIR(info.st_mode) ? "is a directory" : "is not a regular file"));
  }
  const auto size = static_cast<std::size_t>(info.st_size);
  const std::byte* data = nullptr;
  if (size > 0) {
    void* p = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.value, 0);
    if (p == MAP_FAILED) fail(ErrorCode::kIo, path, errno);
    data = static_cast<const std::byte*>(p);
  }
  return std::shared_ptr<const MappedFile>(new MappedFile(path, data, size));
}

MappedFile::MappedFile(std::filesystem::path path, const std::byte* data, std::size_t size)
    : path_(std::move(path)), data_(data), size_(size) {}

MappedFile::~MappedFile() {
  if (data_ != nullptr) munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::release(std::span<const std::byte> part) const noexcept {
  // Only whole pages inside the part are given back; madvise wants a page-aligned start.
  const auto page = static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<std::uintptr_t>(part.data()) + page - 1) / page * page;
  const auto end = (reinterpret_cast<std::uintptr_t>(part.data()) + part.size()) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

}  // namespace bitnet
