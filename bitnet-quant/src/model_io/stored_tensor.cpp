// Decoding of stored tensors: float types, ggml's Q8_0 and Q6_K blocks, ternary layouts (packing.hpp) and row
// orders.
#include "model_io/stored_tensor.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "bitnet/core/error.hpp"

namespace bitnet::quant::model_io {
namespace {

TernaryLayout layout_of(Encoding e) {
  switch (e) {
    case Encoding::kHfUint8:
      return TernaryLayout::kHfUint8;
    case Encoding::kI2_S:
      return TernaryLayout::kI2_S;
    case Encoding::kTQ1_0:
      return TernaryLayout::kTQ1_0;
    case Encoding::kTQ2_0:
      return TernaryLayout::kTQ2_0;
    default:
      throw Error(ErrorCode::kInternal, "layout_of: not a packed encoding");
  }
}

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

DType dtype_of(Encoding e) {
  return e == Encoding::kF16 ? DType::kF16 : e == Encoding::kBF16 ? DType::kBF16 : DType::kF32;
}

LogicalTensor decode_packed(const StoredTensor& stored, const Shape& shape) {
  LogicalTensor t;
  t.ternary = true;
  t.weights = unpack(layout_of(stored.encoding), stored.bytes, shape[0], shape[1]);
  if (stored.encoding == Encoding::kHfUint8) {
    t.weights.scales = {stored.scale.value()};
    t.weights.rows_per_scale = t.weights.out;
  } else if (stored.scale) {
    for (float& s : t.weights.scales) s *= *stored.scale;
  }
  return t;
}

/// Trits × one scale that were stored as floats (converters write the dequantised weights): the trits and
/// that scale, where absmean would multiply it by the density. Absent for any other weights.
std::optional<TernaryWeights> stored_trits(std::span<const float> w, DType type, const Shape& shape) {
  float least = std::numeric_limits<float>::infinity(), most = 0;
  bool finite = true;
  for (const float v : w) {
    const float a = std::fabs(v);
    finite &= std::isfinite(a);
    most = std::max(most, a);
    least = a > 0 ? std::min(least, a) : least;
  }
  // One unit in the last place of the stored type, at most.
  const float unit = type == DType::kF32 ? 0x1p-23f : type == DType::kF16 ? 0x1p-10f : 0x1p-7f;
  if (!finite || most == 0 || most - least > least * unit) return std::nullopt;
  TernaryWeights out{
      .out = shape[0], .in = shape[1], .trits = {}, .scales = {most}, .rows_per_scale = shape[0]};
  out.trits.reserve(w.size());
  for (const float v : w) out.trits.push_back(static_cast<std::int8_t>(int{v > 0} - int{v < 0}));
  return out;
}

LogicalTensor decode_dense(const StoredTensor& stored, const Shape& shape) {
  LogicalTensor t;
  const auto n = static_cast<std::size_t>(shape.numel());
  if (stored.ternarise) {
    t.ternary = true;
    const std::vector<float> values = decode_floats(stored.encoding, stored.bytes, n);
    auto trits = stored_trits(values, dtype_of(stored.encoding), shape);
    t.weights = trits ? std::move(*trits) : absmean(values, shape[0], shape[1]);
    if (stored.scale) t.weights.scales[0] *= *stored.scale;
    return t;
  }
  t.dtype = dense_type(stored);
  if (stored.scale || stored.encoding == Encoding::kQ8_0 || stored.encoding == Encoding::kQ6_K) {
    std::vector<float> values = decode_floats(stored.encoding, stored.bytes, n);
    for (float& v : values) v *= stored.scale.value_or(1.0f);
    t.dense = encode_floats(DType::kF32, values);
  } else {
    t.dense.assign(stored.bytes.begin(), stored.bytes.end());
  }
  return t;
}

}  // namespace

DType dense_type(const StoredTensor& stored) noexcept {
  return stored.scale ? DType::kF32 : dtype_of(stored.encoding);
}

std::vector<float> decode_floats(Encoding encoding, std::span<const std::byte> bytes, std::size_t n) {
  std::vector<float> out(n);
  const std::byte* p = bytes.data();
  switch (encoding) {
    case Encoding::kF32:
      if (n > 0) std::memcpy(out.data(), p, n * sizeof(float));
      break;
    case Encoding::kF16:
      for (std::size_t i = 0; i < n; ++i) out[i] = f16_to_f32(half_at(p + 2 * i));
      break;
    case Encoding::kBF16:
      for (std::size_t i = 0; i < n; ++i) out[i] = bf16_to_f32(half_at(p + 2 * i));
      break;
    case Encoding::kQ8_0:
      for (std::size_t i = 0; i + 32 <= n; i += 32) decode_q8_0(p + i / 32 * 34, out.data() + i);
      break;
    case Encoding::kQ6_K:
      for (std::size_t i = 0; i + 256 <= n; i += 256) decode_q6_k(p + i / 256 * 210, out.data() + i);
      break;
    default:
      throw Error(ErrorCode::kInternal, "decode_floats: packed encoding");
  }
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
    const std::size_t head = row / d * d, in_head = row % d;
    // `row` is rotate-half's; its place in the interleaved order:
    const std::size_t pair = head + 2 * (in_head % (d / 2)) + in_head / (d / 2);
    const std::size_t from = order == RowOrder::kToInterleaved ? row : pair, to = row + pair - from;
    std::memcpy(out.data() + to * row_bytes, bytes.data() + from * row_bytes, row_bytes);
  }
  return out;
}

