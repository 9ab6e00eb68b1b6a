// The decoder. layer_forward() reads as the paper.
#include "bitnet/training/language_model.hpp"

#include <algorithm>

#include "bitnet/core/error.hpp"
#include "bitnet/training/recompute.hpp"

namespace bitnet::training {

struct LanguageModel::Layer {
  Attention attention;
  std::unique_ptr<Linear> gate, up, down;
  RmsNorm ffn_norm, ffn_sub_norm;

  /// Makes the layer's parts.
  struct Maker {
    const ExecutionContext& context;
    const ModelConfig& c;
    Quantization quantization;
    QuantizerOptions quantizer;
    std::int64_t index;

    std::unique_ptr<Linear> linear(TensorRole role) const {
      const TensorId id{role, index};
      const Shape shape = tensor_shape(id, c);
      if (quantization == Quantization::kNone)
        return std::make_unique<Linear>(context, hf_name(id, c.family), shape[0], shape[1]);
      BitLinearOptions options;
      options.quantizer = quantizer;
      options.quantizer.hadamard =
          quantizer.hadamard && (role == TensorRole::kAttnOutput || role == TensorRole::kFfnDown);
      return std::make_unique<BitLinear>(context, hf_name(id, c.family), shape[0], shape[1], options);
    }
    RmsNorm norm(TensorRole role, std::int64_t size) const {
      return {context, hf_name({role, index}, c.family), size, c.rms_norm_eps};
    }
    std::unique_ptr<RmsNorm> attention_norm(TensorRole role, std::int64_t size) const {
      return std::make_unique<RmsNorm>(context, hf_name({role, index}, c.family), size, c.rms_norm_eps);
    }
  };

  explicit Layer(const Maker& m)
      : attention({m.linear(TensorRole::kAttnQ), m.linear(TensorRole::kAttnK), m.linear(TensorRole::kAttnV),
                   m.linear(TensorRole::kAttnOutput), m.attention_norm(TensorRole::kAttnSubNorm, m.c.q_dim()),
                   m.attention_norm(TensorRole::kAttnNorm, m.c.hidden_size)},
                  {0, m.c.n_heads, m.c.n_kv_heads, m.c.head_dim}),
        gate(m.linear(TensorRole::kFfnGate)),
        up(m.linear(TensorRole::kFfnUp)),
        down(m.linear(TensorRole::kFfnDown)),
        ffn_norm(m.norm(TensorRole::kFfnNorm, m.c.hidden_size)),
        ffn_sub_norm(m.norm(TensorRole::kFfnSubNorm, m.c.intermediate_size)) {}

  Linear* find(TensorRole role) const {
    switch (role) {
      case TensorRole::kAttnQ:
        return attention.layers().q.get();
      case TensorRole::kAttnK:
        return attention.layers().k.get();
      case TensorRole::kAttnV:
        return attention.layers().v.get();
      case TensorRole::kAttnOutput:
        return attention.layers().o.get();
      case TensorRole::kFfnGate:
        return gate.get();
      case TensorRole::kFfnUp:
        return up.get();
      case TensorRole::kFfnDown:
        return down.get();
      default:
        return nullptr;
    }
  }

  Parameter* parameter(TensorRole role) {
    switch (role) {
      case TensorRole::kAttnNorm:
        return &attention.layers().norm->weight();
      case TensorRole::kAttnSubNorm:
        return &attention.layers().sub_norm->weight();
      case TensorRole::kFfnNorm:
        return &ffn_norm.weight();
      case TensorRole::kFfnSubNorm:
        return &ffn_sub_norm.weight();
      default: {
        Linear* l = find(role);
        return l ? &l->weight() : nullptr;
      }
    }
  }
};

namespace {

const ModelConfig& checked(const ModelConfig& c) {
  c.validate();
  const auto refuse = [](const std::string& what) {
    throw Error(ErrorCode::kUnsupported, "training makes models of the 2B-4T architecture only: " + what);
  };
  if (c.family != ModelFamily::kBitNet25) refuse("another model family");
  if (!c.sub_norms) refuse("sub_norms must be on");
  if (c.input_norms) refuse("input_norms must be off");
  return c;
}

}  // namespace

LanguageModel::LanguageModel(const ExecutionContext& context, const ModelConfig& config,
                             Quantization quantization, const QuantizerOptions& quantizer)
    : config_(checked(config)),
      quantization_(quantization),
      quantizer_(quantizer),
      embedding_(context, hf_name({TensorRole::kTokenEmbedding}, config.family), config.vocab_size,
                 config.hidden_size),
      norm_(context, hf_name({TensorRole::kOutputNorm}, config.family), config.hidden_size,
            config.rms_norm_eps),
      rope_(config.max_position, config.head_dim, config.rope_theta) {
  for (std::int64_t i = 0; i < config_.n_layers; ++i)
    layers_.push_back(std::make_unique<Layer>(Layer::Maker{context, config_, quantization_, quantizer_, i}));
  if (!config_.tied_embeddings)
    head_ = std::make_unique<Linear>(context, hf_name({TensorRole::kOutputHead}, config_.family),
                                     config_.vocab_size, config_.hidden_size);
  for (const TensorId id : model_tensors(config_)) {
    Parameter* p = id.role == TensorRole::kTokenEmbedding ? &embedding_.weight()
                   : id.role == TensorRole::kOutputNorm   ? &norm_.weight()
                   : id.role == TensorRole::kOutputHead
                       ? &head_->weight()
                       : layers_[static_cast<std::size_t>(id.layer)]->parameter(id.role);
    if (!p) throw Error(ErrorCode::kInternal, "no parameter for tensor " + hf_name(id, config_.family));
    parameters_.push_back(p);
    ids_.push_back(id);
  }
  whole_.resize(ids_.size());
  for (const TensorId id : ids_)
    if (auto* l = dynamic_cast<BitLinear*>(linear(id)); l && l->scale()) parameters_.push_back(l->scale());
}

LanguageModel::~LanguageModel() = default;

void LanguageModel::initialize(Rng& rng, float deviation) {
  for (std::size_t i = 0; i < ids_.size(); ++i)
    for (float& w : parameters_[i]->value())
      w = is_norm(ids_[i].role) ? 1.0f : static_cast<float>(rng.normal()) * deviation;
  for (std::size_t i = ids_.size(); i < parameters_.size(); ++i)  // refresh() begins learned scales anew
    std::fill(parameters_[i]->value().begin(), parameters_[i]->value().end(), 0.0f);
}

void LanguageModel::set_lambda(const QuantizerSchedule& schedule, std::int64_t step) {
  for (std::size_t i = 0; i < ids_.size(); ++i)
    if (Linear* l = linear(ids_[i]))
      l->set_lambda(whole_[i] ? 1 : schedule.lambda(step, ids_[i].layer, config_.n_layers));
}

void LanguageModel::keep_whole(TensorId id) {
  const auto at = std::find(ids_.begin(), ids_.end(), id);
  if (at == ids_.end() || !linear(id))
    throw Error(ErrorCode::kInvalidArgument, "the model has no linear '" + gguf_name(id) + "'");
  whole_[static_cast<std::size_t>(at - ids_.begin())] = true;
}

void LanguageModel::refresh(const ExecutionContext& context) {
  if (quantization_ == Quantization::kNone) return;
  context.parallel_for(ids_.size(), 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i)
      if (Linear* l = linear(ids_[i])) l->refresh(context);
  });
}

