// Adapters joined: since Σ Bᵢ·(Aᵢ·x) is [B₁ B₂ …]·([A₁; A₂; …]·x), several cost no more ops than one.
#include "bitnet/inference/adapter_set.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <new>

#include "adapter_weights.hpp"
#include "bitnet/core/error.hpp"
#include "layer_placement.hpp"

namespace bitnet::inference {
namespace {

struct Factors {
  std::int64_t rank = 0;
  std::vector<float> a, b;
};

/// The factors of every adapter for `id`.
Factors join(TensorId id, const Shape& shape, std::span<const quant::WeightedAdapter> adapters) {
  Factors f;
  std::vector<const quant::LoraLinear*> found;
  std::vector<float> factor;
  for (const quant::WeightedAdapter& w : adapters) {
    for (const quant::LoraLinear& l : w.adapter->linears) {
      if (!(l.id == id)) continue;
      if (l.rank < 1 || l.a.size() != static_cast<std::size_t>(l.rank * shape[1]) ||
          l.b.size() != static_cast<std::size_t>(shape[0] * l.rank))
        throw Error(ErrorCode::kInvalidArgument,
                    fmt::format("an adapter of rank {} with {} and {} elements for '{}' {}", l.rank,
                                l.a.size(), l.b.size(), gguf_name(id), shape.to_string()));
      found.push_back(&l);
      factor.push_back(w.weight * l.scaling);
      f.rank += l.rank;
      f.a.insert(f.a.end(), l.a.begin(), l.a.end());
    }
  }
  f.b.reserve(static_cast<std::size_t>(shape[0] * f.rank));
  for (std::int64_t row = 0; row < shape[0] && !found.empty(); ++row) {
    for (std::size_t i = 0; i < found.size(); ++i) {
      const float* const from = found[i]->b.data() + row * found[i]->rank;
      for (std::int64_t r = 0; r < found[i]->rank; ++r) f.b.push_back(factor[i] * from[r]);
    }
  }
  return f;
}

PreparedPtr prepare(Backend& backend, std::int64_t out, std::int64_t in, const std::vector<float>& values) {
  LinearWeights w;
  w.out = out;
  w.in = in;
  w.dense = std::as_bytes(std::span<const float>(values));
  w.dense_type = DType::kF32;
  return backend.prepare(w);
}

}  // namespace

AdapterSet::~AdapterSet() = default;

std::shared_ptr<const AdapterSet> AdapterSet::build(std::shared_ptr<const Model> model,
                                                    std::span<const quant::WeightedAdapter> adapters) try {
  if (adapters.empty()) throw Error(ErrorCode::kInvalidArgument, "a set of no adapters");
  for (const quant::WeightedAdapter& w : adapters)
    if (!std::isfinite(w.weight))
      throw Error(ErrorCode::kInvalidArgument, fmt::format("an adapter with the weight {}", w.weight));
  const ModelConfig& config = model->config();
  auto weights = std::make_unique<AdapterWeights>();
  weights->layers.resize(static_cast<std::size_t>(config.n_layers));
  std::shared_ptr<AdapterSet> set(new AdapterSet);
  for (const TensorId id : model_tensors(config)) {
    if (!is_linear(id.role)) continue;
    const Shape shape = tensor_shape(id, config);
    const Factors f = join(id, shape, adapters);
    if (f.rank == 0) continue;
    LowRank& to = weights->layers[static_cast<std::size_t>(id.layer)][static_cast<std::size_t>(id.role)];
    const Placed placed(model->backend(), id);
    to.a = prepare(model->backend(), f.rank, shape[1], f.a);
    to.b = prepare(model->backend(), shape[0], f.rank, f.b);
    set->rank_ = std::max(set->rank_, f.rank);
    set->bytes_ += to.a->bytes() + to.b->bytes();
  }
  set->weights_ = std::move(weights);
  set->model_ = std::move(model);
  return set;
} catch (const std::bad_alloc&) {
  throw_out_of_memory("preparing adapters");
}

std::shared_ptr<const AdapterSet> AdapterSet::load(std::shared_ptr<const Model> model,
                                                   std::span<const AdapterSource> sources) try {
  std::vector<quant::LoraAdapter> adapters;
  adapters.reserve(sources.size());
  std::vector<quant::WeightedAdapter> weighted;
  for (const AdapterSource& s : sources) {
    adapters.push_back(quant::read_adapter(s.path, model->config()));
    weighted.push_back({&adapters.back(), s.weight});
  }
  return build(std::move(model), weighted);
} catch (const std::bad_alloc&) {
  throw_out_of_memory("reading adapters");
}

}  // namespace bitnet::inference
