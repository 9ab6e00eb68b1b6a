// Layers and the decoder. layer_forward() reads as the paper; the arithmetic is in the op files.
#include "bitnet/training/modules.hpp"

#include <algorithm>

#include "bitnet/core/error.hpp"

namespace bitnet::training {

Linear::Linear(const ExecutionContext& context, std::string name, std::int64_t out, std::int64_t in)
    : weight_(context, std::move(name), out, in, true) {}
LinearInput Linear::prepare(Tape&, Variable x) const { return {x}; }
Variable Linear::forward(Tape& tape, const LinearInput& x) {
  return linear(tape, x.rows, weight_.variable());
}
void Linear::refresh(const ExecutionContext&) {}

BitLinear::BitLinear(const ExecutionContext& context, std::string name, std::int64_t out, std::int64_t in)
    : Linear(context, std::move(name), out, in), cache_(context, out, in) {}
LinearInput BitLinear::prepare(Tape& tape, Variable x) const { return {x, quantize_activations(tape, x)}; }
Variable BitLinear::forward(Tape& tape, const LinearInput& x) {
  return bit_linear(tape, x.quantized, weight_.variable(), cache_);
}
void BitLinear::refresh(const ExecutionContext& context) {
  with_context(weight_.name(), [&] { cache_.update(context, weight_.value()); });
}

RmsNorm::RmsNorm(const ExecutionContext& context, std::string name, std::int64_t size, float eps)
    : weight_(context, std::move(name), 1, size, false), eps_(eps) {}
Variable RmsNorm::forward(Tape& tape, Variable x) { return rms_norm(tape, x, weight_.variable(), eps_); }

Embedding::Embedding(const ExecutionContext& context, std::string name, std::int64_t vocab, std::int64_t dim)
    : weight_(context, std::move(name), vocab, dim, true) {}
Variable Embedding::forward(Tape& tape, std::span<const std::int32_t> ids) {
  return embedding(tape, weight_.variable(), ids);
}
Variable Embedding::logits(Tape& tape, Variable x) {
  return linear(tape, x, weight_.variable(), OpClass::kHead);
}

struct LanguageModel::Layer {
  std::unique_ptr<Linear> q, k, v, o, gate, up, down;
  RmsNorm attn_norm, attn_sub_norm, ffn_norm, ffn_sub_norm;

  Layer(const ExecutionContext& context, const ModelConfig& c, Quantization quantization, std::int64_t index)
      : q(make(context, c, quantization, TensorRole::kAttnQ, index)),
        k(make(context, c, quantization, TensorRole::kAttnK, index)),
        v(make(context, c, quantization, TensorRole::kAttnV, index)),
        o(make(context, c, quantization, TensorRole::kAttnOutput, index)),
        gate(make(context, c, quantization, TensorRole::kFfnGate, index)),
        up(make(context, c, quantization, TensorRole::kFfnUp, index)),
        down(make(context, c, quantization, TensorRole::kFfnDown, index)),
        attn_norm(context, hf_name({TensorRole::kAttnNorm, index}, c.family), c.hidden_size, c.rms_norm_eps),
        attn_sub_norm(context, hf_name({TensorRole::kAttnSubNorm, index}, c.family), c.q_dim(),
                      c.rms_norm_eps),
        ffn_norm(context, hf_name({TensorRole::kFfnNorm, index}, c.family), c.hidden_size, c.rms_norm_eps),
        ffn_sub_norm(context, hf_name({TensorRole::kFfnSubNorm, index}, c.family), c.intermediate_size,
                     c.rms_norm_eps) {}

  static std::unique_ptr<Linear> make(const ExecutionContext& context, const ModelConfig& c,
                                      Quantization quantization, TensorRole role, std::int64_t index) {
    const TensorId id{role, index};
    const Shape shape = tensor_shape(id, c);
    if (quantization == Quantization::kTernary)
      return std::make_unique<BitLinear>(context, hf_name(id, c.family), shape[0], shape[1]);
    return std::make_unique<Linear>(context, hf_name(id, c.family), shape[0], shape[1]);
  }

