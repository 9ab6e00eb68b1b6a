#pragma once
// The GGUF v3 container: typed key-values and a tensor index. What the tensors mean is bitnet-quant's
// model_io. Format facts: docs/formats/gguf.md.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/memory/mapped_file.hpp"

namespace bitnet {

/// Type ids of tensor data that the project uses. Other ids are kept as numbers; those of mainline's block
/// types are known to to_string() and ggml_bytes() too, the bytes of the rest cannot be sized.
enum class GgmlType : std::int32_t {
  kF32 = 0,
  kF16 = 1,
  kQ8_0 = 8,
  kQ6_K = 14,
  kI8 = 24,
  kBF16 = 30,
  kTQ1_0 = 34,
  kTQ2_0 = 35,
  kI2_S = 36,
  kTL1 = 38,
  kTL2 = 39,
  kQ2_0 = 42,
};

/// "I2_S", or "type 99" for an id that we do not name.
std::string to_string(GgmlType type);

/// Bytes of a tensor of `type` with `dims` (dims[0] fastest). Throws Error(kUnsupported) for a type whose
/// size is unknown, Error(kCorruptFile) when dims[0] is no multiple of the block or the product overflows.
/// I2_S counts its 32 trailing bytes (scale and padding).
std::uint64_t ggml_bytes(GgmlType type, std::span<const std::int64_t> dims);

/// An array value: every element has the same alternative. Integers of all widths are widened to i64/u64.
using GgufArray = std::variant<std::vector<std::int64_t>, std::vector<std::uint64_t>, std::vector<double>,
                               std::vector<bool>, std::vector<std::string>>;

/// A key's value. The file's exact type id is kept beside it so that a rewrite is faithful.
struct GgufValue {
  std::int32_t type = 8;          ///< GGUF type id (0 u8 … 12 f64; 9 array)
  std::int32_t element_type = 8;  ///< for arrays
  std::variant<std::int64_t, std::uint64_t, double, bool, std::string, GgufArray> data;
};

/// Ordered key → value map of a GGUF file.
class GgufMetadata {
 public:
  GgufMetadata() = default;
  /// Throws Error(kInvalidArgument) naming a key that occurs twice.
  explicit GgufMetadata(std::vector<std::pair<std::string, GgufValue>> entries);

  bool contains(std::string_view key) const noexcept { return find(key) != nullptr; }
  const GgufValue* find(std::string_view key) const noexcept;
  std::span<const std::pair<std::string, GgufValue>> entries() const noexcept { return entries_; }

  /// Typed look-ups: empty when the key is absent, Error(kCorruptFile) naming key, expected and found type
  /// when it has another type or an integer is out of range.
  std::optional<std::int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;  ///< integers convert
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string> string(std::string_view key) const;
  std::optional<std::vector<std::string>> strings(std::string_view key) const;
  std::optional<std::vector<std::int64_t>> integers(std::string_view key) const;
  std::optional<std::vector<double>> numbers(std::string_view key) const;

  /// Adds or replaces. The names say the type written: u32, i32, f32, bool, string and arrays of those.
  void set_u32(std::string_view key, std::uint32_t v);
  void set_i32(std::string_view key, std::int32_t v);
  void set_f32(std::string_view key, float v);
  void set_bool(std::string_view key, bool v);
  void set_string(std::string_view key, std::string v);
  void set_strings(std::string_view key, std::vector<std::string> v);
  void set_i32s(std::string_view key, std::span<const std::int32_t> v);
  void set_f32s(std::string_view key, std::span<const float> v);
  void set(std::string_view key, GgufValue v);

 private:
  std::vector<std::pair<std::string, GgufValue>> entries_;
};

/// One row of the tensor index.
struct GgufTensorInfo {
  std::string name;
  std::vector<std::int64_t> dims;  ///< dims[0] is the fastest: in_features of a linear
  GgmlType type{};
  std::uint64_t offset = 0;  ///< from the start of the data section, aligned
  std::uint64_t bytes = 0;   ///< 0 for a type of unknown size
};

/// A GGUF file opened for reading (mapped). Immutable, thread-safe.
class GgufFile {
 public:
  /// Checks magic, version, every length, count, offset, alignment and overlap before use. Throws
  /// Error(kNotFound | kIo | kCorruptFile | kUnsupported) naming the file, the place and what was expected.
  static std::shared_ptr<const GgufFile> open(const std::filesystem::path& path);

  const GgufMetadata& metadata() const noexcept { return metadata_; }
  std::span<const GgufTensorInfo> tensors() const noexcept { return tensors_; }
  const GgufTensorInfo* find(std::string_view name) const noexcept;
  /// The bytes of a tensor of this file.
  std::span<const std::byte> data(const GgufTensorInfo& tensor) const noexcept;
  const MappedFile& file() const noexcept { return *file_; }

 private:
  GgufFile() = default;
  std::shared_ptr<const MappedFile> file_;
  GgufMetadata metadata_;
  std::vector<GgufTensorInfo> tensors_;
  std::vector<std::uint32_t> by_name_;  // indices into tensors_, sorted by name
  std::uint64_t data_start_ = 0;
};

/// Writes a GGUF file tensor by tensor, atomically. The index is declared first, then each tensor's bytes
/// follow in the same order, so that only one tensor is in memory. Not thread-safe.
class GgufWriter {
 public:
  /// `tensors`: name, dims and type of each; offsets and sizes are computed here. Throws like AtomicFile, and
  /// Error(kInvalidArgument) on a duplicate name, dims that the type cannot hold or a value unlike its type
  /// id.
  GgufWriter(const std::filesystem::path& path, const GgufMetadata& metadata,
             std::vector<GgufTensorInfo> tensors);
  /// Bytes of the next tensor in declared order. Throws Error(kInvalidArgument) if name or size differ from
  /// it.
  void write(std::string_view name, std::span<const std::byte> bytes);
  /// Throws Error(kInvalidArgument) if tensors are missing, Error(kIo).
  void finish();

 private:
  AtomicFile out_;
  std::vector<GgufTensorInfo> tensors_;
  std::size_t next_ = 0;
  std::uint64_t alignment_ = 32;
};

}  // namespace bitnet
