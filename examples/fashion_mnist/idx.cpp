// Reading and writing IDX through zlib, which passes files over that are not gzipped.
#include "idx.hpp"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "bitnet/core/error.hpp"

namespace fashion {
namespace {

using bitnet::Error;
using bitnet::ErrorCode;

constexpr std::uint8_t kUnsignedByte = 8;
constexpr std::int64_t kMostValues = std::int64_t{1} << 30;
constexpr unsigned kPiece = 1 << 20;  // values are read in such pieces: a header that lies costs no memory

/// A file that zlib reads or writes.
class GzFile {
 public:
  GzFile(const std::filesystem::path& path, const char* mode) : file_(gzopen(path.c_str(), mode)) {
    if (!file_) throw Error(ErrorCode::kIo, std::strerror(errno));
  }
  ~GzFile() {
    if (file_) gzclose(file_);
  }
  GzFile(const GzFile&) = delete;
  GzFile& operator=(const GzFile&) = delete;

  /// Up to `count` bytes; fewer only at the end.
  std::size_t read(std::uint8_t* to, unsigned count) {
    const int got = gzread(file_, to, count);
    if (got < 0 || static_cast<unsigned>(got) < count) check();
    return static_cast<std::size_t>(std::max(got, 0));
  }
  void write(const std::uint8_t* from, unsigned count) {
    if (count > 0 && gzwrite(file_, from, count) != static_cast<int>(count)) check();
  }
  void close() {
    const int result = gzclose(std::exchange(file_, nullptr));
    if (result != Z_OK) throw Error(ErrorCode::kIo, "closing failed");
  }

 private:
  /// Throws what zlib has found out.
  void check() {
    int code = Z_OK;
    const char* message = gzerror(file_, &code);
    if (code == Z_OK) return;
    if (code == Z_ERRNO) throw Error(ErrorCode::kIo, std::strerror(errno));
    if (code == Z_MEM_ERROR) bitnet::throw_out_of_memory("decompressing");
    throw Error(ErrorCode::kCorruptFile, "gzip stream: " + std::string(message));
  }
  gzFile file_;
};

IdxArray read_header(GzFile& file) {
  std::array<std::uint8_t, 4> magic{};
  if (file.read(magic.data(), 4) != 4 || magic[0] != 0 || magic[1] != 0)
    throw Error(ErrorCode::kCorruptFile, "this is no IDX file: it does not begin with two zeros and a type");
  if (magic[2] != kUnsignedByte)
    throw Error(ErrorCode::kUnsupported,
                "values of type " + std::to_string(magic[2]) + ", expected 8 (unsigned bytes)");
  if (magic[3] < 1 || magic[3] > 4)
    throw Error(ErrorCode::kUnsupported, std::to_string(magic[3]) + " dimensions, expected 1 to 4");
  IdxArray array;
  std::int64_t count = 1;
  for (int i = 0; i < magic[3]; ++i) {
    std::array<std::uint8_t, 4> b{};
    if (file.read(b.data(), 4) != 4) throw Error(ErrorCode::kCorruptFile, "the file ends in its header");
    const std::int64_t size =
        std::int64_t{b[0]} << 24 | std::int64_t{b[1]} << 16 | std::int64_t{b[2]} << 8 | std::int64_t{b[3]};
    if (size == 0) throw Error(ErrorCode::kCorruptFile, "dimension " + std::to_string(i) + " is 0");
    if (size > kMostValues / count)
      throw Error(ErrorCode::kUnsupported, "more than " + std::to_string(kMostValues) + " values");
    count *= size;
    array.shape.push_back(size);
  }
  return array;
}

std::int64_t product(std::span<const std::int64_t> shape) {
  std::int64_t count = 1;
  for (const std::int64_t n : shape) count *= n;
  return count;
}

}  // namespace

IdxArray read_idx(const std::filesystem::path& path) {
  return bitnet::with_context("reading '" + path.string() + "'", [&] {
    std::error_code none;
    if (!std::filesystem::exists(path, none)) throw Error(ErrorCode::kNotFound, "there is no such file");
    if (!std::filesystem::is_regular_file(path, none)) throw Error(ErrorCode::kIo, "this is no regular file");
    GzFile file(path, "rb");
    IdxArray array = read_header(file);
    const auto count = static_cast<std::size_t>(product(array.shape));
    std::size_t got = 0;
    while (got < count) {
      const auto wanted = static_cast<unsigned>(std::min<std::size_t>(kPiece, count - got));
      array.values.resize(got + wanted);
      const std::size_t n = file.read(array.values.data() + got, wanted);
      got += n;
      if (n < wanted)
        throw Error(ErrorCode::kCorruptFile, "the file ends after " + std::to_string(got) + " of " +
                                                 std::to_string(count) + " values");
    }
    // This read also compares gzip's checksum, which comes last.
    std::uint8_t more = 0;
    if (file.read(&more, 1) != 0)
      throw Error(ErrorCode::kCorruptFile,
                  "more than the " + std::to_string(count) + " values of its header");
    return array;
  });
}

void write_idx(const std::filesystem::path& path, std::span<const std::int64_t> shape,
               std::span<const std::uint8_t> values) {
  bitnet::with_context("writing '" + path.string() + "'", [&] {
    const bool fits =
        !shape.empty() && shape.size() <= 4 &&
        std::all_of(shape.begin(), shape.end(), [](std::int64_t n) { return n > 0 && n <= kMostValues; });
    if (!fits || product(shape) != static_cast<std::int64_t>(values.size()))
      throw Error(ErrorCode::kInvalidArgument, std::to_string(values.size()) + " values for another shape");
    std::vector<std::uint8_t> bytes = {0, 0, kUnsignedByte, static_cast<std::uint8_t>(shape.size())};
    for (const std::int64_t n : shape)
      for (int shift = 24; shift >= 0; shift -= 8) bytes.push_back(static_cast<std::uint8_t>(n >> shift));
    bytes.insert(bytes.end(), values.begin(), values.end());
    GzFile file(path, path.extension() == ".gz" ? "wb" : "wbT");
    for (std::size_t at = 0; at < bytes.size(); at += kPiece)
      file.write(bytes.data() + at, static_cast<unsigned>(std::min<std::size_t>(kPiece, bytes.size() - at)));
    file.close();
  });
}

}  // namespace fashion
