#pragma once
// The oracle of bitnet-inference's tests: a transformer in double precision, slow and obvious, on tensors in
// memory, and tiny random models to run it on. Shares no code with the library. Header-only, because only
// tests that link bitnet-quant can use it.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/quant/adapter.hpp"
#include "bitnet/quant/model_io.hpp"

namespace bitnet::testing {

using Row = std::vector<double>;

/// A model as logical tensors.
struct TensorModel {
  ModelConfig config;
  std::map<std::string, quant::LogicalTensor> tensors;  // by gguf_name

  const quant::LogicalTensor& at(TensorRole role, std::int64_t layer = -1) const {
    return tensors.at(gguf_name({role, layer}));
  }
  quant::LogicalTensor operator()(TensorId id) const { return tensors.at(gguf_name(id)); }
};

/// A small BitNet: 2 layers, GQA, head_dim of its own, tied embeddings.
inline ModelConfig tiny_config() {
  ModelConfig c;
  c.architecture = "bitnet-b1.58";
  c.vocab_size = 61;
  c.hidden_size = 48;
  c.intermediate_size = 72;
  c.n_layers = 2;
  c.n_heads = 4;
  c.n_kv_heads = 2;
  c.head_dim = 10;
  c.max_position = 128;
  c.bos_id = 0;
  c.eos_ids = {1};
  return c;
}

/// Random tensors for a config; embeddings and dense linears of `dense_type`.
inline TensorModel random_model(const ModelConfig& config, std::uint32_t seed,
                                DType dense_type = DType::kF32) {
  TensorModel model{config, {}};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int> trit(-1, 1);
  std::uniform_real_distribution<float> uniform(0.6f, 1.4f);
  for (const TensorId id : model_tensors(config)) {
    quant::LogicalTensor t;
    t.id = id;
    t.shape = tensor_shape(id, config);
    const auto n = static_cast<std::size_t>(t.shape.numel());
    if (is_linear(id.role) && config.weights == WeightKind::kTernary) {
      t.ternary = true;
      t.weights.out = t.shape[0];
      t.weights.in = t.shape[1];
      t.weights.rows_per_scale = t.weights.out;
      for (std::size_t i = 0; i < n; ++i) t.weights.trits.push_back(static_cast<std::int8_t>(trit(random)));
      t.weights.scales = {uniform(random) / std::sqrt(static_cast<float>(t.weights.in))};
    } else {
      const float spread = is_linear(id.role) ? 1 / std::sqrt(static_cast<float>(t.shape[1]))
                           : is_norm(id.role) ? 0.2f
                                              : 0.7f;
      t.dtype = is_norm(id.role) ? DType::kF32 : dense_type;
      t.dense.resize(n * bits_of(t.dtype) / 8);
      for (std::size_t i = 0; i < n; ++i) {
        const float v = normal(random) * spread + (is_norm(id.role) ? 1.0f : 0.0f);
        const std::uint16_t h = t.dtype == DType::kF16 ? f32_to_f16(v) : f32_to_bf16(v);
        if (t.dtype == DType::kF32) {
          std::memcpy(t.dense.data() + 4 * i, &v, 4);
        } else {
          std::memcpy(t.dense.data() + 2 * i, &h, 2);
        }
      }
    }
    model.tensors[gguf_name(id)] = std::move(t);
  }
  return model;
}

/// An adapter of rank `rank` for each of `roles` in the layers from `first_layer` on, whose updates are of
/// the size of `spread` times a linear's output.
inline quant::LoraAdapter random_adapter(const ModelConfig& config, const std::vector<TensorRole>& roles,
                                         std::int64_t rank, std::uint32_t seed, float spread = 0.5f,
                                         std::int64_t first_layer = 0) {
  quant::LoraAdapter adapter;
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (std::int64_t layer = first_layer; layer < config.n_layers; ++layer) {
    for (const TensorRole role : roles) {
      const Shape shape = tensor_shape({role, layer}, config);
      quant::LoraLinear l;
      l.id = {role, layer};
      l.rank = rank;
      l.scaling = 2;
      l.a.resize(static_cast<std::size_t>(rank * shape[1]));
      l.b.resize(static_cast<std::size_t>(shape[0] * rank));
      for (float& v : l.a) v = normal(random) / std::sqrt(static_cast<float>(shape[1]));
      for (float& v : l.b) v = normal(random) * spread / std::sqrt(static_cast<float>(rank));
      adapter.linears.push_back(std::move(l));
    }
  }
  return adapter;
}

/// Logits of a whole sequence, and how near any activation came to a rounding tie (in int8 steps): where
/// `margin` is much larger than float errors, float and double arithmetic quantise alike and logits can be
/// compared.
class ReferenceForward {
 public:
  explicit ReferenceForward(const TensorModel& model) : model_(model) {
    for (const auto& [name, t] : model.tensors) values_[name] = t.to_f32();
  }

