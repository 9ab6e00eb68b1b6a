// One model on several OpenCL devices, or on one and the CPU: where its layers go by the memory that there
// is, and the text of the CPU however they lie. The devices are parts of the first one (clCreateSubDevices),
// or, where it cannot be divided, that device twice.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/gpu/register.hpp"
#include "bitnet/inference/engine.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using inference::EngineOptions;
using inference::InferenceEngine;
using inference::kAutoLayers;

/// With the CPU; `memory`: of each device, 0 for all.
BackendRegistry registry_of(std::size_t memory = 0, std::int64_t sub_devices = 0) {
  gpu::Options options;
  options.memory_limit = memory;
  options.sub_devices = sub_devices;
  BackendRegistry registry;
  gpu::register_backends(registry, options);
  inference::register_cpu_backend(registry);
  return registry;
}

bool has_device() { return registry_of().devices().size() > 1; }

EngineOptions options_for(std::string device, std::int64_t layers = inference::kAllLayers) {
  EngineOptions options;
  options.model = testing::source_path("models/bitnet-demo-i2_s.gguf");
  options.device = std::move(device);
  options.device_layers = layers;
  options.context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 2, .isa = {}});
  options.n_ctx = 128;
  options.chunk_rows = 16;
  return options;
}

std::vector<TokenId> text_of(InferenceEngine& engine) {
  inference::GenerationOptions options;
  options.max_tokens = 30;
  options.sampling.seed = 3;
  options.ignore_eos = true;
  const auto result = engine.generate("It is a truth universally acknowledged, that a single man", options);
  EXPECT_FALSE(result.error.has_value());
  return result.tokens;
}

/// What linears of a model are made of.
enum class Linears { kTwoPlanes, kGroups, kPlanesOfGroups, kInt8 };
constexpr Linears kAllLinears[] = {Linears::kTwoPlanes, Linears::kGroups, Linears::kPlanesOfGroups,
                                   Linears::kInt8};

/// Values that look random and cost little, as models of real width have many.
class Values {
 public:
  std::int8_t below(std::uint32_t n) {
    state_ = state_ * 1664525u + 1013904223u;
    return static_cast<std::int8_t>((state_ >> 16) * n >> 16);
  }
  quant::TernaryWeights trits(std::int64_t out, std::int64_t in, std::int64_t group_cols) {
    quant::TernaryWeights w;
    w.out = out;
    w.in = in;
    w.trits.resize(static_cast<std::size_t>(out * in));
    for (std::int8_t& t : w.trits) t = static_cast<std::int8_t>(below(3) - 1);
    w.rows_per_scale = 1;
    w.cols_per_scale = group_cols;
    w.scales.assign(static_cast<std::size_t>(out * (group_cols == 0 ? 1 : in / group_cols)), 0.01f);
    return w;
  }

 private:
  std::uint32_t state_ = 7;
};

ModelConfig config_of(std::int64_t hidden, std::int64_t ffn, std::int64_t head_dim, std::int64_t layers) {
  ModelConfig c;
  c.family = ModelFamily::kLlama;
  c.architecture = "LlamaForCausalLM";
  c.activation = Activation::kSilu;
  c.sub_norms = false;
  c.vocab_size = 256;
  c.hidden_size = hidden;
  c.intermediate_size = ffn;
  c.n_layers = layers;
  c.n_heads = hidden / head_dim;
  c.n_kv_heads = c.n_heads / 4;
  c.head_dim = head_dim;
  c.max_position = 512;
  return c;
}

/// Writes a model whose linears are all of one kind.
void write_model(const std::filesystem::path& to, const ModelConfig& config, Linears kind) {
  Values values;
  const auto source = [&](TensorId id) {
    quant::LogicalTensor t;
    t.id = id;
    t.shape = tensor_shape(id, config);
    const auto n = static_cast<std::size_t>(t.shape.numel());
    if (!is_linear(id.role)) {
      std::vector<float> floats(n, 1.0f);
      if (!is_norm(id.role))
        for (float& f : floats) f = static_cast<float>(values.below(101) - 50) / 50.0f;
      const auto bytes = std::as_bytes(std::span(floats));
      t.dense.assign(bytes.begin(), bytes.end());
      return t;
    }
    const std::int64_t out = t.shape[0], in = t.shape[1];
    const std::int64_t group = kind == Linears::kTwoPlanes ? 0 : 32;
    if (kind == Linears::kInt8) {
      t.int8 = quant::Int8Rows{std::vector<std::int8_t>(n), std::vector<float>(t.shape[0], 1e-4f)};
      for (std::int8_t& q : t.int8->values) q = static_cast<std::int8_t>(values.below(255) - 127);
    } else if (kind == Linears::kGroups) {
      t.ternary = true;
      t.weights = values.trits(out, in, group);
    } else {
      t.planes = quant::TwoPlanes{values.trits(out, in, group), values.trits(out, in, group)};
    }
    return t;
  };
  quant::WriteOptions as;
  as.type = quant::LinearType::kExtended;
  quant::write_model(to, config, nullptr, source, as);
}

