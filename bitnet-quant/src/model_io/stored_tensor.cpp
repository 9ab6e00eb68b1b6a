// The steps of decoding a stored tensor: float types, ggml's Q8_0 and Q6_K blocks, row orders. Ternary
// layouts are packing.hpp's; tensor_rows.cpp puts the steps together.
#include "model_io/stored_tensor.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "bitnet/core/error.hpp"

namespace bitnet::quant::model_io {
namespace {

constexpr std::size_t kQ8Bytes = 34, kQ6Bytes = 210;  // of a block of 32, of 256 elements

std::uint16_t half_at(const std::byte* p) {
  std::uint16_t h;
  std::memcpy(&h, p, sizeof(h));
  return h;
}

unsigned u8(std::byte b) { return std::to_integer<unsigned>(b); }

/// ggml's block_q8_0: f16 scale, 32 signed bytes.
void decode_q8_0(const std::byte* block, float* to) {
  const float d = f16_to_f32(half_at(block));
  for (int i = 0; i < 32; ++i) to[i] = d * static_cast<float>(static_cast<std::int8_t>(block[2 + i]));
}

/// ggml's block_q6_K: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales, f16 scale.
void decode_q6_k(const std::byte* block, float* to) {
  const std::byte* const low = block;
  const std::byte* const high = block + 128;
  const std::byte* const scales = block + 192;
  const float d = f16_to_f32(half_at(block + 208));
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, quarter = i % 128 / 32, l = i % 32;
    const unsigned nibbles = u8(low[half * 64 + quarter % 2 * 32 + l]);
    const unsigned bits = (u8(high[half * 32 + l]) >> (2 * quarter)) & 3;
    const int q = static_cast<int>(((nibbles >> (quarter / 2 * 4)) & 15) | (bits << 4)) - 32;
    const float scale = d * static_cast<float>(static_cast<std::int8_t>(scales[i / 16]));
    to[i] = scale * static_cast<float>(q);
  }
}

}  // namespace

std::optional<Encoding> float_encoding(SafeDType dtype) noexcept {
  switch (dtype) {
    case SafeDType::kF32:
      return Encoding::kF32;
    case SafeDType::kF16:
      return Encoding::kF16;
    case SafeDType::kBF16:
      return Encoding::kBF16;
    default:
      return {};
  }
}

DType dtype_of(Encoding e) noexcept {
  return e == Encoding::kF16 ? DType::kF16 : e == Encoding::kBF16 ? DType::kBF16 : DType::kF32;
}

DType dense_type(const StoredTensor& stored) noexcept {
  return stored.scale || stored.second != nullptr ? DType::kF32 : dtype_of(stored.encoding);
}

std::size_t float_bytes(Encoding encoding, std::size_t n) {
  switch (encoding) {
    case Encoding::kF32:
      return 4 * n;
    case Encoding::kF16:
    case Encoding::kBF16:
      return 2 * n;
    case Encoding::kQ8_0:
      return n / 32 * kQ8Bytes;
    case Encoding::kQ6_K:
      return n / 256 * kQ6Bytes;
    default:
      throw Error(ErrorCode::kInternal, "float_bytes: packed encoding");
  }
}

void decode_floats(Encoding encoding, const std::byte* p, std::size_t n, float* to) {
  switch (encoding) {
    case Encoding::kF32:
      if (n > 0) std::memcpy(to, p, n * sizeof(float));
      return;
    case Encoding::kF16:
      for (std::size_t i = 0; i < n; ++i) to[i] = f16_to_f32(half_at(p + 2 * i));
      return;
    case Encoding::kBF16:
      for (std::size_t i = 0; i < n; ++i) to[i] = bf16_to_f32(half_at(p + 2 * i));
      return;
    case Encoding::kQ8_0:
      for (std::size_t i = 0; i + 32 <= n; i += 32) decode_q8_0(p + i / 32 * kQ8Bytes, to + i);
      return;
    case Encoding::kQ6_K:
      for (std::size_t i = 0; i + 256 <= n; i += 256) decode_q6_k(p + i / 256 * kQ6Bytes, to + i);
      return;
    default:
      throw Error(ErrorCode::kInternal, "decode_floats: packed encoding");
  }
}

