// write_model: the checks that need no tensor, then one of the two writers; and what they share.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/linear_types.hpp"
#include "model_io/stored_tensor.hpp"
#include "model_io/writer_base.hpp"

namespace bitnet::quant {
namespace model_io {
namespace {

/// The types of linears whose columns all fit, for messages.
std::string types_that_fit(const ModelConfig& config) {
  std::string out = "hf";
  const auto all = [&](std::int64_t multiple) {
    for (const TensorId id : model_tensors(config))
      if (is_linear(id.role) && tensor_shape(id, config)[1] % multiple != 0) return false;
    return true;
  };
  if (all(128)) out += ", i2_s";
  if (all(256)) out += ", tq1_0, tq2_0";
  return out;
}

void check_columns(const ModelConfig& config, LinearType type) {
  const std::int64_t multiple = type == LinearType::kI2_S                                  ? 128
                                : type == LinearType::kTQ1_0 || type == LinearType::kTQ2_0 ? 256
                                                                                           : 1;
  for (const TensorId id : model_tensors(config)) {
    if (!is_linear(id.role) || tensor_shape(id, config)[1] % multiple == 0) continue;
    throw Error(
        ErrorCode::kUnsupported,
        fmt::format("tensor '{}' has {} columns; {} holds multiples of {} only; types that would do: {}",
                    gguf_name(id), tensor_shape(id, config)[1], to_string(type), multiple,
                    types_that_fit(config)));
  }
}

}  // namespace

LogicalTensor take(const Source& source, TensorId id, const ModelConfig& config, bool ternary) {
  LogicalTensor t = source(id);
  return with_context(fmt::format("tensor '{}'", gguf_name(id)), [&] {
    const Shape shape = tensor_shape(id, config);
    if (t.planes || t.int8)
      throw Error(ErrorCode::kUnsupported, fmt::format("a linear {} is held by the type extended alone",
                                                       t.int8 ? "of int8" : "of two planes"));
    if (t.activations != ActivationForm::kInt8)
      throw Error(ErrorCode::kUnsupported, "activations of 4 bits are held by the type extended alone");
    if (!is_linear(id.role) && t.ternary)
      throw Error(ErrorCode::kInvalidArgument, "expected dense values: only the linears are ternary");
    if (is_linear(id.role) && ternary && !t.ternary)
      throw Error(ErrorCode::kInvalidArgument,
                  "expected ternary weights; dense ones must be quantised first (absmean)");
    if (is_linear(id.role) && !ternary && t.ternary)
      throw Error(
          ErrorCode::kUnsupported,
          "ternary weights are not written as floats, which would round their scale; types that would do: " +
              types_that_fit(config));
    const auto n = static_cast<std::size_t>(shape.numel());
    const bool fits =
        t.ternary ? t.weights.out == shape[0] && t.weights.in == shape[1] && t.weights.trits.size() == n
                  : t.dense.size() == n * bits_of(t.dtype) / 8;
    if (!(t.shape == shape) || !fits)
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("expected shape {}, got {} with {} values", shape.to_string(),
                              t.shape.to_string(), t.ternary ? t.weights.trits.size() : t.dense.size()));
    return std::move(t);
  });
}

std::vector<std::byte> as_dtype(LogicalTensor&& t, DType dtype) {
  std::vector<std::byte> bytes = std::move(t.dense);
  if (t.dtype == dtype) return bytes;
  constexpr std::size_t kStep = std::size_t{1} << 16;  // values at a time
  const std::size_t from = bits_of(t.dtype) / 8, to = bits_of(dtype) / 8, n = bytes.size() / from;
  const Encoding encoding = t.dtype == DType::kF16    ? Encoding::kF16
                            : t.dtype == DType::kBF16 ? Encoding::kBF16
                                                      : Encoding::kF32;
  std::vector<float> values(std::min(kStep, n));
  const auto convert = [&](std::size_t i) {
    const std::size_t m = std::min(kStep, n - i);
    decode_floats(encoding, bytes.data() + i * from, m, values.data());
    const std::vector<std::byte> made = encode_floats(dtype, std::span(values).first(m));
    std::copy(made.begin(), made.end(), bytes.begin() + static_cast<std::ptrdiff_t>(i * to));
  };
  // In place: what is written never reaches what is still to be read, from the front where values become
  // smaller, from the back where they grow.
  if (to <= from) {
    for (std::size_t i = 0; i < n; i += kStep) convert(i);
    bytes.resize(n * to);
  } else {
    bytes.resize(n * to);
    for (std::size_t i = (n + kStep - 1) / kStep; i-- > 0;) convert(i * kStep);
  }
  return bytes;
}

DType dense_dtype(TensorId id, const WriteOptions& options) {
  return is_norm(id.role) ? options.norm_type : options.dense_type;
}

namespace {

/// Trits packed four rows a byte with f32 scales (docs/formats/extended.md).
std::uint64_t plane_bytes(const TernaryWeights& w) {
  const std::int64_t scales = w.cols_per_scale != 0       ? w.out * (w.in / w.cols_per_scale)
                              : w.rows_per_scale >= w.out ? 1
                                                          : w.out;
  return static_cast<std::uint64_t>((w.out + 3) / 4 * w.in + 4 * scales);
}

std::uint64_t extended_bytes(const LogicalTensor& t, DType floats) {
  const std::uint64_t form = t.activations != ActivationForm::kInt8 ? 1 : 0;
  if (t.ternary) return plane_bytes(t.weights) + form;
  if (t.planes) return plane_bytes(t.planes->first) + plane_bytes(t.planes->second) + form;
  const auto cells = static_cast<std::uint64_t>(t.shape.numel());
  if (t.int8) return cells + 4 * static_cast<std::uint64_t>(t.shape[0]) + form;
  return cells * bits_of(floats) / 8;
}

}  // namespace

std::uint64_t linear_bytes(const LogicalTensor& t, LinearType type, DType floats) {
  const auto layout = layout_of(type);
  if (!t.ternary || !layout) return extended_bytes(t, floats);
  const std::uint64_t scale = type == LinearType::kHf ? sizeof(float) : 0;  // elsewhere in the layout
  return packed_bytes(*layout, t.shape[0], t.shape[1]) + scale;
}

}  // namespace model_io