const std::vector<TokenId>& text_of_cpu() {
  static const std::vector<TokenId> tokens = [] {
    InferenceEngine cpu(options_for("cpu"));
    return text_of(cpu);
  }();
  return tokens;
}

TEST(GpuLayers, LeaveTheFirstOnesToTheCpu) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_device());
  const BackendRegistry registry = registry_of();
  const std::string name = registry.devices()[0].name;
  for (const std::int64_t n : {1, 2}) {
    InferenceEngine engine(options_for(name, n), registry);
    const std::int64_t all = engine.model()->config().n_layers;
    ASSERT_EQ(engine.stages().size(), 2u);
    EXPECT_EQ(engine.stages()[0].device, "cpu");
    EXPECT_EQ(engine.stages()[0].n_layers, all - n);
    EXPECT_EQ(engine.stages()[1].device, name);
    EXPECT_EQ(engine.stages()[1].first, all - n);
    EXPECT_EQ(text_of(engine), text_of_cpu()) << n;
    EXPECT_GT(engine.model()->backend().statistics().launches, 0u);
  }
  InferenceEngine none(options_for(name, 0), registry);
  ASSERT_EQ(none.stages().size(), 1u);
  EXPECT_EQ(none.stages()[0].device, "cpu");
  EXPECT_EQ(text_of(none), text_of_cpu());
  InferenceEngine all(options_for(name, 1000), registry);
  ASSERT_EQ(all.stages().size(), 1u);
  EXPECT_EQ(all.stages()[0].device, name);
}

TEST(GpuLayers, AutoKeepsWithinTheDevicesMemory) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_device());
  std::int64_t before = -1;
  bool divided = false;
  for (const std::size_t mib : {1, 3, 4, 5, 6, 7, 8, 10, 12, 64}) {
    SCOPED_TRACE(mib);
    const BackendRegistry registry = registry_of(mib << 20);
    const std::string name = registry.devices()[0].name;
    InferenceEngine engine(options_for(name, kAutoLayers), registry);
    const std::int64_t all = engine.model()->config().n_layers;
    const std::int64_t there = engine.stages().back().device == name ? engine.stages().back().n_layers : 0;
    EXPECT_GE(there, before);
    before = there;
    divided = divided || (there > 0 && there < all);
    EXPECT_EQ(text_of(engine), text_of_cpu());
    for (const MemoryResource* pool : engine.model()->backend().memories()) {
      if (pool->name() != name) continue;
      EXPECT_LE(pool->stats().peak_held, mib << 20);
      EXPECT_GT(there, 0);
    }
    if (mib == 1) {
      EXPECT_EQ(there, 0);
    }
    if (mib == 64) {
      EXPECT_EQ(there, all);
    }
  }
  EXPECT_TRUE(divided);
}

/// The same of models whose linears take other room than one plane of trits.
TEST(GpuLayers, AutoKeepsWithinTheDevicesMemoryWithLinearsOfEveryKind) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_device());
  const std::vector<TokenId> prompt{3, 1, 4, 1, 5, 9, 2, 6};
  for (const Linears kind : kAllLinears) {
    const testing::TempDir dir;
    write_model(dir.path() / "m", config_of(512, 1536, 64, 6), kind);
    const auto logits = [&](InferenceEngine& engine) {
      const auto row = engine.session().evaluate(prompt);
      return std::vector<float>(row.begin(), row.end());
    };
    EngineOptions options = options_for("cpu");
    options.model = dir.path() / "m";
    InferenceEngine cpu(options);
    const std::vector<float> want = logits(cpu);
    bool divided = false;
    for (const std::size_t mib : {4, 6, 8, 10, 12, 14, 16, 20, 26}) {
      SCOPED_TRACE(::testing::Message()
                   << "linears of kind " << static_cast<int>(kind) << ", " << mib << " MiB");
      const BackendRegistry registry = registry_of(mib << 20);
      options.device = registry.devices()[0].name;
      options.device_layers = kAutoLayers;
      InferenceEngine engine(options, registry);
      EXPECT_EQ(logits(engine), want);
      const auto& last = engine.stages().back();
      divided = divided || (last.device == options.device && last.n_layers < 6);
      for (const MemoryResource* pool : engine.model()->backend().memories())
        EXPECT_TRUE(pool->name() != options.device || pool->stats().peak_held <= mib << 20);
    }
    EXPECT_TRUE(divided);
  }
}

