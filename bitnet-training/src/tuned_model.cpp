// The decoder whose scales and norms are trained; its layers are decoder_pass.hpp.
#include "bitnet/training/tuned_model.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "bitnet/core/hash64.hpp"
#include "decoder_pass.hpp"
#include "ops_common.hpp"
#include "tuned_linear.hpp"

namespace bitnet::training {
namespace {

ModelConfig checked(ModelConfig c) {
  c.validate();
  if (c.input_norms)
    throw Error(ErrorCode::kUnsupported,
                "a model with a norm before each linear (use_rms_norm) cannot be tuned");
  return c;
}

std::uint64_t hash_of(std::uint64_t before, const quant::LogicalTensor& t) {
  Hash64 hash;
  hash.add(std::as_bytes(std::span(&before, 1)));
  const auto add = [&](const quant::TernaryWeights& w) {
    hash.add(std::as_bytes(std::span(w.trits))).add(std::as_bytes(std::span(w.scales)));
  };
  if (t.ternary) add(t.weights);
  if (t.planes) {
    add(t.planes->first);
    add(t.planes->second);
  }
  if (t.int8)
    hash.add(std::as_bytes(std::span(t.int8->values))).add(std::as_bytes(std::span(t.int8->scales)));
  return hash.add(std::span<const std::byte>(t.dense)).value();
}

}  // namespace

/// Floats, and what is added to them.
struct TunedModel::Dense {
  Dense(const ExecutionContext& context, std::string name, const quant::LogicalTensor& t, bool trained)
      : shape(t.shape) {
    const std::vector<float> from = t.to_f32();
    values = MemoryArray<float>(*context.memory(), from.size(), "frozen weights", 64);
    std::copy(from.begin(), from.end(), values.data());
    node.value = values.data();
    node.rows = t.shape.rank() == 2 ? t.shape[0] : 1;
    node.cols = static_cast<std::int64_t>(from.size()) / node.rows;
    node.persistent = true;
    if (!trained) return;
    double squares = 0;
    for (const float v : from) squares += static_cast<double>(v) * v;
    unit = static_cast<float>(std::sqrt(squares / static_cast<double>(from.size())));
    if (unit == 0) unit = 1;
    shift = std::make_unique<Parameter>(context, std::move(name), node.rows, node.cols, false);
  }
  Variable variable(Tape& tape) {
    return shift ? add_scaled(tape, Variable(&node), shift->variable(), unit) : Variable(&node);
  }
  /// The bits that variable() has.
  std::vector<float> now(Isa isa) const {
    std::vector<float> v(values.span().begin(), values.span().end());
    const auto cols = static_cast<std::size_t>(node.cols);
    if (shift)
      for (std::size_t at = 0; at < v.size(); at += cols)
        tested_f32_kernels(isa).axpy(unit, std::as_const(*shift).value().data() + at, v.data() + at, cols);
    return v;
  }

  Shape shape;
  MemoryArray<float> values;
  Node node;
  float unit = 1;
  std::unique_ptr<Parameter> shift;
};

struct TunedModel::Layer {
  std::array<std::unique_ptr<TunedLinear>, kTensorRoleCount> linears;  // by role
  std::array<std::unique_ptr<Dense>, kTensorRoleCount> norms;          // by role
};

TunedModel::TunedModel(const ExecutionContext& context, const ModelConfig& config,
                       const std::function<quant::LogicalTensor(TensorId)>& source, const TunedParts& parts,
                       std::int64_t positions)
    : config_(checked(config)),
      isa_(context.isa()),
      layers_(static_cast<std::size_t>(config.n_layers)),
      rope_(positions > 0 ? positions : config.max_position, config.head_dim, config.rope_theta) {
  for (const TensorId id : model_tensors(config_))
    with_context(hf_name(id, config_.family), [&] { take(context, source(id), parts); });
  if (parameters_.empty())
    throw Error(
        ErrorCode::kInvalidArgument,
        "nothing of this model is to be trained: no linear of it is quantised, or nothing was chosen");
}

TunedModel::~TunedModel() = default;

void TunedModel::take(const ExecutionContext& context, const quant::LogicalTensor& t,
                      const TunedParts& parts) {
  if (t.shape != tensor_shape(t.id, config_))
    throw Error(ErrorCode::kInvalidArgument,
                "shape " + t.shape.to_string() + ", expected " + tensor_shape(t.id, config_).to_string());
  hash_ = hash_of(hash_, t);
  const std::string name = hf_name(t.id, config_.family);
  if (is_linear(t.id.role)) {
    auto& at = layers_[static_cast<std::size_t>(t.id.layer)].linears[static_cast<std::size_t>(t.id.role)];
    at = std::make_unique<TunedLinear>(context, name, t, parts.scales);
    at->parameters(parameters_);
    return;
  }
  auto& at = t.id.role == TensorRole::kTokenEmbedding ? embedding_
             : t.id.role == TensorRole::kOutputHead   ? head_
             : t.id.role == TensorRole::kOutputNorm
                 ? output_norm_
                 : layers_[static_cast<std::size_t>(t.id.layer)].norms[static_cast<std::size_t>(t.id.role)];
  at = std::make_unique<Dense>(context, name, t, is_norm(t.id.role) ? parts.norms : parts.embeddings);
  if (at->shift) parameters_.push_back(at->shift.get());
}

void TunedModel::refresh(const ExecutionContext&) {
  for (Layer& l : layers_)
    for (const auto& linear_of : l.linears)
      if (linear_of) linear_of->refresh();
}

/// What a pass takes from the model.
struct TunedModel::Parts {
  TunedModel* model;

