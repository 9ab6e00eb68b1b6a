// Adapters while they are trained.
#include "bitnet/training/lora.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <utility>

#include "bitnet/core/rng.hpp"
#include "ops_common.hpp"

namespace bitnet::training {
namespace {

constexpr std::array<std::pair<TensorRole, std::string_view>, 7> kTargets{
    {{TensorRole::kAttnQ, "q_proj"},
     {TensorRole::kAttnK, "k_proj"},
     {TensorRole::kAttnV, "v_proj"},
     {TensorRole::kAttnOutput, "o_proj"},
     {TensorRole::kFfnGate, "gate_proj"},
     {TensorRole::kFfnUp, "up_proj"},
     {TensorRole::kFfnDown, "down_proj"}}};

std::string exact(double v) {
  char text[64];
  return {text, std::to_chars(text, text + sizeof text, v).ptr};
}

/// A number of its own for each (key, value).
std::uint64_t mix(std::uint64_t key, std::int64_t value) {
  return Rng(key + static_cast<std::uint64_t>(value)).next();
}

}  // namespace

std::string_view target_name(TensorRole role) noexcept {
  const auto it =
      std::find_if(kTargets.begin(), kTargets.end(), [role](const auto& t) { return t.first == role; });
  return it == kTargets.end() ? std::string_view() : it->second;
}

TensorRole target_from_string(std::string_view name) {
  std::string all;
  for (const auto& [role, known] : kTargets) {
    if (known == name) return role;
    all += (all.empty() ? "" : ", ") + std::string(known);
  }
  throw Error(ErrorCode::kInvalidArgument, "unknown target '" + std::string(name) + "': expected " + all);
}

void LoraOptions::validate() const {
  BITNET_REQUIRE(rank >= 1 && rank <= 4096, "rank", "from 1 to 4096, got " + std::to_string(rank));
  BITNET_REQUIRE(std::isfinite(alpha) && alpha > 0, "alpha", "must be positive");
  BITNET_REQUIRE(dropout >= 0 && dropout < 1, "dropout", "must be at least 0 and below 1");
  BITNET_REQUIRE(!targets.empty(), "targets", "at least one linear needs an adapter");
  for (std::size_t i = 0; i < targets.size(); ++i) {
    BITNET_REQUIRE(is_linear(targets[i]), "targets", "only the seven linears of a layer can have adapters");
    BITNET_REQUIRE(std::find(targets.begin(), targets.begin() + static_cast<std::ptrdiff_t>(i), targets[i]) ==
                       targets.begin() + static_cast<std::ptrdiff_t>(i),
                   "targets", std::string(target_name(targets[i])) + " is named twice");
  }
}

float LoraOptions::scaling() const noexcept {
  const auto r = static_cast<double>(rank);
  return static_cast<float>(alpha / (rslora ? std::sqrt(r) : r));
}

LoraModel::LoraModel(const ExecutionContext& context, std::unique_ptr<FrozenModel> base,
                     const LoraOptions& options, std::uint64_t seed)
    : base_(std::move(base)), options_(options), seed_(seed), pass_key_(seed) {
  options_.validate();
  Rng rng(seed);
  for (std::int64_t layer = 0; layer < config().n_layers; ++layer)
    for (const TensorRole role : options_.targets) {
      const TensorId id{role, layer};
      const Shape shape = tensor_shape(id, config());
      std::string name = hf_name(id, config().family);
      name.resize(name.size() - std::string_view(".weight").size());
      Factors f{id, std::make_unique<Parameter>(context, name + ".lora_A", options_.rank, shape[1], true),
                std::make_unique<Parameter>(context, name + ".lora_B", shape[0], options_.rank, true)};
      const double bound = 1.0 / std::sqrt(static_cast<double>(shape[1]));
      for (float& w : f.a->value()) w = static_cast<float>((2 * rng.uniform() - 1) * bound);
      parameters_.push_back(f.a.get());
      parameters_.push_back(f.b.get());
      factors_.push_back(std::move(f));
    }
}

void LoraModel::begin_pass(std::int64_t step, std::int64_t first_sequence) {
  pass_key_ = mix(mix(seed_, step), first_sequence);
}

LoraModel::Factors* LoraModel::find(TensorId id) noexcept {
  const auto& t = options_.targets;
  const auto at = std::find(t.begin(), t.end(), id.role) - t.begin();
  if (at == static_cast<std::ptrdiff_t>(t.size()) || id.layer < 0 || id.layer >= config().n_layers)
    return nullptr;
  return &factors_[static_cast<std::size_t>(id.layer) * t.size() + static_cast<std::size_t>(at)];
}

Variable LoraModel::add(Tape& tape, TensorId id, Variable x, Variable y) {
  Factors* const f = find(id);
  if (!f) return y;
  const std::uint64_t key = mix(mix(pass_key_, id.layer), static_cast<std::int64_t>(id.role));
  const Variable down = training::linear(tape, dropout(tape, x, options_.dropout, key), f->a->variable());
  return add_scaled(tape, y, training::linear(tape, down, f->b->variable()), options_.scaling());
}

std::map<std::string, std::string> LoraModel::identity() const {
  auto all = base_->identity();
  all["lora.rank"] = std::to_string(options_.rank);
  all["lora.alpha"] = exact(options_.alpha);
  all["lora.dropout"] = exact(options_.dropout);
  all["lora.rslora"] = options_.rslora ? "true" : "false";
  std::string targets;
  for (const TensorRole role : options_.targets)
    targets += (targets.empty() ? "" : ", ") + std::string(target_name(role));
  all["lora.targets"] = targets;
  return all;
}

quant::LoraAdapter LoraModel::adapter(std::string base_name) const {
  quant::LoraAdapter out;
  out.base_model = std::move(base_name);
  for (const Factors& f : factors_) {
    const auto a = f.a->value(), b = f.b->value();
    out.linears.push_back(
        {f.id, options_.rank, options_.scaling(), {a.begin(), a.end()}, {b.begin(), b.end()}});
  }
  return out;
}

void LoraModel::set_adapter(const quant::LoraAdapter& adapter) {
  BITNET_REQUIRE(
      adapter.linears.size() == factors_.size(), "adapter",
      std::to_string(adapter.linears.size()) + " linears, expected " + std::to_string(factors_.size()));
  const float scaling = options_.scaling();
  for (const quant::LoraLinear& l : adapter.linears) {
    const Factors* const f = find(l.id);
    BITNET_REQUIRE(f && l.rank == options_.rank && std::abs(l.scaling - scaling) <= 1e-6f * scaling &&
                       l.a.size() == f->a->value().size() && l.b.size() == f->b->value().size(),
                   "adapter",
                   hf_name(l.id, config().family) + " of rank " + std::to_string(l.rank) + " and scaling " +
                       exact(l.scaling) + ": expected " + std::to_string(options_.rank) + " and " +
                       exact(scaling) + " on the targets");
  }
  for (const quant::LoraLinear& l : adapter.linears) {
    Factors* const f = find(l.id);
    std::copy(l.a.begin(), l.a.end(), f->a->value().begin());
    std::copy(l.b.begin(), l.b.end(), f->b->value().begin());
  }
}

}  // namespace bitnet::training
