// Files → latent weights.
#include "bitnet/training/sub_norms.hpp"

#include <algorithm>
#include <string>

#include "bitnet/core/error.hpp"

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

void load_weights(const ExecutionContext& context, LanguageModel& model, const quant::ModelReader& reader) {
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
      if (auto* linear = dynamic_cast<BitLinear*>(model.linear(ids[i])); linear && t.ternary) {
        linear->set_weights(context, t.weights);
        return;
      }
      const std::vector<float> values = t.to_f32();
      if (values.size() != p.value().size())
        throw Error(ErrorCode::kInvalidArgument,
                    std::to_string(values.size()) + " values, expected " + std::to_string(p.value().size()));
      std::copy(values.begin(), values.end(), p.value().begin());
    });
  }
  model.refresh(context);
}

}  // namespace bitnet::training
