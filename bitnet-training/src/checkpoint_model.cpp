// Metadata of a checkpoint → ModelConfig; its weights → logical tensors, one at a time.
#include "bitnet/training/checkpoint_model.hpp"

#include <cstring>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/training/export.hpp"
#include "bitnet/training/fake_quant.hpp"
#include "checkpoint_file.hpp"
#include "run_export.hpp"
#include "run_identity.hpp"

namespace bitnet::training {
namespace {

using Fields = std::map<std::string, std::string>;

/// The shape that TextModel::identity() describes.
ModelConfig config_of(const Fields& fields) {
  ModelConfig c;
  c.architecture = "bitnet-b1.58";
  c.vocab_size = checkpoint_field<std::int64_t>(fields, "model.vocab_size");
  c.hidden_size = checkpoint_field<std::int64_t>(fields, "model.hidden_size");
  c.intermediate_size = checkpoint_field<std::int64_t>(fields, "model.intermediate_size");
  c.n_layers = checkpoint_field<std::int64_t>(fields, "model.layers");
  c.n_heads = checkpoint_field<std::int64_t>(fields, "model.heads");
  c.n_kv_heads = checkpoint_field<std::int64_t>(fields, "model.kv_heads");
  c.head_dim = checkpoint_field<std::int64_t>(fields, "model.head_dim");
  c.max_position = checkpoint_field<std::int64_t>(fields, "model.context");
  // The identity has six digits, files of version 3 all of them.
  const auto exact = [&](const std::string& key) {
    return checkpoint_field<double>(fields,
                                    fields.contains("config." + key) ? "config." + key : "model." + key);
  };
  c.rope_theta = exact("rope_theta");
  c.rms_norm_eps = static_cast<float>(exact("rms_norm_eps"));
  if (const auto it = fields.find("model.activation"); it != fields.end() && it->second == "silu")
    c.activation = Activation::kSilu;
  c.tied_embeddings = !fields.contains("model.tied_embeddings");
  c.weights = fields.contains("model.quantization") && fields.at("model.quantization") == "ternary"
                  ? WeightKind::kTernary
                  : WeightKind::kDense;
  c.validate();
  return c;
}

QuantizerOptions quantizer_of(const Fields& fields) {
  const auto it = fields.find("identity.model's quantiser");
  return it == fields.end() ? QuantizerOptions() : described_quantizer(it->second);
}

/// Tensor `name` of `count` f32. Throws Error(kCorruptFile) where there is none.
std::span<const std::byte> floats_of(const SafeTensors& file, const std::string& name, std::uint64_t count) {
  const SafeTensorInfo* info = file.find(name);
  if (!info || info->dtype != SafeDType::kF32 || info->end - info->begin != 4 * count)
    throw Error(ErrorCode::kCorruptFile, "tensor '" + name + "' is missing or has another size");
  return file.data(*info);
}

std::vector<float> copied(std::span<const std::byte> bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace

bool is_checkpoint(const std::filesystem::path& path) noexcept {
  try {
    if (!std::filesystem::is_regular_file(path) || path.extension() != ".safetensors") return false;
    const auto file = SafeTensors::open(path);
    const auto it = file->metadata().find("format");
    return it != file->metadata().end() && it->second == kCheckpointFormat;
  } catch (...) {
    return false;
  }
}

void export_checkpoint(const ExecutionContext& context, const std::filesystem::path& checkpoint,
                       const std::filesystem::path& to, const Tokenizer& tokenizer) {
  with_context("checkpoint '" + checkpoint.string() + "'", [&] {
    const auto file = SafeTensors::open(checkpoint);
    const Fields& fields = file->metadata();
    check_checkpoint(*file);
    if (fields.contains("lora.rank"))
      throw Error(
          ErrorCode::kUnsupported,
          "no model can be made of this checkpoint: it holds an adapter's factors and not the base; use "
          "the base with the adapter/ that the run writes");
    ModelConfig config = config_of(fields);
    if (tokenizer.vocab_size() > config.vocab_size)
      throw Error(ErrorCode::kInvalidArgument, "the tokenizer has " + std::to_string(tokenizer.vocab_size()) +
                                                   " tokens, the model " + std::to_string(config.vocab_size) +
                                                   ": it is that of another model");
    if (const auto at = fields.find(std::string("identity.") + kVocabulary);
        at != fields.end() && at->second != vocabulary_hash(tokenizer))
      throw Error(ErrorCode::kInvalidArgument,
                  "the tokenizer is not that of the run: its tokens have the hash " +
                      vocabulary_hash(tokenizer) + ", those of the checkpoint " + at->second);
    config.bos_id = tokenizer.bos().value_or(-1);
    config.eos_ids.assign(tokenizer.eos().begin(), tokenizer.eos().end());
    const bool ternary = config.weights == WeightKind::kTernary;
    const QuantizerOptions quantizer = quantizer_of(fields);
    const ModelFiles files =
        model_files(config, ternary ? Quantization::kTernary : Quantization::kNone, quantizer);
    if (!files.directory)
      throw Error(ErrorCode::kUnsupported, "no model can be made of this checkpoint: " + files.reason);
    const quant::WriteOptions options = directory_options(files);
    const bool learned = quantizer.gradient == StraightThrough::kLearnedScale;
    quant::write_model(
        to, config, &tokenizer,
        [&](TensorId id) {
          const std::string name = "weights/" + hf_name(id, config.family);
          quant::LogicalTensor t;
          t.id = id;
          t.shape = tensor_shape(id, config);
          const auto bytes = floats_of(*file, name, static_cast<std::uint64_t>(t.shape.numel()));
          if (!ternary || !is_linear(id.role)) {
            t.dense.assign(bytes.begin(), bytes.end());
            return t;
          }
          TernaryCache cache(context, t.shape[0], t.shape[1], quantizer);
          const auto scales = learned ? copied(floats_of(*file, name + ".scale", cache.scales().size()))
                                      : std::vector<float>();
          with_context(name, [&] { cache.update(context, copied(bytes), 1, scales); });
          t.ternary = true;
          t.weights = cache.weights();
          return t;
        },
        options);
  });
}

}  // namespace bitnet::training
