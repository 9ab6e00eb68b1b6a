// Export: latent weights → trits and scale, tensor by tensor.
#include "bitnet/training/export.hpp"

#include <algorithm>
#include <cstring>

#include "bitnet/core/error.hpp"
#include "bitnet/training/fake_quant.hpp"

namespace bitnet::training {

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
    if (q.granularity == ScaleGranularity::kTensor && q.statistic == ScaleStatistic::kMean &&
        q.gradient != StraightThrough::kLearnedScale) {
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

void export_model(const std::filesystem::path& path, LanguageModel& model, const Tokenizer* tokenizer,
                  const quant::WriteOptions& options) {
  if (model.quantization() == Quantization::kNone && options.type != quant::LinearType::kDense)
    throw Error(ErrorCode::kUnsupported,
                "this model was trained in full precision: export it dense, or quantise it afterwards");
  const QuantizerOptions& q = model.quantizer();
  if (model.quantization() == Quantization::kTernary && (q.hadamard || q.activation_bits != 8))
    throw Error(
        ErrorCode::kUnsupported,
        "no file format says that activations have 4 bits or are transformed before they are quantised");
  const bool latent = options.type == quant::LinearType::kDense;
  quant::write_model(
      path, model.config(), tokenizer, [&](TensorId id) { return export_tensor(model, id, latent); },
      options);
}

}  // namespace bitnet::training