  Variable norm(Tape& tape, TensorId id, Variable x) const {
    const auto& n =
        model->layers_[static_cast<std::size_t>(id.layer)].norms[static_cast<std::size_t>(id.role)];
    return n ? rms_norm(tape, x, n->variable(tape), model->config_.rms_norm_eps) : x;
  }
  RoundedRows round(Tape& tape, Variable x, ActivationForm form) const {
    quant::QuantizedRows& q = model->rows_;
    quant::quantize_rows(tape.context(), x.value(), x.rows(), x.cols(), q, form);
    const auto cols = static_cast<std::size_t>(x.cols());
    float* const to = tape.floats(x.value().size());
    for_rows(tape, x.rows(), 16, [&](std::int64_t r) {
      float* const row = to + static_cast<std::size_t>(r) * cols;
      train_of(tape).widen(q.values.data() + r * q.stride, row, cols);
      f32_of(tape).scale(q.inv_scales[static_cast<std::size_t>(r)], row, cols);
    });
    return {form, to};
  }
  template <std::size_t N>
  std::array<Variable, N> project(Tape& tape, std::int64_t layer, const std::array<TensorRole, N>& roles,
                                  Variable x) const {
    std::array<Variable, N> y;
    std::array<RoundedRows, 3> rounded;  // by form
    for (std::size_t i = 0; i < N; ++i) {
      const TunedLinear& l =
          *model->layers_[static_cast<std::size_t>(layer)].linears[static_cast<std::size_t>(roles[i])];
      RoundedRows& rows = rounded[static_cast<std::size_t>(l.form())];
      if (l.quantised() && !rows.values) rows = round(tape, x, l.form());
      y[i] = l.forward(tape, x, rows);
    }
    return y;
  }
};

Variable TunedModel::forward(Tape& tape, std::span<const std::int32_t> ids, const RowLayout& layout,
                             AttentionStates* states) {
  BITNET_REQUIRE(!states || (states->layer >= 0 && states->layer < config_.n_layers), "attention states",
                 "layer " + std::to_string(states->layer) + " of " + std::to_string(config_.n_layers));
  BITNET_REQUIRE(layout.length <= rope_.positions, "forward",
                 "sequences of " + std::to_string(layout.length) + " tokens; at most " +
                     std::to_string(rope_.positions) + " were asked for");
  const Variable table = embedding_->variable(tape);
  DecoderPass<Parts> pass{{this}, config_, rope_, layout, states};
  const Variable x = pass.layers(tape, embedding(tape, table, ids), recompute_);
  return training::linear(tape, rms_norm(tape, x, output_norm_->variable(tape), config_.rms_norm_eps),
                          head_ ? head_->variable(tape) : table, OpClass::kHead);
}

std::map<std::string, std::string> TunedModel::identity() const {
  auto all = identity_of_shape(config_);
  char hex[17];
  std::snprintf(hex, sizeof hex, "%016llx", static_cast<unsigned long long>(hash_));
  all["quantised weights"] = std::string("of hash ") + hex;
  return all;
}

const TunedModel::Dense* TunedModel::dense(TensorId id) const noexcept {
  if (id.role == TensorRole::kTokenEmbedding) return embedding_.get();
  if (id.role == TensorRole::kOutputHead) return head_.get();
  if (id.role == TensorRole::kOutputNorm) return output_norm_.get();
  if (id.layer < 0 || id.layer >= config_.n_layers) return nullptr;
  return layers_[static_cast<std::size_t>(id.layer)].norms[static_cast<std::size_t>(id.role)].get();
}

quant::LogicalTensor TunedModel::tensor(TensorId id) const {
  if (is_linear(id.role) && id.layer >= 0 && id.layer < config_.n_layers)
    return layers_[static_cast<std::size_t>(id.layer)].linears[static_cast<std::size_t>(id.role)]->tensor(id);
  const Dense* const d = dense(id);
  if (!d) throw Error(ErrorCode::kInvalidArgument, "the model has no such tensor");
  quant::LogicalTensor t;
  t.id = id;
  t.shape = d->shape;
  const std::vector<float> values = d->now(isa_);
  t.dense.resize(values.size() * sizeof(float));
  std::memcpy(t.dense.data(), values.data(), t.dense.size());
  return t;
}

std::size_t TunedModel::bytes() const noexcept {
  const auto of = [](const std::unique_ptr<Dense>& d) {
    return d ? d->values.size() * sizeof(float) * (d->shift ? 4 : 1) : 0;
  };
  std::size_t all = of(embedding_) + of(head_) + of(output_norm_);
  for (const Layer& l : layers_) {
    for (const auto& linear_of : l.linears) all += linear_of ? linear_of->bytes() : 0;
    for (const auto& n : l.norms) all += of(n);
  }
  return all;
}

}  // namespace bitnet::training
