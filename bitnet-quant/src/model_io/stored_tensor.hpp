#pragma once
// One tensor as a model file stores it, and the steps between its bytes and its rows. Which tensor of
// a file is which is hf_reader.cpp's and gguf_model_reader.cpp's business. Private to bitnet-quant.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/core/memory/mapped_file.hpp"
#include "bitnet/quant/model_io.hpp"

namespace bitnet::quant::model_io {

/// How the bytes of a tensor are coded.
enum class Encoding : std::uint8_t { kF32, kF16, kBF16, kQ8_0, kQ6_K, kI8, kHfUint8, kI2_S, kTQ1_0, kTQ2_0 };

constexpr bool is_packed(Encoding e) noexcept { return e >= Encoding::kHfUint8; }

struct StoredTensor {
  std::string name;  ///< in the file
  Encoding encoding{};
  std::string type;                  ///< the file's name of the type
  std::span<const std::byte> bytes;  ///< in the mapped file
  const MappedFile* file = nullptr;
  std::uint64_t scale_bytes = 0;  ///< of a scale that is a tensor of its own
  /// Of a scale tensor, in the multiply form: the scale itself for kHfUint8, a further factor else.
  std::optional<float> scale;
  /// Of the extension (docs/formats/extended.md): the scales of kHfUint8 in place of `scale`, or those of the
  /// rows of kI8; a second plane.
  std::vector<float> scales;
  std::int64_t rows_per_scale = 0, cols_per_scale = 0;  ///< as in TernaryWeights
  std::shared_ptr<const StoredTensor> second = {};
  ActivationForm activations = ActivationForm::kInt8;
  bool ternarise = false;  ///< float bytes that become trits at load
  std::int64_t interleaved_head =
      0;  ///< head_dim, if the rows of each head lie interleaved (llama GGUF's q and k)
};

/// Of the floats that safetensors files may hold; empty for other types.
std::optional<Encoding> float_encoding(SafeDType dtype) noexcept;

/// The type that holds an encoding's values unrounded.
DType dtype_of(Encoding encoding) noexcept;

/// Bytes of `n` elements of an encoding that is not packed, whole blocks.
std::size_t float_bytes(Encoding encoding, std::size_t n);

/// The type that open_rows() gives a tensor's values where they are no trits: nothing is rounded.
DType dense_type(const StoredTensor& stored) noexcept;

/// Decoding in rows; `stored` must outlive it. What it throws names the tensor.
TensorRows open_rows(const StoredTensor& stored, TensorId id, const Shape& shape);

/// Float bytes of any encoding that is not packed, as f32. `n` elements, whole blocks.
void decode_floats(Encoding encoding, const std::byte* bytes, std::size_t n, float* to);
std::vector<float> decode_floats(Encoding encoding, std::span<const std::byte> bytes, std::size_t n);

/// f32 → bytes of f32, f16 or bf16. Throws Error(kUnsupported) when a finite value overflows f16.
std::vector<std::byte> encode_floats(DType dtype, std::span<const float> values);

/// Row order between rotate-half (both halves of a head one after the other: Hugging Face, ours) and
/// interleaved (pairs side by side: GGUF's llama): rotate-half row h·d + j·d/2 + i is interleaved row h·d +
/// 2·i + j.
enum class RowOrder : std::uint8_t { kToInterleaved, kToRotateHalf };
/// Where row `row` of the order that `order` makes lies in the order that it is made from.
std::int64_t reordered_row(std::int64_t row, std::int64_t head_dim, RowOrder order) noexcept;
/// Rows of `row_bytes` bytes each. Throws Error(kCorruptFile) when the rows are no multiple of head_dim.
std::vector<std::byte> reorder_rows(std::span<const std::byte> bytes, std::size_t row_bytes,
                                    std::int64_t head_dim, RowOrder order);
/// Scales of groups of rows, `groups` side by side: one per row afterwards where groups are smaller than
/// heads.
void reorder_scales(std::vector<float>& scales, std::int64_t& rows_per_scale, std::int64_t rows,
                    std::int64_t head_dim, RowOrder order, std::int64_t groups = 1);
/// Trits and the scales of their rows.
void reorder_rows(TernaryWeights& w, std::int64_t head_dim, RowOrder order);

/// A remark when a scale can hardly be mean|W| of a trained layer; empty else. The divide form gone wrong
/// looks so.
std::string implausible_scale(std::string_view name, float scale);

}  // namespace bitnet::quant::model_io