Variable LanguageModel::forward(Tape& tape, std::span<const std::int32_t> ids, const RowLayout& layout,
                                AttentionStates* states) {
  if (states && (states->layer < 0 || states->layer >= config_.n_layers))
    throw Error(ErrorCode::kInvalidArgument, "attention states of layer " + std::to_string(states->layer) +
                                                 ", the model has " + std::to_string(config_.n_layers));
  Variable x = embedding_.forward(tape, ids);
  for (std::int64_t i = 0; i < config_.n_layers; ++i) {
    Layer& layer = *layers_[static_cast<std::size_t>(i)];
    const bool keeps = states && states->layer == i;  // variables that outlive the layer's pass
    x = recompute_ && !keeps ? recompute(tape, x,
                                         [this, &layer, layout](Tape& t, Variable v) {
                                           return layer_forward(t, layer, v, layout, nullptr);
                                         })
                             : layer_forward(tape, layer, x, layout, keeps ? states : nullptr);
  }
  x = norm_.forward(tape, x);
  return head_ ? training::linear(tape, x, head_->weight().variable(), OpClass::kHead)
               : embedding_.logits(tape, x);
}

Variable LanguageModel::layer_forward(Tape& tape, Layer& l, Variable x, const RowLayout& layout,
                                      AttentionStates* states) {
  if (states) states->input = x;
  x = add(tape, x, l.attention.forward(tape, x, rope_, layout, states));

  const auto [gate, up] = forward_with_shared_input<2>(tape, x, &l.ffn_norm, {l.gate.get(), l.up.get()});
  const Variable h =
      config_.activation == Activation::kRelu2 ? relu2_gate(tape, gate, up) : silu_gate(tape, gate, up);
  return add(tape, x, l.down->forward(tape, l.down->prepare_normalized(tape, h, l.ffn_sub_norm)));
}

Linear* LanguageModel::linear(TensorId id) const noexcept {
  return is_linear(id.role) ? layers_[static_cast<std::size_t>(id.layer)]->find(id.role) : nullptr;
}

std::map<std::string, std::string> LanguageModel::identity() const {
  auto all = identity_of_shape(config_);
  all["model.quantization"] = quantization_ == Quantization::kTernary ? "ternary" : "none";
  // Of what older checkpoints could not have: absent there, as here for what they had.
  if (config_.activation != Activation::kRelu2) all["model.activation"] = to_string(config_.activation);
  if (!config_.tied_embeddings) all["model.tied_embeddings"] = "false";
  return all;
}

TritCounts LanguageModel::trit_counts() const noexcept {
  TritCounts counts;
  for (const TensorId id : ids_)
    if (const Linear* l = linear(id); l && l->ternary()) {
      counts.zeros += l->ternary()->zeros();
      counts.flips += l->ternary()->flips();
      counts.all += static_cast<std::int64_t>(l->ternary()->trits().size());
    }
  return counts;
}

std::vector<double> LanguageModel::layer_scales() const {
  if (quantization_ == Quantization::kNone) return {};
  std::vector<double> means(layers_.size());
  std::vector<int> linears(layers_.size());
  for (const TensorId id : ids_)
    if (const Linear* l = linear(id)) {
      const std::span<const float> scales = l->ternary()->scales();
      double sum = 0;
      for (const float s : scales) sum += s;
      means[static_cast<std::size_t>(id.layer)] += sum / static_cast<double>(scales.size());
      ++linears[static_cast<std::size_t>(id.layer)];
    }
  for (std::size_t i = 0; i < means.size(); ++i) means[i] /= linears[i];
  return means;
}

}  // namespace bitnet::training