TEST(GpuLayers, AutoCountsMemoryOnceHoweverOftenItIsNamed) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_device());
  bool on_both = false;
  for (const std::size_t mib : {8, 10, 12, 14, 16}) {
    SCOPED_TRACE(mib);
    const BackendRegistry registry = registry_of(mib << 20);
    const std::string name = registry.devices()[0].name;
    InferenceEngine engine(options_for(name + "," + name, kAutoLayers), registry);
    EXPECT_EQ(text_of(engine), text_of_cpu());
    std::size_t held = 0, pools = 0;
    for (const MemoryResource* pool : engine.model()->backend().memories()) {
      if (pool->name() != name) continue;
      held += pool->stats().peak_held;
      ++pools;
    }
    EXPECT_LE(held, mib << 20);
    on_both = on_both || pools == 2;
  }
  EXPECT_TRUE(on_both);
}

TEST(GpuLayers, TooManyForTheMemoryAreAnError) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_device());
  const BackendRegistry registry = registry_of(std::size_t{2} << 20);
  const std::string name = registry.devices()[0].name;
  BITNET_EXPECT_ERROR(InferenceEngine(options_for(name), registry), ErrorCode::kOutOfMemory,
                      "limit 2097152 bytes");
  EngineOptions only = options_for(name, kAutoLayers);
  only.device_only = true;
  BITNET_EXPECT_ERROR(InferenceEngine(only, registry), ErrorCode::kOutOfMemory,
                      "layers fit into the memory of '" + name + "', and only the device is allowed");
}

/// The costs that `auto` counts with are not below what is taken, nor far above that.
void expect_upper_bounds(const EngineOptions& options, const BackendRegistry& registry) {
  InferenceEngine engine(options, registry);
  static_cast<void>(engine.session());
  const auto files = inference::ModelFiles::open(options.model);
  const auto costs = inference::layer_costs(
      files, {.n_ctx = 64, .chunk_rows = options.chunk_rows, .kv_type = engine.model()->kv_type()});
  std::size_t sum = costs.workspace + costs.head;
  if (!engine.model()->config().tied_embeddings) sum += costs.embedding;
  for (const std::size_t bytes : costs.layers) sum += bytes;
  const std::vector<MemoryResource*> pools = engine.model()->backend().memories();
  const auto own =
      std::find_if(pools.begin(), pools.end(), [&](auto* p) { return p->name() == options.device; });
  ASSERT_NE(own, pools.end());
  EXPECT_LE((*own)->stats().used, sum);
  if (sum > (std::size_t{4} << 20)) {
    EXPECT_GE((*own)->stats().used, sum / 2);
  }
}

TEST(GpuLayers, CostsAreUpperBounds) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_device());
  const BackendRegistry registry = registry_of();
  EngineOptions options = options_for(registry.devices()[0].name);
  options.n_ctx = 64;
  for (const char* file : {"models/bitnet-demo-i2_s.gguf", "tests/data/models/llama-dense",
                           "tests/data/models/bitnet-25-packed", "tests/data/models/llama-tq1_0.gguf"}) {
    SCOPED_TRACE(file);
    options.model = testing::source_path(file);
    expect_upper_bounds(options, registry);
  }
  for (const Linears kind : kAllLinears) {  // as wide as 2B-4T
    SCOPED_TRACE(::testing::Message() << "linears of kind " << static_cast<int>(kind));
    const testing::TempDir dir;
    options.model = dir.path() / "m";
    write_model(options.model, config_of(2560, 6912, 128, 1), kind);
    expect_upper_bounds(options, registry);
  }
}

TEST(SubDevices, DivideTheLayersAmongThem) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_device());
  const BackendRegistry registry = registry_of(0, 2);
  std::vector<std::string> parts;
  for (const Device& d : registry.devices())
    if (d.name.find('/') != std::string::npos) parts.push_back(d.name);
  const std::string first = registry.devices()[0].name;
  if (parts.empty()) {
    parts = {first, first};
  } else {
    EXPECT_EQ(parts[0], first + "/0");
    EXPECT_EQ(parts[1], first + "/1");
  }
  InferenceEngine two(options_for(parts[0] + "," + parts[1]), registry);
  const std::int64_t all = two.model()->config().n_layers;
  ASSERT_EQ(two.stages().size(), 2u);
  EXPECT_EQ(two.stages()[0].device, parts[0]);
  EXPECT_EQ(two.stages()[1].device, parts[1]);
  EXPECT_EQ(two.stages()[0].n_layers, (all + 1) / 2);
  EXPECT_EQ(two.selection().device.name, parts[0] + "," + parts[1]);
  EXPECT_EQ(text_of(two), text_of_cpu());

  InferenceEngine three(options_for(parts[0] + "," + parts[1], all - 1), registry);
  EXPECT_EQ(three.stages().size(), 3u);
  EXPECT_EQ(text_of(three), text_of_cpu());
}

}  // namespace
}  // namespace bitnet
