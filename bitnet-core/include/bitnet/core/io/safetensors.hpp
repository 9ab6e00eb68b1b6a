#pragma once
// The safetensors container, single files and shards behind a model.safetensors.index.json.
// Format facts: docs/formats/safetensors.md.
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/memory/mapped_file.hpp"

namespace bitnet {

/// dtype names of the format that we name; others are an Error(kUnsupported) when their bytes are asked for.
enum class SafeDType : std::uint8_t { kF64, kF32, kF16, kBF16, kI64, kI32, kI16, kI8, kU8, kBool, kOther };

std::string_view to_string(SafeDType dtype) noexcept;  ///< "F32", …
std::size_t bytes_of(SafeDType dtype) noexcept;        ///< 0 for kOther

struct SafeTensorInfo {
  std::string name;
  SafeDType dtype{};
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;  ///< in the data section of its file
  std::size_t shard = 0;
};

/// Tensors of one file, of a shard index, or of a directory that holds either. Immutable, thread-safe.
class SafeTensors {
 public:
  /// `path`: a .safetensors file, an .index.json, or a directory (index first, then model.safetensors, then a
  /// lone .safetensors file). Checks header length, JSON, dtypes × shapes against offsets, overlaps and gaps,
  /// shard names (no path separators, no cycles) and that the index agrees with the shards. Throws
  /// Error(kNotFound | kIo | kCorruptFile) naming file, place and expectation.
  static std::shared_ptr<const SafeTensors> open(const std::filesystem::path& path);

  std::span<const SafeTensorInfo> tensors() const noexcept { return tensors_; }  ///< sorted by name
  const SafeTensorInfo* find(std::string_view name) const noexcept;
  std::span<const std::byte> data(const SafeTensorInfo& tensor) const noexcept;
  /// The file that `tensor` lies in.
  const MappedFile& file(const SafeTensorInfo& tensor) const noexcept { return *shards_[tensor.shard]; }
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }
  /// Files that were opened, for messages and for size reports.
  std::vector<std::filesystem::path> files() const;

 private:
  SafeTensors() = default;
  std::vector<std::shared_ptr<const MappedFile>> shards_;
  std::vector<std::uint64_t> data_starts_;
  std::vector<SafeTensorInfo> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// Writes one .safetensors file tensor by tensor, atomically. Not thread-safe.
class SafeTensorsWriter {
 public:
  /// Declares every tensor first (begin/end/shard are computed). Throws Error(kInvalidArgument) on duplicate
  /// names.
  SafeTensorsWriter(const std::filesystem::path& path, std::vector<SafeTensorInfo> tensors,
                    const std::map<std::string, std::string>& metadata = {});
  /// Bytes of the next tensor in declared order. Throws Error(kInvalidArgument) if name or size differ from
  /// it.
  void write(std::string_view name, std::span<const std::byte> bytes);
  void finish();

 private:
  AtomicFile out_;
  std::vector<SafeTensorInfo> tensors_;
  std::size_t next_ = 0;
};

}  // namespace bitnet
