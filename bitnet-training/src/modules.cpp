// Layers: parameters and which ops they go through; the arithmetic is in the op files.
#include "bitnet/training/modules.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include "bitnet/core/error.hpp"
#include "bitnet/training/attention.hpp"
#include "bitnet/training/convolution.hpp"
#include "ops_common.hpp"

namespace bitnet::training {

Linear::Linear(const ExecutionContext& context, std::string name, std::int64_t out, std::int64_t in,
               bool bias)
    : weight_(context, name, out, in, true) {
  if (bias) bias_ = std::make_unique<Parameter>(context, name + ".bias", 1, out, false);
}
void Linear::initialize(Rng& rng, float deviation) {
  if (deviation == 0) deviation = 1.0f / std::sqrt(static_cast<float>(weight_.cols()));
  for (float& w : weight_.value()) w = static_cast<float>(rng.normal()) * deviation;
}
LinearInput Linear::prepare(Tape&, Variable x) { return {x}; }
LinearInput Linear::prepare_normalized(Tape& tape, Variable x, RmsNorm& norm) {
  return prepare(tape, norm.forward(tape, x));
}
Variable Linear::forward(Tape& tape, const LinearInput& x) {
  return with_bias(tape, linear(tape, x.rows, weight_.variable()));
}
Variable Linear::with_bias(Tape& tape, Variable y) {
  return bias_ ? add_bias(tape, y, bias_->variable()) : y;
}
void Linear::parameters(std::vector<Parameter*>& all) {
  all.push_back(&weight_);
  if (bias_) all.push_back(bias_.get());
}

BitLinear::BitLinear(const ExecutionContext& context, std::string name, std::int64_t out, std::int64_t in,
                     const BitLinearOptions& options)
    : Linear(context, name, out, in, options.bias), cache_(context, out, in, options.quantizer) {
  if (options.shape == BlockShape::k2024)
    norm_ = std::make_unique<RmsNorm>(context, name + ".norm", in, options.norm_eps);
  if (options.quantizer.gradient == StraightThrough::kLearnedScale)
    scale_ = std::make_unique<Parameter>(context, name + ".scale", 1,
                                         static_cast<std::int64_t>(cache_.scales().size()), false);
}
LinearInput BitLinear::prepare(Tape& tape, Variable x) {
  const QuantizerOptions& o = cache_.options();
  if (norm_ && !o.hadamard && cache_.lambda() == 1) return normalize_and_quantize(tape, x, *norm_);
  if (norm_) x = norm_->forward(tape, x);
  if (o.hadamard) x = hadamard(tape, x);
  return {x, quantize_activations(tape, x, o.activation_bits, cache_.lambda())};
}
LinearInput BitLinear::prepare_normalized(Tape& tape, Variable x, RmsNorm& norm) {
  if (norm_ || cache_.options().hadamard || cache_.lambda() != 1)
    return Linear::prepare_normalized(tape, x, norm);
  return normalize_and_quantize(tape, x, norm);
}
LinearInput BitLinear::normalize_and_quantize(Tape& tape, Variable x, RmsNorm& norm) const {
  const QuantizedVariable q =
      normalize_quantize(tape, x, norm.weight().variable(), norm.eps(), cache_.options().activation_bits);
  return {q.rows, q};
}
Variable BitLinear::forward(Tape& tape, const LinearInput& x) {
  return with_bias(tape, bit_linear(tape, x.quantized, weight_.variable(), cache_,
                                    scale_ ? scale_->variable() : Variable()));
}
void BitLinear::parameters(std::vector<Parameter*>& all) {
  Linear::parameters(all);
  if (norm_) norm_->parameters(all);
  if (scale_) all.push_back(scale_.get());
}
void BitLinear::refresh(const ExecutionContext& context) {
  if (elsewhere_) return;
  with_context(weight_.name(), [&] {
    if (scale_ &&
        std::all_of(scale_->value().begin(), scale_->value().end(), [](float s) { return s == 0; })) {
      cache_.update(context, weight_.value());
      std::copy(cache_.scales().begin(), cache_.scales().end(), scale_->value().begin());
    }
    cache_.update(context, weight_.value(), lambda_,
                  scale_ ? std::span<const float>(scale_->value()) : std::span<const float>());
  });
}
void BitLinear::set_weights(const ExecutionContext& context, const quant::TernaryWeights& weights) {
  latent_from_ternary(weights, cache_.options(), weight_.value());
  if (scale_) {
    const std::span<float> scales = scale_->value();
    for (std::size_t i = 0; i < scales.size(); ++i)
      scales[i] = weights.scales[i / (scales.size() / weights.scales.size())];
  }
  refresh(context);
}

RmsNorm::RmsNorm(const ExecutionContext& context, std::string name, std::int64_t size, float eps)
    : weight_(context, std::move(name), 1, size, false), eps_(eps) {
  std::fill(weight_.value().begin(), weight_.value().end(), 1.0f);
}
Variable RmsNorm::forward(Tape& tape, Variable x) { return rms_norm(tape, x, weight_.variable(), eps_); }

Embedding::Embedding(const ExecutionContext& context, std::string name, std::int64_t vocab, std::int64_t dim)
    : weight_(context, std::move(name), vocab, dim, true) {}
Variable Embedding::forward(Tape& tape, std::span<const std::int32_t> ids) {
  return embedding(tape, weight_.variable(), ids);
}
Variable Embedding::logits(Tape& tape, Variable x) {
  return linear(tape, x, weight_.variable(), OpClass::kHead);
}

namespace {

/// Whether what `first` prepares can be given to `other`.
bool takes_input_of(const Linear& first, const Linear& other) {
  const TernaryCache *a = first.ternary(), *b = other.ternary();
  if (!first.shares_input() || !other.shares_input() || (a == nullptr) != (b == nullptr)) return false;
  return !a || (a->options().activation_bits == b->options().activation_bits && a->lambda() == b->lambda() &&
                a->options().hadamard == b->options().hadamard);
}

}  // namespace

template <std::size_t N>
std::array<Variable, N> forward_with_shared_input(Tape& tape, Variable x, RmsNorm* norm,
                                                  const std::array<Linear*, N>& layers) {
  Linear& first = *layers[0];
  const bool shared =
      std::all_of(layers.begin(), layers.end(), [&](Linear* l) { return takes_input_of(first, *l); });
  if (norm && !shared) x = norm->forward(tape, x);
  const LinearInput input =
      norm && shared ? first.prepare_normalized(tape, x, *norm) : first.prepare(tape, x);
  std::array<Variable, N> y;
  for (std::size_t i = 0; i < N; ++i)
    y[i] = layers[i]->forward(
        tape, i == 0 || takes_input_of(first, *layers[i]) ? input : layers[i]->prepare(tape, x));
  return y;
}
template std::array<Variable, 2> forward_with_shared_input(Tape&, Variable, RmsNorm*,
                                                           const std::array<Linear*, 2>&);
template std::array<Variable, 3> forward_with_shared_input(Tape&, Variable, RmsNorm*,
                                                           const std::array<Linear*, 3>&);

Attention::Attention(Layers layers, const AttentionShape& heads) : layers_(std::move(layers)), heads_(heads) {
  const auto fits = [](const std::unique_ptr<Linear>& l, std::int64_t out, std::int64_t in) {
    return l && l->weight().rows() == out && l->weight().cols() == in;
  };
  const std::int64_t q = heads.n_heads * heads.head_dim, kv = heads.n_kv_heads * heads.head_dim;
  const std::int64_t hidden = layers_.q ? layers_.q->weight().cols() : 0;
  BITNET_REQUIRE(heads.n_kv_heads > 0 && heads.n_heads % heads.n_kv_heads == 0 &&
                     fits(layers_.q, q, hidden) && fits(layers_.k, kv, hidden) &&
                     fits(layers_.v, kv, hidden) && layers_.o && layers_.o->weight().cols() == q,
                 "attention",
                 "the layers are not those of " + std::to_string(heads.n_heads) + " heads over " +
                     std::to_string(heads.n_kv_heads) + ", each of " + std::to_string(heads.head_dim));
}
Variable Attention::forward(Tape& tape, Variable x, const RopeTable& table, const RowLayout& layout,
                            AttentionStates* states) {
  Linear& o_layer = *layers_.o;
  AttentionShape heads = heads_;
  heads.length = layout.length;
  const auto [q, k, v] = forward_with_shared_input<3>(tape, x, layers_.norm.get(),
                                                      {layers_.q.get(), layers_.k.get(), layers_.v.get()});
  if (states) {
    states->q = q;
    states->k = k;
    states->v = v;
  }
  const Variable turned_q = rope(tape, q, table, layout), turned_k = rope(tape, k, table, layout);
  const Variable attended = causal_attention(tape, turned_q, turned_k, v, heads, layout.positions);
  return o_layer.forward(tape, layers_.sub_norm
                                   ? o_layer.prepare_normalized(tape, attended, *layers_.sub_norm)
                                   : o_layer.prepare(tape, attended));
}
void Attention::parameters(std::vector<Parameter*>& all) {
  for (Linear* l : {layers_.q.get(), layers_.k.get(), layers_.v.get(), layers_.o.get()}) l->parameters(all);
  for (RmsNorm* n : {layers_.sub_norm.get(), layers_.norm.get()})
    if (n) n->parameters(all);
}
void Attention::refresh(const ExecutionContext& context) {
  for (Linear* l : {layers_.q.get(), layers_.k.get(), layers_.v.get(), layers_.o.get()}) l->refresh(context);
}
void Attention::set_lambda(float lambda) {
  for (Linear* l : {layers_.q.get(), layers_.k.get(), layers_.v.get(), layers_.o.get()})
    l->set_lambda(lambda);
}

Conv2d::Conv2d(const ExecutionContext& context, std::string name, std::int64_t out, std::int64_t in,
               const ImageWindow& window, bool bias)
    : Conv2d(std::make_unique<Linear>(context, std::move(name), out, window.height * window.width * in, bias),
             window) {}
Conv2d::Conv2d(std::unique_ptr<Linear> linear, const ImageWindow& window)
    : linear_(std::move(linear)), window_(window) {}
Variable Conv2d::forward(Tape& tape, Variable x, ImageShape image) {
  return (*linear_)(tape, patches(tape, x, image, window_));
}

BitConv2d::BitConv2d(const ExecutionContext& context, std::string name, std::int64_t out, std::int64_t in,
                     const ImageWindow& window, const BitLinearOptions& options)
    : Conv2d(std::make_unique<BitLinear>(context, std::move(name), out, window.height * window.width * in,
                                         options),
             window) {}

Variable Dropout::forward(Tape& tape, Variable x) {
  if (!tape.recording()) return x;
  return dropout(tape, x, p_, Rng(seed_ + uses_++).next());
}

}  // namespace bitnet::training
