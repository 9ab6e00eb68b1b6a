// Export: which files, and latent weights → trits and scales, tensor by tensor.
#include "bitnet/training/export.hpp"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "bitnet/core/error.hpp"
#include "bitnet/training/fake_quant.hpp"

namespace bitnet::training {
namespace {

/// Whether trits and scales are what quant::absmean makes of the latent weights.
bool plain(const QuantizerOptions& q) {
  return q.granularity == ScaleGranularity::kTensor && q.statistic == ScaleStatistic::kMean &&
         q.gradient != StraightThrough::kLearnedScale;
}

}  // namespace

quant::LogicalTensor export_tensor(LanguageModel& model, TensorId id, bool latent) {
  const auto ids = model.tensor_ids();
  const auto it = std::find(ids.begin(), ids.end(), id);
  if (it == ids.end()) throw Error(ErrorCode::kInvalidArgument, "the model has no such tensor");
  const Parameter& p = *model.parameters()[static_cast<std::size_t>(it - ids.begin())];
  quant::LogicalTensor t;
  t.id = id;
  t.shape = tensor_shape(id, model.config());
  if (is_linear(id.role) && model.quantization() == Quantization::kTernary && !latent) {
    t.ternary = true;
    const QuantizerOptions& q = model.quantizer();
    if (q.activation_bits == 4) t.activations = ActivationForm::kInt4Absmax;
    if (plain(q)) {
      t.weights = with_context(p.name(), [&] { return quant::absmean(p.value(), p.rows(), p.cols()); });
      for (float& scale : t.weights.scales) scale = invertible_scale(scale);
    } else {
      t.weights = with_context(p.name(), [&] { return model.linear(id)->ternary()->weights(); });
    }
  } else {
    t.dense.resize(p.value().size_bytes());
    std::memcpy(t.dense.data(), p.value().data(), t.dense.size());
  }
  return t;
}

ModelFiles model_files(const ModelConfig& c, Quantization quantization, const QuantizerOptions& q) {
  ModelFiles files;
  const std::int64_t widths[] = {c.hidden_size, c.q_dim(), c.intermediate_size};  // columns of linears
  const bool whole =
      std::all_of(std::begin(widths), std::end(widths), [](std::int64_t w) { return w % kScaleGroup == 0; });
  if (quantization == Quantization::kNone) {
    files = {true, true, quant::LinearType::kDense, ""};
  } else if (q.hadamard) {
    files.reason = "no file format says that inputs are transformed before they are quantised (hadamard)";
  } else if (q.granularity == ScaleGranularity::kGroup &&
             std::any_of(std::begin(widths), std::end(widths),
                         [](std::int64_t w) { return w > kScaleGroup && w % kScaleGroup != 0; })) {
    files.reason = "no file format holds groups of " + std::to_string(kScaleGroup) +
                   " columns of which the last in a row is shorter";
  } else if (q.activation_bits != 8) {
    files = {true, false, quant::LinearType::kExtended,
             "GGUF does not say that activations have " + std::to_string(q.activation_bits) + " bits"};
  } else if (q.granularity != ScaleGranularity::kTensor) {
    files = {
        true, false, quant::LinearType::kExtended,
        "I2_S holds one scale a tensor, and these have scales by " + std::string(to_string(q.granularity))};
  } else if (!whole) {
    files = {true, false, quant::LinearType::kHf, "I2_S holds columns in multiples of 128 only"};
  } else {
    files = {true, true, quant::LinearType::kHf, ""};
  }
  return files;
}

void export_model(const std::filesystem::path& path, LanguageModel& model, const Tokenizer* tokenizer,
                  const quant::WriteOptions& options) {
  ModelConfig config = model.config();
  config.weights = model.quantization() == Quantization::kNone ? WeightKind::kDense : WeightKind::kTernary;
  if (model.quantization() == Quantization::kNone && options.type != quant::LinearType::kDense)
    throw Error(ErrorCode::kUnsupported,
                "this model was trained in full precision: export it dense, or quantise the export");
  const QuantizerOptions& q = model.quantizer();
  if (model.quantization() == Quantization::kTernary) {
    const ModelFiles files = model_files(model.config(), model.quantization(), q);
    if (!files.directory)
      throw Error(ErrorCode::kUnsupported, "this model cannot be exported: " + files.reason);
    if (options.type == quant::LinearType::kDense && (!plain(q) || q.activation_bits != 8))
      throw Error(
          ErrorCode::kUnsupported,
          "readers ternarise float weights by one mean a tensor and activations to 8 bits, which is not this "
          "model's quantiser: "
          "export it as kExtended");
  }
  const bool latent = options.type == quant::LinearType::kDense;
  quant::write_model(
      path, config, tokenizer, [&](TensorId id) { return export_tensor(model, id, latent); }, options);
}

}  // namespace bitnet::training
