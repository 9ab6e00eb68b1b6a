// Files → latent weights.
#include "bitnet/training/sub_norms.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/training/fake_quant.hpp"

namespace bitnet::training {

ModelConfig with_sub_norms(const ModelConfig& config) {
  if (config.input_norms)
    throw Error(ErrorCode::kUnsupported,
                "a model with a norm before each linear (use_rms_norm) cannot be trained");
  ModelConfig c = config;
  c.family = ModelFamily::kBitNet25;
  c.sub_norms = true;
  c.weights = WeightKind::kTernary;
  c.architecture = "bitnet-b1.58";
  return c;
}

namespace {

/// Scales of a ternary linear as a quantiser's; nothing where it has none like these.
std::optional<ScaleGranularity> granularity_of(std::size_t scales, std::int64_t cols_per_scale,
                                               std::int64_t in) {
  if (cols_per_scale != 0 && cols_per_scale != in)
    return cols_per_scale % kScaleGroup == 0 ? std::optional(ScaleGranularity::kGroup) : std::nullopt;
  return scales == 1 ? ScaleGranularity::kTensor : ScaleGranularity::kRow;
}

void check_shape(const LanguageModel& model, const quant::ModelReader& reader) {
  ModelConfig theirs = with_sub_norms(reader.config());
  theirs.max_position = model.config().max_position;  // how long sequences are changes no weight
  const auto want = identity_of_shape(model.config()), have = identity_of_shape(theirs);
  for (const auto& [key, value] : want)
    if (have.at(key) != value)
      throw Error(ErrorCode::kInvalidArgument,
                  "weights of another shape: " + key + " is " + have.at(key) + ", the model's " + value);
  if (theirs.activation != model.config().activation ||
      theirs.tied_embeddings != model.config().tied_embeddings)
    throw Error(ErrorCode::kInvalidArgument,
                "weights of another shape: the activation differs, or whether the head is tied");
}

void take_floats(const quant::LogicalTensor& t, Parameter& p) {
  const std::vector<float> values = t.to_f32();
  if (values.size() != p.value().size())
    throw Error(ErrorCode::kInvalidArgument,
                std::to_string(values.size()) + " values, expected " + std::to_string(p.value().size()));
  std::copy(values.begin(), values.end(), p.value().begin());
}

/// Latent weights of the original, learned scales of the base where it has them.
void take_original(const quant::LogicalTensor& original, const quant::LogicalTensor& base, BitLinear& to) {
  if (original.ternary || original.planes || original.int8)
    throw Error(ErrorCode::kInvalidArgument,
                "the original is quantised itself: a model in full precision is needed");
  take_floats(original, to.weight());
  if (!to.scale() || !base.ternary || !holds_scales(base.weights, to.ternary()->options())) return;
  const std::span<float> scales = to.scale()->value();
  for (std::size_t i = 0; i < scales.size(); ++i)
    scales[i] = base.weights.scales[i / (scales.size() / base.weights.scales.size())];
}

}  // namespace

BaseLinears base_linears(const quant::ModelReader& reader, std::optional<ScaleGranularity> granularity) {
  BaseLinears b;
  b.latent = reader.config().weights == WeightKind::kTernary;
  std::vector<std::optional<ScaleGranularity>> ternary;
  bool whole = true;  // groups of kScaleGroup fill every row
  for (const TensorId id : reader.tensors()) {
    if (!is_linear(id.role)) continue;
    const quant::TensorRows rows = reader.rows(id);
    const std::int64_t in = rows.shape[1];
    whole = whole && in % kScaleGroup == 0;
    b.four_bits += rows.activations == ActivationForm::kInt4Absmax;
    b.four_bits_absmean += rows.activations == ActivationForm::kInt4Absmean;
    if (rows.ternary)
      ternary.push_back(granularity_of(rows.scales.size(), rows.cols_per_scale, in));
    else
      ++(rows.int8 || !rows.planes.empty() ? b.dequantised : b.floats);
  }
  for (const auto& g : ternary)
    b.scales = std::max(b.scales, g.value_or(whole ? ScaleGranularity::kGroup : ScaleGranularity::kRow));
  for (const auto& g : ternary) ++(g && *g <= granularity.value_or(b.scales) ? b.trits : b.dequantised);
  return b;
}

void load_weights(const ExecutionContext& context, LanguageModel& model, const quant::ModelReader& reader,
                  const quant::ModelReader* original) {
  check_shape(model, reader);
  if (original) with_context("the original", [&] { check_shape(model, *original); });
  const auto ids = model.tensor_ids();
  const std::vector<TensorId> there = reader.tensors();
  for (std::size_t i = 0; i < ids.size(); ++i) {
    Parameter& p = *model.parameters()[i];
    with_context(p.name(), [&] {
      if (std::find(there.begin(), there.end(), ids[i]) == there.end()) {
        std::fill(p.value().begin(), p.value().end(), 1.0f);  // a sub-norm: all else is in every model
        return;
      }
      const quant::LogicalTensor t = reader.read(ids[i]);
      auto* const linear = dynamic_cast<BitLinear*>(model.linear(ids[i]));
      if (linear && original) {
        take_original(original->read(ids[i]), t, *linear);
      } else if (linear && t.ternary && holds_scales(t.weights, linear->ternary()->options())) {
        linear->set_weights(context, t.weights);
        model.keep_whole(ids[i]);
      } else {
        take_floats(t, p);
      }
    });
  }
  model.refresh(context);
}

}  // namespace bitnet::training