namespace {

ModelConfig written_config(const ModelConfig& config, const WriteOptions& options) {
  ModelConfig written = config;
  if (options.type != LinearType::kDense) written.weights = WeightKind::kTernary;
  if (options.type == LinearType::kExtended)
    written.weights = WeightKind::kDense;  // each tensor says what it is
  return written;
}

bool is_directory_of_files(const WriteOptions& options) {
  return options.type == LinearType::kHf || options.type == LinearType::kExtended ||
         (options.type == LinearType::kDense && !options.gguf);
}

void check(const std::filesystem::path& path, const ModelConfig& written, const Tokenizer* tokenizer,
           const WriteOptions& options) {
  written.validate();
  for (const DType dtype : {options.dense_type, options.norm_type})
    if (dtype != DType::kF32 && dtype != DType::kF16 && dtype != DType::kBF16)
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("expected f32, f16 or bf16, got {}", to_string(dtype)));
  if (written.input_norms)
    throw Error(ErrorCode::kUnsupported, "a norm before each linear (use_rms_norm) is not supported");
  if (tokenizer && tokenizer->vocab_size() > written.vocab_size)
    throw Error(ErrorCode::kInvalidArgument, fmt::format("the tokenizer has {} tokens, the model {}",
                                                         tokenizer->vocab_size(), written.vocab_size));
  model_io::check_columns(written, options.type);
  if (is_directory_of_files(options)) model_io::check_hf_place(path, written, options);
}

}  // namespace

void check_write(const std::filesystem::path& path, const ModelConfig& config, const Tokenizer* tokenizer,
                 const WriteOptions& options) {
  with_context(fmt::format("writing model '{}'", path.string()),
               [&] { check(path, written_config(config, options), tokenizer, options); });
}

void write_model(const std::filesystem::path& path, const ModelConfig& config, const Tokenizer* tokenizer,
                 const std::function<LogicalTensor(TensorId)>& source, const WriteOptions& options) {
  with_context(fmt::format("writing model '{}'", path.string()), [&] {
    const ModelConfig written = written_config(config, options);
    check(path, written, tokenizer, options);
    if (is_directory_of_files(options))
      model_io::write_hf(path, written, tokenizer, source, options);
    else
      model_io::write_gguf(path, written, tokenizer, source, options);
  });
}

}  // namespace bitnet::quant
