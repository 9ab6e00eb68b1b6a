#pragma once
// NumPy's .npy files, one array each: format versions 1.0 to 3.0 read, 1.0 written. Containers of many
// tensors are safetensors.hpp and gguf.hpp. Format: numpy.lib.format (NumPy enhancement proposal 1).
// Functions are thread-safe.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

#include "bitnet/core/tensor.hpp"

namespace bitnet {

/// What to do with arrays of f64, i64 and the other types that no DType is.
enum class NpyWide : std::uint8_t {
  kRefuse,
  kNarrow,  ///< f64 → f32 rounded; u8, i16, u16, u32, i64, u64 → i32, which every element must fit
};

/// The array of a file: float32 → f32, float16 → f16, int8 and bool → i8, int32 → i32, of either byte order.
/// An array in Fortran order comes as a transposed view. Throws Error(kNotFound | kIo), Error(kCorruptFile)
/// naming the file and what is wrong for a header that contradicts the format or the size of the file,
/// Error(kUnsupported) for other types and versions, Error(kOutOfMemory).
Tensor read_npy(const std::filesystem::path& path, NpyWide wide = NpyWide::kRefuse);
/// The same from the bytes of a file; `name` stands for it in messages.
Tensor parse_npy(std::span<const std::byte> bytes, std::string_view name, NpyWide wide = NpyWide::kRefuse);

/// Writes a tensor of any strides in C order, atomically, little endian. Throws Error(kUnsupported) for bf16
/// and kTernary, which NumPy lacks (convert them), Error(kIo).
void write_npy(const std::filesystem::path& path, const Tensor& tensor);

}  // namespace bitnet