  std::vector<Row> operator()(const std::vector<std::int32_t>& tokens) {
    const ModelConfig& c = model_.config;
    const auto& table = values_.at(gguf_name({TensorRole::kTokenEmbedding, -1}));
    std::vector<Row> x;
    for (const std::int32_t t : tokens)
      x.emplace_back(table.begin() + t * c.hidden_size, table.begin() + (t + 1) * c.hidden_size);
    for (std::int64_t l = 0; l < c.n_layers; ++l) {
      std::vector<Row> q, k, v;
      for (std::size_t p = 0; p < x.size(); ++p) {
        const Row h = norm(x[p], {TensorRole::kAttnNorm, l});
        q.push_back(rope(linear(h, {TensorRole::kAttnQ, l}), p));
        k.push_back(rope(linear(h, {TensorRole::kAttnK, l}), p));
        v.push_back(linear(h, {TensorRole::kAttnV, l}));
      }
      for (std::size_t p = 0; p < x.size(); ++p) {
        Row h = attend(q[p], k, v, p);
        if (c.sub_norms) h = norm(h, {TensorRole::kAttnSubNorm, l});
        add(x[p], linear(h, {TensorRole::kAttnOutput, l}));
        h = norm(x[p], {TensorRole::kFfnNorm, l});
        Row gate = linear(h, {TensorRole::kFfnGate, l});
        const Row up = linear(h, {TensorRole::kFfnUp, l});
        for (std::size_t i = 0; i < gate.size(); ++i) {
          const double g = gate[i];
          const double f = c.activation == Activation::kRelu2 ? std::max(g, 0.0) * std::max(g, 0.0)
                                                              : g / (1 + std::exp(-g));
          gate[i] = f * up[i];
        }
        if (c.sub_norms) gate = norm(gate, {TensorRole::kFfnSubNorm, l});
        add(x[p], linear(gate, {TensorRole::kFfnDown, l}));
      }
    }
    const TensorId head{c.tied_embeddings ? TensorRole::kTokenEmbedding : TensorRole::kOutputHead, -1};
    for (Row& row : x) row = product(norm(row, {TensorRole::kOutputNorm, -1}), values_.at(gguf_name(head)));
    return x;
  }

  double margin() const { return margin_; }

  /// From now on every linear of `adapter` is W·x + weight · scaling · B·(A·x). Keeps a reference.
  void add_adapter(const quant::LoraAdapter& adapter, double weight) {
    adapters_.push_back({&adapter, weight});
  }

