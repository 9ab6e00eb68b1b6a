// Random models: configurations of known shapes and their tensors, one at a time.
#include "bitnet/benchmarks/models.hpp"

#include <array>
#include <cstring>
#include <vector>

#include "bitnet/benchmarks/workloads.hpp"
#include "bitnet/core/dtype.hpp"
#include "bitnet/core/rng.hpp"

namespace bitnet::benchmarks {
namespace {

ModelConfig make_config(std::int64_t hidden, std::int64_t intermediate, std::int64_t layers,
                        std::int64_t heads, std::int64_t kv_heads, std::int64_t vocab, std::int64_t context) {
  ModelConfig c;
  c.architecture = "BitNetForCausalLM";
  c.vocab_size = vocab;
  c.hidden_size = hidden;
  c.intermediate_size = intermediate;
  c.n_layers = layers;
  c.n_heads = heads;
  c.n_kv_heads = kv_heads;
  c.head_dim = hidden / heads;
  c.max_position = context;
  c.rope_theta = 500000.0;
  c.validate();
  return c;
}

quant::LogicalTensor random_tensor(TensorId id, const ModelConfig& config, std::uint64_t seed) {
  quant::LogicalTensor t;
  t.id = id;
  t.shape = tensor_shape(id, config);
  const auto n = static_cast<std::size_t>(t.shape.numel());
  Rng rng(seed ^ (static_cast<std::uint64_t>(id.layer + 1) << 8) ^ static_cast<std::uint64_t>(id.role));
  if (is_linear(id.role)) {
    t.ternary = true;
    t.weights = random_weights({"", t.shape[0], t.shape[1]}, rng.next());
  } else if (is_norm(id.role)) {
    t.dense.resize(n * sizeof(float));
    const std::vector<float> ones(n, 1.0f);
    std::memcpy(t.dense.data(), ones.data(), t.dense.size());
  } else {
    t.dtype = DType::kF16;
    t.dense.resize(n * sizeof(std::uint16_t));
    for (std::size_t i = 0; i < n; ++i) {
      const std::uint16_t half = f32_to_f16(static_cast<float>(2 * rng.uniform() - 1));
      std::memcpy(t.dense.data() + i * sizeof half, &half, sizeof half);
    }
  }
  return t;
}

}  // namespace

std::span<const ModelShape> model_shapes() {
  static const std::array<ModelShape, 3> shapes{{
      {"tiny", make_config(64, 160, 2, 4, 2, 500, 128)},
      {"small", make_config(512, 1024, 6, 8, 4, 4096, 512)},
      {"2b4t", make_config(2560, 6912, 30, 20, 5, 128256, 4096)},
  }};
  return shapes;
}

std::shared_ptr<const inference::Model> random_model(const ModelConfig& config,
                                                     std::shared_ptr<Backend> backend, std::uint64_t seed) {
  return inference::Model::build(config, nullptr, std::move(backend),
                                 [&](TensorId id) { return random_tensor(id, config, seed); });
}

}  // namespace bitnet::benchmarks
