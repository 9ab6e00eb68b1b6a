// GGUF files of whole models: keys, then tensors in model_tensors() order.
#include <fmt/format.h>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "bitnet/quant/linear_types.hpp"
#include "model_io/stored_tensor.hpp"
#include "model_io/writer_base.hpp"

namespace bitnet::quant::model_io {
namespace {

struct TypeRow {
  LinearType type;
  GgmlType ggml;
  std::uint32_t file_type;  // general.file_type
};
constexpr TypeRow kTypes[] = {
    {LinearType::kI2_S, GgmlType::kI2_S, 40},
    {LinearType::kTQ1_0, GgmlType::kTQ1_0, 36},
    {LinearType::kTQ2_0, GgmlType::kTQ2_0, 37},
};

const TypeRow* row_of(LinearType type) {
  for (const TypeRow& row : kTypes)
    if (row.type == type) return &row;
  return nullptr;  // dense
}

GgmlType ggml_type(DType dtype) {
  return dtype == DType::kF32 ? GgmlType::kF32 : dtype == DType::kF16 ? GgmlType::kF16 : GgmlType::kBF16;
}

/// llama.cpp's LLAMA_FTYPE of a file whose tensors are mostly of this type.
std::uint32_t dense_file_type(DType dtype) {
  return dtype == DType::kF32 ? 0 : dtype == DType::kF16 ? 1 : 32;
}

/// The tokenizer's end of text, which encoding may append, takes the first key; where the configuration's
/// first is another, its ids get a key of their own.
void keep_eos_ids(const ModelConfig& config, GgufMetadata& metadata) {
  const std::vector<std::int64_t>& ids = config.eos_ids;
  if (ids.empty() || metadata.integer("tokenizer.ggml.eos_token_id") == ids[0]) return;
  metadata.set_u32("tokenizer.ggml.eot_token_id", static_cast<std::uint32_t>(ids[0]));
  metadata.set_i32s("tokenizer.ggml.eos_token_ids", std::vector<std::int32_t>(ids.begin(), ids.end()));
}

GgufMetadata metadata_of(const std::filesystem::path& path, const ModelConfig& config,
                         const Tokenizer* tokenizer, const WriteOptions& options) {
  GgufMetadata metadata;
  config.to_gguf(metadata);
  const TypeRow* row = row_of(options.type);
  metadata.set_string("general.name", path.stem().string());
  metadata.set_u32("general.file_type", row ? row->file_type : dense_file_type(options.dense_type));
  metadata.set_u32("general.quantization_version", 2);
  if (!tokenizer) return metadata;
  tokenizer->to_gguf(metadata);
  keep_eos_ids(config, metadata);
  return metadata;
}

std::vector<GgufTensorInfo> declare(const ModelConfig& config, const WriteOptions& options) {
  std::vector<GgufTensorInfo> out;
  const TypeRow* row = row_of(options.type);
  for (const TensorId id : model_tensors(config)) {
    const Shape shape = tensor_shape(id, config);
    GgufTensorInfo info;
    info.name = gguf_name(id);
    info.dims.assign(shape.dims().rbegin(), shape.dims().rend());
    info.type = row && is_linear(id.role) ? row->ggml : ggml_type(dense_dtype(id, options));
    out.push_back(std::move(info));
  }
  return out;
}

std::vector<std::byte> bytes_of_tensor(LogicalTensor t, const ModelConfig& config,
                                       const WriteOptions& options) {
  const bool rotary = t.id.role == TensorRole::kAttnQ || t.id.role == TensorRole::kAttnK;
  const bool interleave = rotary && config.family == ModelFamily::kLlama;
  if (t.ternary) {
    if (interleave) reorder_rows(t.weights, config.head_dim, RowOrder::kToInterleaved);
    return pack(layout_of(options.type).value(), t.weights);
  }
  const DType dtype = dense_dtype(t.id, options);
  const auto columns = static_cast<std::size_t>(t.shape.dims().back());
  std::vector<std::byte> bytes = as_dtype(std::move(t), dtype);
  if (!interleave) return bytes;
  const std::size_t row_bytes = columns * bits_of(dtype) / 8;
  return reorder_rows(bytes, row_bytes, config.head_dim, RowOrder::kToInterleaved);
}

}  // namespace

void write_gguf(const std::filesystem::path& path, const ModelConfig& config, const Tokenizer* tokenizer,
                const Source& source, const WriteOptions& options) {
  GgufWriter writer(path, metadata_of(path, config, tokenizer, options), declare(config, options));
  for (const TensorId id : model_tensors(config)) {
    const std::string name = gguf_name(id);
    LogicalTensor t = take(source, id, config, row_of(options.type) != nullptr);
    t.id = id;
    with_context(fmt::format("tensor '{}'", name),
                 [&] { writer.write(name, bytes_of_tensor(std::move(t), config, options)); });
  }
  writer.finish();
}

}  // namespace bitnet::quant::model_io
