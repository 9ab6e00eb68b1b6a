// The decoder with weights that stay; its layers are decoder_pass.hpp.
#include "bitnet/training/frozen_model.hpp"

#include <algorithm>
#include <array>
#include <cstdio>

#include "decoder_pass.hpp"
#include "ops_common.hpp"

namespace bitnet::training {
namespace {

/// A norm's weights as a constant of any tape.
struct Norm {
  std::vector<float> weights;
  Node node;
  explicit operator bool() const noexcept { return !weights.empty(); }
  void set(std::vector<float> w) {
    weights = std::move(w);
    node.value = weights.data();
    node.rows = 1;
    node.cols = static_cast<std::int64_t>(weights.size());
    node.persistent = true;
  }
};

std::uint64_t fnv1a(std::uint64_t hash, std::span<const std::byte> bytes) {
  for (const std::byte b : bytes) hash = (hash ^ static_cast<std::uint64_t>(b)) * 1099511628211u;
  return hash;
}

ModelConfig checked(ModelConfig c) {
  c.validate();
  if (c.input_norms)
    throw Error(ErrorCode::kUnsupported,
                "a model with a norm before each linear (use_rms_norm) can be neither tuned nor a teacher");
  return c;
}

}  // namespace

struct FrozenModel::Layer {
  std::array<std::unique_ptr<FrozenLinear>, kTensorRoleCount> linears;  // by role
  std::array<Norm, kTensorRoleCount> norms;                             // by role
};

FrozenModel::FrozenModel(const ExecutionContext& context, const ModelConfig& config,
                         const std::function<quant::LogicalTensor(TensorId)>& source, std::int64_t positions)
    : config_(checked(config)),
      layers_(static_cast<std::size_t>(config.n_layers)),
      rope_(positions > 0 ? positions : config.max_position, config.head_dim, config.rope_theta) {
  for (const TensorId id : model_tensors(config_))
    with_context(hf_name(id, config_.family), [&] { take(context, source(id)); });
}

std::unique_ptr<FrozenModel> FrozenModel::load(const ExecutionContext& context,
                                               const std::filesystem::path& path, std::int64_t positions) {
  const auto reader = quant::ModelReader::open(path);
  return with_context("'" + path.string() + "'", [&] {
    return std::make_unique<FrozenModel>(
        context, reader->config(), [&](TensorId id) { return reader->read(id); }, positions);
  });
}

FrozenModel::~FrozenModel() = default;

void FrozenModel::take(const ExecutionContext& context, const quant::LogicalTensor& t) {
  if (t.shape != tensor_shape(t.id, config_))
    throw Error(ErrorCode::kInvalidArgument,
                "shape " + t.shape.to_string() + ", expected " + tensor_shape(t.id, config_).to_string());
  if (t.ternary)
    hash_ = fnv1a(fnv1a(hash_, std::as_bytes(std::span(t.weights.trits))),
                  std::as_bytes(std::span(t.weights.scales)));
  else if (t.dense.empty())  // of two planes or int8, which need not come with the floats that they stand for
    hash_ = fnv1a(hash_, std::as_bytes(std::span<const float>(t.to_f32())));
  else
    hash_ = fnv1a(hash_, t.dense);
  if (t.activations !=
      ActivationForm::kInt8)  // what older checkpoints could not have changes no hash of theirs
    hash_ = fnv1a(hash_, std::as_bytes(std::span(&t.activations, 1)));
  const auto role = static_cast<std::size_t>(t.id.role);
  if (t.id.role == TensorRole::kTokenEmbedding)
    embedding_ = std::make_unique<FrozenLinear>(context, t);
  else if (t.id.role == TensorRole::kOutputHead)
    head_ = std::make_unique<FrozenLinear>(context, t);
  else if (t.id.role == TensorRole::kOutputNorm)
    output_norm_ = t.to_f32();
  else if (is_linear(t.id.role))
    layers_[static_cast<std::size_t>(t.id.layer)].linears[role] = std::make_unique<FrozenLinear>(context, t);
  else
    layers_[static_cast<std::size_t>(t.id.layer)].norms[role].set(t.to_f32());
}

/// What a pass takes from the model, with what is put beside its linears.
struct FrozenModel::Parts {
  FrozenModel* model;
  LinearAddition* addition;

  Variable norm(Tape& tape, TensorId id, Variable x) const {
    Norm& n = model->layers_[static_cast<std::size_t>(id.layer)].norms[static_cast<std::size_t>(id.role)];
    return n ? rms_norm(tape, x, Variable(&n.node), model->config_.rms_norm_eps) : x;
  }
  template <std::size_t N>
  std::array<Variable, N> project(Tape& tape, std::int64_t layer, const std::array<TensorRole, N>& roles,
                                  Variable x) const {
    std::array<Variable, N> y;
    const auto at = [&](TensorRole role) -> const FrozenLinear& { return *model->linear({role, layer}); };
    std::optional<ActivationForm> quantised;  // as which rows_ holds x
    for (std::size_t i = 0; i < N; ++i) {
      const FrozenLinear& linear = at(roles[i]);
      if (linear.quantised() && quantised != linear.activations()) {
        quantised = linear.activations();
        quant::quantize_rows(tape.context(), x.value(), x.rows(), x.cols(), model->rows_, *quantised);
      }
      y[i] = linear.forward(tape, x, model->rows_);
      if (addition) y[i] = addition->add(tape, {roles[i], layer}, x, y[i]);
    }
    return y;
  }
};

Variable FrozenModel::forward_with(Tape& tape, std::span<const std::int32_t> ids, const RowLayout& layout,
                                   AttentionStates* states, LinearAddition* addition) {
  BITNET_REQUIRE(!states || (states->layer >= 0 && states->layer < config_.n_layers), "attention states",
                 "layer " + std::to_string(states->layer) + " of " + std::to_string(config_.n_layers));
  BITNET_REQUIRE(layout.length <= rope_.positions, "forward",
                 "sequences of " + std::to_string(layout.length) + " tokens; at most " +
                     std::to_string(rope_.positions) + " were asked for");
  DecoderPass<Parts> pass{{this, addition}, config_, rope_, layout, states};
  Variable x = pass.layers(tape, embedding(tape, embedding_->constant(), ids), recompute_);
  const Variable weights = tape.make(1, config_.hidden_size, false);
  std::copy(output_norm_.begin(), output_norm_.end(), weights.value().begin());
  x = rms_norm(tape, x, weights, config_.rms_norm_eps);
  return training::linear(tape, x, (head_ ? head_ : embedding_)->constant(), OpClass::kHead);
}

std::map<std::string, std::string> FrozenModel::identity() const {
  auto all = identity_of_shape(config_);
  char hex[17];
  std::snprintf(hex, sizeof hex, "%016llx", static_cast<unsigned long long>(hash_));
  all["base weights"] = std::string("of hash ") + hex;
  return all;
}

std::size_t FrozenModel::bytes() const noexcept {
  std::size_t total =
      embedding_->bytes() + (head_ ? head_->bytes() : 0) + output_norm_.size() * sizeof(float);
  for (const Layer& l : layers_) {
    for (const auto& linear_of : l.linears) total += linear_of ? linear_of->bytes() : 0;
    for (const Norm& n : l.norms) total += n.weights.size() * sizeof(float);
  }
  return total;
}

const FrozenLinear* FrozenModel::linear(TensorId id) const noexcept {
  if (!is_linear(id.role) || id.layer < 0 || id.layer >= config_.n_layers) return nullptr;
  return layers_[static_cast<std::size_t>(id.layer)].linears[static_cast<std::size_t>(id.role)].get();
}

}  // namespace bitnet::training