std::vector<float> decode_floats(Encoding encoding, std::span<const std::byte> bytes, std::size_t n) {
  std::vector<float> out(n);
  decode_floats(encoding, bytes.data(), n, out.data());
  return out;
}

std::vector<std::byte> encode_floats(DType dtype, std::span<const float> values) {
  if (dtype == DType::kF32) {
    const auto bytes = std::as_bytes(values);
    return {bytes.begin(), bytes.end()};
  }
  if (dtype != DType::kF16 && dtype != DType::kBF16)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("expected f32, f16 or bf16, got {}", to_string(dtype)));
  std::vector<std::byte> out(values.size() * 2);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t h = dtype == DType::kF16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
    if (dtype == DType::kF16 && (h & 0x7fffu) == 0x7c00u && std::isfinite(values[i]))
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("value {} is beyond f16's range; bf16 and f32 would do", values[i]));
    std::memcpy(out.data() + 2 * i, &h, sizeof(h));
  }
  return out;
}

std::int64_t reordered_row(std::int64_t row, std::int64_t head_dim, RowOrder order) noexcept {
  const std::int64_t head = row / head_dim * head_dim, in_head = row % head_dim, half = head_dim / 2;
  if (order == RowOrder::kToRotateHalf) return head + 2 * (in_head % half) + in_head / half;
  return head + in_head % 2 * half + in_head / 2;
}

std::vector<std::byte> reorder_rows(std::span<const std::byte> bytes, std::size_t row_bytes,
                                    std::int64_t head_dim, RowOrder order) {
  const auto d = static_cast<std::size_t>(head_dim);
  if (d < 2 || d % 2 != 0 || row_bytes == 0 || bytes.size() % (row_bytes * d) != 0)
    throw Error(ErrorCode::kCorruptFile,
                fmt::format("expected rows in multiples of an even head_dim, got {} bytes "
                            "in rows of {} and head_dim {}",
                            bytes.size(), row_bytes, head_dim));
  std::vector<std::byte> out(bytes.size());
  for (std::size_t row = 0; row < bytes.size() / row_bytes; ++row) {
    const auto from =
        static_cast<std::size_t>(reordered_row(static_cast<std::int64_t>(row), head_dim, order));
    std::memcpy(out.data() + row * row_bytes, bytes.data() + from * row_bytes, row_bytes);
  }
  return out;
}

void reorder_scales(std::vector<float>& scales, std::int64_t& rows_per_scale, std::int64_t rows,
                    std::int64_t head_dim, RowOrder order, std::int64_t groups) {
  // Scales of whole heads stay where they are; those of rows inside a head move with their rows.
  if (scales.size() <= 1 || rows_per_scale % head_dim == 0) return;
  std::vector<float> moved;
  for (std::int64_t r = 0; r < rows; ++r) {
    const auto first = scales.begin() + reordered_row(r, head_dim, order) / rows_per_scale * groups;
    moved.insert(moved.end(), first, first + groups);
  }
  scales = std::move(moved);
  rows_per_scale = 1;
}

void reorder_rows(TernaryWeights& w, std::int64_t head_dim, RowOrder order) {
  const auto in = static_cast<std::size_t>(w.in);
  const auto trits = reorder_rows(std::as_bytes(std::span(w.trits)), in, head_dim, order);
  std::memcpy(w.trits.data(), trits.data(), trits.size());
  const std::int64_t groups = w.cols_per_scale == 0 ? 1 : (w.in - 1) / w.cols_per_scale + 1;
  reorder_scales(w.scales, w.rows_per_scale, w.out, head_dim, order, groups);
}

std::string implausible_scale(std::string_view name, float scale) {
  // mean|W| of public models is 0.005 … 3, its inverse up to 200.
  if (scale >= 1e-4f && scale <= 16.0f) return {};
  return fmt::format(
      "tensor '{}': scale {} is implausible for mean|W|: is its direction (multiply or divide) right?", name,
      scale);
}

}  // namespace bitnet::quant::model_io
