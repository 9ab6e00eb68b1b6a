#pragma once
// IDX files, the format of MNIST and its kin: one array of bytes with its dimensions, bare or gzipped. What
// the arrays mean is dataset.hpp. Pure functions, thread-safe.
#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

namespace fashion {

struct IdxArray {
  std::vector<std::int64_t> shape;
  std::vector<std::uint8_t> values;  // [shape], the last dimension fastest
};

/// Reads a file of unsigned bytes (LeCun, "The MNIST database": 0, 0, type 8, number of dimensions, their
/// sizes as big-endian 32-bit numbers, values). No more memory is taken than values were read, whatever the
/// header claims. Throws bitnet::Error naming the file: kNotFound, kIo (no regular file, unreadable),
/// kCorruptFile (bad magic number, a dimension of 0, another number of values than the header says, a damaged
/// gzip stream), kUnsupported (another type, more than 4 dimensions or 2^30 values).
IdxArray read_idx(const std::filesystem::path& path);

/// Writes such a file, gzipped if the name ends in ".gz". Throws bitnet::Error(kInvalidArgument) where shape
/// and values disagree, kIo.
void write_idx(const std::filesystem::path& path, std::span<const std::int64_t> shape,
               std::span<const std::uint8_t> values);

}  // namespace fashion