 private:
  static void add(Row& x, const Row& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  static Row product(const Row& x, const std::vector<float>& w) {
    Row y(w.size() / x.size());
    for (std::size_t o = 0; o < y.size(); ++o)
      for (std::size_t i = 0; i < x.size(); ++i) y[o] += x[i] * static_cast<double>(w[o * x.size() + i]);
    return y;
  }

  Row norm(const Row& x, TensorId id) const {
    const std::vector<float>& w = values_.at(gguf_name(id));
    double squares = 0;
    for (const double v : x) squares += v * v;
    const double r = 1 / std::sqrt(squares / static_cast<double>(x.size()) +
                                   static_cast<double>(model_.config.rms_norm_eps));
    Row y(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) y[i] = x[i] * r * static_cast<double>(w[i]);
    return y;
  }

  Row linear(const Row& x, TensorId id) {
    Row y = base_linear(x, id);
    for (const auto& [adapter, weight] : adapters_) {
      for (const quant::LoraLinear& l : adapter->linears) {
        if (!(l.id == id)) continue;
        const Row update = product(product(x, l.a), l.b);
        for (std::size_t i = 0; i < y.size(); ++i)
          y[i] += weight * static_cast<double>(l.scaling) * update[i];
      }
    }
    return y;
  }

  Row base_linear(const Row& x, TensorId id) {
    const quant::LogicalTensor& t = model_.at(id.role, id.layer);
    if (!t.ternary && !t.planes && !t.int8) return product(x, values_.at(gguf_name(id)));
    double largest = 1e-5;
    for (const double v : x) largest = std::max(largest, std::abs(v));
    if (t.activations == ActivationForm::kInt4Absmean)
      throw Error(ErrorCode::kUnsupported, "the reference quantises rows by absmax only");
    const double levels = t.activations == ActivationForm::kInt8 ? 127 : 7;
    const double a = levels / largest;
    Row quantised(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double exact = x[i] * a;
      margin_ = std::min(margin_, std::abs(exact - std::floor(exact) - 0.5));
      quantised[i] = std::clamp(std::nearbyint(exact), -levels - 1, levels) / a;
    }
    return product(quantised, values_.at(gguf_name(id)));
  }

  Row rope(Row x, std::size_t position) const {
    const auto d = static_cast<std::size_t>(model_.config.head_dim);
    for (std::size_t head = 0; head < x.size(); head += d) {
      for (std::size_t i = 0; i < d / 2; ++i) {
        const double angle =
            static_cast<double>(position) /
            std::pow(model_.config.rope_theta, 2.0 * static_cast<double>(i) / static_cast<double>(d));
        const double a = x[head + i], b = x[head + i + d / 2];
        x[head + i] = a * std::cos(angle) - b * std::sin(angle);
        x[head + i + d / 2] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
    return x;
  }

  Row attend(const Row& q, const std::vector<Row>& k, const std::vector<Row>& v, std::size_t position) const {
    const ModelConfig& c = model_.config;
    const auto d = static_cast<std::size_t>(c.head_dim);
    const auto group = static_cast<std::size_t>(c.n_heads / c.n_kv_heads);
    Row out(q.size());
    for (std::size_t head = 0; head < q.size() / d; ++head) {
      const std::size_t kv = head / group * d;
      Row p(position + 1);
      double sum = 0;
      for (std::size_t t = 0; t <= position; ++t) {
        for (std::size_t i = 0; i < d; ++i) p[t] += q[head * d + i] * k[t][kv + i];
        p[t] /= std::sqrt(static_cast<double>(d));
      }
      const double largest = *std::max_element(p.begin(), p.end());
      for (double& s : p) sum += s = std::exp(s - largest);
      for (std::size_t t = 0; t <= position; ++t)
        for (std::size_t i = 0; i < d; ++i) out[head * d + i] += p[t] / sum * v[t][kv + i];
    }
    return out;
  }

  const TensorModel& model_;
  std::map<std::string, std::vector<float>> values_;
  std::vector<std::pair<const quant::LoraAdapter*, double>> adapters_;
  double margin_ = 1;
};

/// Bound on |float logits − double logits| where both quantise alike. On the way to a logit, each layer's
/// four groups of linears and norms round a value (K/16 + 8) times in sequence (16 lanes, K terms), attention
/// about 24 times (dot, exp of 2 ulp, sum, division), and so do the last norm and the head. Roundings are as
/// good as independent, so n of them grow as 8·√n·2^-24 with overwhelming probability (Higham & Mary 2019,
/// SIAM J. Sci. Comput. 41(5), lambda = 8).
inline double logit_bound(const ModelConfig& c, double largest_logit) {
  constexpr double kUnit = 0x1p-24;
  const double k = static_cast<double>(std::max({c.hidden_size, c.intermediate_size, c.q_dim()}));
  const double roundings = static_cast<double>(c.n_layers) * (4 * (k / 16 + 8) + 24) + 2 * (k / 16 + 8);
  return 8 * std::sqrt(roundings) * kUnit * std::max(largest_logit, 1.0);
}

}  // namespace bitnet::testing