  Linear* find(TensorRole role) const {
    switch (role) {
      case TensorRole::kAttnQ:
        return q.get();
      case TensorRole::kAttnK:
        return k.get();
      case TensorRole::kAttnV:
        return v.get();
      case TensorRole::kAttnOutput:
        return o.get();
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
        return &attn_norm.weight();
      case TensorRole::kAttnSubNorm:
        return &attn_sub_norm.weight();
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
  if (c.activation != Activation::kRelu2) refuse("activation must be relu2");
  if (!c.sub_norms) refuse("sub_norms must be on");
  if (c.input_norms) refuse("input_norms must be off");
  if (!c.tied_embeddings) refuse("the embedding must be tied");
  return c;
}

}  // namespace

LanguageModel::LanguageModel(const ExecutionContext& context, const ModelConfig& config,
                             Quantization quantization)
    : config_(checked(config)),
      quantization_(quantization),
      embedding_(context, hf_name({TensorRole::kTokenEmbedding}, config.family), config.vocab_size,
                 config.hidden_size),
      norm_(context, hf_name({TensorRole::kOutputNorm}, config.family), config.hidden_size,
            config.rms_norm_eps),
      rope_(config.max_position, config.head_dim, config.rope_theta) {
  for (std::int64_t i = 0; i < config_.n_layers; ++i)
    layers_.push_back(std::make_unique<Layer>(context, config_, quantization_, i));
  for (const TensorId id : model_tensors(config_)) {
    Parameter* p = id.role == TensorRole::kTokenEmbedding ? &embedding_.weight()
                   : id.role == TensorRole::kOutputNorm
                       ? &norm_.weight()
                       : layers_[static_cast<std::size_t>(id.layer)]->parameter(id.role);
    if (!p) throw Error(ErrorCode::kInternal, "no parameter for tensor " + hf_name(id, config_.family));
    parameters_.push_back(p);
    ids_.push_back(id);
  }
}

LanguageModel::~LanguageModel() = default;

void LanguageModel::initialize(Rng& rng, float deviation) {
  for (std::size_t i = 0; i < parameters_.size(); ++i)
    for (float& w : parameters_[i]->value())
      w = is_norm(ids_[i].role) ? 1.0f : static_cast<float>(rng.normal()) * deviation;
}

void LanguageModel::refresh(const ExecutionContext& context) {
  if (quantization_ == Quantization::kNone) return;
  std::vector<Linear*> all;
  for (const TensorId id : ids_)
    if (Linear* l = linear(id)) all.push_back(l);
  context.parallel_for(all.size(), 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) all[i]->refresh(context);
  });
}

Variable LanguageModel::forward(Tape& tape, std::span<const std::int32_t> ids, const RowLayout& layout) {
  Variable x = embedding_.forward(tape, ids);
  for (auto& layer : layers_) x = layer_forward(tape, *layer, x, layout);
  return embedding_.logits(tape, norm_.forward(tape, x));
}

Variable LanguageModel::layer_forward(Tape& tape, Layer& l, Variable x, const RowLayout& layout) {
  const AttentionShape heads{layout.length, config_.n_heads, config_.n_kv_heads, config_.head_dim};
  const LinearInput a = l.q->prepare(tape, l.attn_norm.forward(tape, x));
  const Variable q = rope(tape, l.q->forward(tape, a), rope_, layout);
  const Variable k = rope(tape, l.k->forward(tape, a), rope_, layout);
  const Variable attended = causal_attention(tape, q, k, l.v->forward(tape, a), heads, layout.positions);
  x = add(tape, x, l.o->forward(tape, l.o->prepare(tape, l.attn_sub_norm.forward(tape, attended))));

  const LinearInput f = l.gate->prepare(tape, l.ffn_norm.forward(tape, x));
  const Variable h = relu2_gate(tape, l.gate->forward(tape, f), l.up->forward(tape, f));
  return add(tape, x, l.down->forward(tape, l.down->prepare(tape, l.ffn_sub_norm.forward(tape, h))));
}

Linear* LanguageModel::linear(TensorId id) const noexcept {
  return is_linear(id.role) ? layers_[static_cast<std::size_t>(id.layer)]->find(id.role) : nullptr;
}

std::int64_t LanguageModel::parameter_count() const noexcept {
  std::int64_t n = 0;
  for (const Parameter* p : parameters_) n += p->rows() * p->cols();
  return n;
}

LanguageModel::TritCounts LanguageModel::trit_counts() const noexcept {
  TritCounts counts;
  for (const TensorId id : ids_)
    if (const Linear* l = linear(id); l && l->ternary()) {
      counts.zeros += l->ternary()->zeros();
      counts.flips += l->ternary()->flips();
      counts.all += static_cast<std::int64_t>(l->ternary()->trits().size());
    }
  return counts;
}

}  // namespace bitnet::training