void reorder_rows(TernaryWeights& w, std::int64_t head_dim, RowOrder order) {
  const auto in = static_cast<std::size_t>(w.in);
  const auto trits = reorder_rows(std::as_bytes(std::span(w.trits)), in, head_dim, order);
  std::memcpy(w.trits.data(), trits.data(), trits.size());
  // Scales of whole heads stay where they are; those of rows inside a head move with their rows.
  if (w.scales.size() <= 1 || w.rows_per_scale % head_dim == 0) return;
  std::vector<float> rows(static_cast<std::size_t>(w.out));
  for (std::size_t r = 0; r < rows.size(); ++r)
    rows[r] = w.scales[r / static_cast<std::size_t>(w.rows_per_scale)];
  const auto moved = reorder_rows(std::as_bytes(std::span(rows)), sizeof(float), head_dim, order);
  w.scales.resize(rows.size());
  std::memcpy(w.scales.data(), moved.data(), moved.size());
  w.rows_per_scale = 1;
}

std::string implausible_scale(std::string_view name, float scale) {
  // mean|W| of public models is 0.005 … 3, its inverse up to 200.
  if (scale >= 1e-4f && scale <= 16.0f) return {};
  return fmt::format(
      "tensor '{}': scale {} is implausible for mean|W|: is its direction (multiply or divide) right?", name,
      scale);
}

LogicalTensor decode(const StoredTensor& stored, TensorId id, const Shape& shape) {
  try {
    LogicalTensor t = is_packed(stored.encoding) ? decode_packed(stored, shape) : decode_dense(stored, shape);
    t.id = id;
    t.shape = shape;
    if (stored.interleaved_head != 0) {
      if (t.ternary) {
        reorder_rows(t.weights, stored.interleaved_head, RowOrder::kToRotateHalf);
      } else {
        const std::size_t row_bytes = static_cast<std::size_t>(shape[1]) * bits_of(t.dtype) / 8;
        t.dense = reorder_rows(t.dense, row_bytes, stored.interleaved_head, RowOrder::kToRotateHalf);
      }
    }
    for (const float s : t.weights.scales)
      if (!std::isfinite(s) || s < 0)
        throw Error(ErrorCode::kCorruptFile, fmt::format("expected a finite scale of at least 0, got {}", s));
    return t;
  } catch (const Error& e) {
    // absmean calls bad weights an invalid argument; here they come from a file.
    const auto code = e.code() == ErrorCode::kInvalidArgument ? ErrorCode::kCorruptFile : e.code();
    throw Error(code, fmt::format("tensor '{}': {}", stored.name, e.what()), e.where());
  }
}

}  // namespace bitnet::quant::model_io
