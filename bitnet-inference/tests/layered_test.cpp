// Layers on several backends: the same bits as on one, memory where it belongs, and how layers are divided.
#include "bitnet/inference/layered_backend.hpp"

#include <algorithm>
#include <numeric>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/inference/adapter_set.hpp"
#include "bitnet/inference/batch_scheduler.hpp"
#include "bitnet/inference/device_names.hpp"
#include "bitnet/inference/engine.hpp"
#include "bitnet/inference/layer_split.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

ModelConfig five_layers(bool tied) {
  ModelConfig c = testing::tiny_config();
  c.n_layers = 5;
  c.tied_embeddings = tied;
  return c;
}

std::unique_ptr<Backend> divided(const ModelConfig& config, const std::vector<std::int64_t>& layers) {
  std::vector<Stage> stages;
  for (const std::int64_t n : layers) stages.push_back({make_cpu_backend(make_context(1)), n});
  return with_layers_split(std::move(stages), config);
}

std::shared_ptr<const Model> build(const testing::TensorModel& tensors, std::unique_ptr<Backend> backend) {
  return Model::build(tensors.config, nullptr, std::move(backend), tensors);
}

/// Logits of a prompt in chunks, of single tokens, and after a part was taken back.
std::vector<float> logits_of(const std::shared_ptr<const Model>& model,
                             const std::shared_ptr<const AdapterSet>& adapters = nullptr) {
  Session session(model, {.n_ctx = 64, .chunk_rows = 5});
  session.set_adapters(adapters);
  std::vector<float> all;
  const auto add = [&](std::span<const float> logits) {
    all.insert(all.end(), logits.begin(), logits.end());
  };
  const std::vector<TokenId> prompt{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5};
  session.evaluate_all(prompt, 0, [&](std::int64_t, std::span<const float> row) { add(row); });
  for (const TokenId id : {8, 9, 7}) add(session.evaluate(std::vector<TokenId>{id}));
  session.truncate(6);
  add(session.evaluate(std::vector<TokenId>{2, 7, 1, 8}, 3));
  return all;
}

const std::vector<std::vector<std::int64_t>> kDivisions{{5},    {2, 3},       {0, 5},
                                                        {5, 0}, {1, 0, 3, 1}, {1, 1, 1, 1, 1}};

TEST(DeviceNames, AreOfOneMemoryOrOfSeveral) {
  EXPECT_EQ(split_device_names("opencl:0:0"), std::vector<std::string>{"opencl:0:0"});
  EXPECT_EQ(split_device_names("a,,b"), (std::vector<std::string>{"a", "", "b"}));
  EXPECT_TRUE(share_memory("opencl:0:1", "opencl:0:1/0"));
  EXPECT_FALSE(share_memory("opencl:0:1", "opencl:0:10"));
  EXPECT_FALSE(share_memory("opencl:0:0/0", "opencl:0:0/1"));
  const std::vector<std::string> names{"opencl:0:0", "opencl:0:0/1", "opencl:1:0", "opencl:0:0"};
  EXPECT_EQ(sharers(names), (std::vector<std::size_t>{3, 3, 1, 3}));
}

TEST(Layered, TheBitsOfOneBackendHoweverTheLayersLie) {
  for (const bool tied : {true, false}) {
    const testing::TensorModel tensors = testing::random_model(five_layers(tied), 3);
    const std::vector<float> expected = logits_of(build(tensors, make_cpu_backend(make_context(1))));
    for (const auto& division : kDivisions)
      EXPECT_EQ(logits_of(build(tensors, divided(tensors.config, division))), expected)
          << ::testing::PrintToString(division) << (tied ? ", tied" : "");
  }
}

TEST(Layered, AdaptersLieBesideTheirLayers) {
  const testing::TensorModel tensors = testing::random_model(five_layers(true), 4);
  const quant::LoraAdapter adapter =
      testing::random_adapter(tensors.config, {TensorRole::kAttnQ, TensorRole::kFfnDown}, 3, 1);
  const quant::WeightedAdapter one{&adapter, 1};
  const auto with = [&](std::unique_ptr<Backend> backend) {
    const auto model = build(tensors, std::move(backend));
    return logits_of(model, AdapterSet::build(model, {&one, 1}));
  };
  const auto expected = with(make_cpu_backend(make_context(1)));
  EXPECT_NE(expected, logits_of(build(tensors, make_cpu_backend(make_context(1)))));
  for (const auto& division : kDivisions) EXPECT_EQ(with(divided(tensors.config, division)), expected);
}

TEST(Layered, BatchesHaveTheTokensOfOneBackend) {
  const testing::TensorModel tensors = testing::random_model(five_layers(true), 5);
  const auto batch = [&](std::unique_ptr<Backend> backend) {
    const auto model = build(tensors, std::move(backend));
    BatchScheduler scheduler(model, {.n_ctx = 32, .max_sequences = 3, .step_rows = 7, .page_size = 4});
    std::vector<std::vector<TokenId>> tokens(6);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      Request r;
      for (std::size_t t = 0; t < 3 + 2 * i; ++t) r.prompt.push_back(static_cast<TokenId>(5 * i + t));
      r.options.max_tokens = 5;
      r.options.sampling.seed = i;
      r.on_done = [&tokens, i](RequestId, const GenerationResult& result) {
        EXPECT_FALSE(result.error);
        tokens[i] = result.tokens;
      };
      scheduler.submit(std::move(r));
    }
    while (scheduler.step()) {
    }
    return tokens;
  };
  const auto expected = batch(make_cpu_backend(make_context(1)));
  for (const auto& division : kDivisions) EXPECT_EQ(batch(divided(tensors.config, division)), expected);
}

TEST(Layered, MemoryIsTakenWhereTheLayersLie) {
  const ModelConfig config = five_layers(true);
  const testing::TensorModel tensors = testing::random_model(config, 6);
  std::vector<std::shared_ptr<HybridMemoryPool>> pools;
  std::vector<Stage> stages;
  for (const std::int64_t n : {1, 4}) {
    pools.push_back(std::make_shared<HybridMemoryPool>(MemoryPoolOptions{}));
    ExecutionContext::Options options;
    options.threads = 1;
    options.memory = pools.back();
    stages.push_back({make_cpu_backend(std::make_shared<const ExecutionContext>(options)), n});
  }
  const auto model = build(tensors, with_layers_split(std::move(stages), config));
  EXPECT_EQ(model->backend().memories().size(), 2u);
  EXPECT_EQ(model->backend().name(), "cpu+cpu");
  EXPECT_THAT(model->backend().description(), ::testing::HasSubstr("1 layers on cpu"));
  const std::size_t before[] = {pools[0]->stats().used, pools[1]->stats().used};
  const KvPool pool(model->backend(), config, 1000);
  const std::size_t first = pools[0]->stats().used - before[0], second = pools[1]->stats().used - before[1];
  EXPECT_GE(first + second, pool.bytes());
  EXPECT_NEAR(static_cast<double>(second) / static_cast<double>(first), 4, 0.5);
}

TEST(Layered, SayWhatIsWrongWithStages) {
  const ModelConfig config = five_layers(true);
  BITNET_EXPECT_ERROR(static_cast<void>(with_layers_split({}, config)), ErrorCode::kInvalidArgument,
                      "0 stages of 0 layers in all, the model has 5");
  BITNET_EXPECT_ERROR(divided(config, {2, 2}), ErrorCode::kInvalidArgument,
                      "2 stages of 4 layers in all, the model has 5");
  BITNET_EXPECT_ERROR(divided(config, {6, -1}), ErrorCode::kInvalidArgument, "a stage of 6 layers of 5");
  std::vector<Stage> none;
  none.push_back({nullptr, 5});
  BITNET_EXPECT_ERROR(static_cast<void>(with_layers_split(std::move(none), config)),
                      ErrorCode::kInvalidArgument, "a stage without a backend");
}

TEST(Layered, BuffersOfOthersAreRefused) {
  const ModelConfig config = five_layers(true);
  const auto backend = divided(config, {2, 3}), cpu = make_cpu_backend(make_context(1));
  const BufferPtr own = backend->allocate(64), other = cpu->allocate(64);
  BITNET_EXPECT_ERROR(backend->add({own.get(), 0, 2, 8}, {other.get(), 0, 2, 8}), ErrorCode::kInvalidArgument,
                      "a buffer of another backend");
}

LayerCosts costs_of(std::size_t n_layers, std::size_t layer, std::size_t rest) {
  LayerCosts costs;
  costs.layers.assign(n_layers, layer);
  costs.embedding = costs.head = rest;
  costs.workspace = 1;
  return costs;
}

TEST(LayerSplit, TakesAsManyLayersAsFit) {
  const LayerCosts costs = costs_of(10, 100, 50);
  const auto on_cpu = [&](std::vector<std::size_t> free) {
    const LayerSplit split = split_layers(costs, free, kAutoLayers);
    EXPECT_EQ(split.n_layers(), 10);
    EXPECT_EQ(split.on_device.size(), free.size());
    return split.on_cpu;
  };
  EXPECT_EQ(on_cpu({1101}), 0);  // ten layers, embedding, head, workspace
  EXPECT_EQ(on_cpu({1100}), 1);
  EXPECT_EQ(on_cpu({951}), 1);  // the embedding is the CPU's now
  EXPECT_EQ(on_cpu({950}), 2);
  EXPECT_EQ(on_cpu({151}), 9);
  EXPECT_EQ(on_cpu({150}), 10);
  EXPECT_EQ(on_cpu({0}), 10);
  EXPECT_EQ(on_cpu({551, 551}), 0);
  EXPECT_EQ(on_cpu({550, 551}), 1);
  EXPECT_EQ(on_cpu({0, 0, 0}), 10);
}

TEST(LayerSplit, DividesInProportionToTheMemory) {
  const LayerCosts costs = costs_of(12, 1, 0);
  EXPECT_EQ(split_layers(costs, std::vector<std::size_t>{7, 7}, kAllLayers).on_device,
            (std::vector<std::int64_t>{6, 6}));
  const LayerSplit third = split_layers(costs, std::vector<std::size_t>{100, 200}, 9);
  EXPECT_EQ(third.on_cpu, 3);
  EXPECT_EQ(third.on_device, (std::vector<std::int64_t>{3, 6}));
  EXPECT_EQ(split_layers(costs, std::vector<std::size_t>{0, 0}, 4).on_device,
            (std::vector<std::int64_t>{2, 2}));
  EXPECT_EQ(split_layers(costs, std::vector<std::size_t>{5}, 0).on_cpu, 12);
  BITNET_EXPECT_ERROR(split_layers(costs, {}, 3), ErrorCode::kInvalidArgument, "3 layers on 0 devices");
  BITNET_EXPECT_ERROR(split_layers(costs, std::vector<std::size_t>{5}, -2), ErrorCode::kInvalidArgument,
                      "-2 layers on 1 devices");
}

TEST(LayerSplit, IsSaidInWords) {
  const std::vector<StagePlace> three{{"cpu", 0, 3}, {"opencl:0:0", 3, 1}, {"opencl:0:1", 4, 2}};
  EXPECT_EQ(describe(three),
            "embedding and layers 0 … 2 on cpu; layer 3 on opencl:0:0; layers 4 … 5 and head on opencl:0:1");
  const std::vector<StagePlace> one{{"cpu", 0, 3}};
  EXPECT_EQ(describe(one), "embedding, layers 0 … 2 and head on cpu");
}

TEST(LayerSplit, EngineSaysWhatCannotBe) {
  const auto error = [](std::string device, std::int64_t layers, bool only) {
    EngineOptions options;
    options.model = testing::source_path("tests/data/models/llama-packed-divide");
    options.device = std::move(device);
    options.device_layers = layers;
    options.device_only = only;
    InferenceEngine engine(options);
  };
  BITNET_EXPECT_ERROR(error("cpu", 1, false), ErrorCode::kInvalidArgument, "the device is 'cpu'");
  BITNET_EXPECT_ERROR(error("x,cpu", kAllLayers, false), ErrorCode::kInvalidArgument,
                      "a list has names of devices other than 'cpu', not 'cpu'");
  BITNET_EXPECT_ERROR(error("x,", kAllLayers, false), ErrorCode::kInvalidArgument, "not ''");
  BITNET_EXPECT_ERROR(error("x", -3, false), ErrorCode::kInvalidArgument, "-3 layers on a device");
  BITNET_EXPECT_ERROR(error("x", 2, true), ErrorCode::kInvalidArgument, "the others have no place");
  BITNET_EXPECT_ERROR(error("x,y", kAllLayers, false), ErrorCode::kNotFound, "'x'");
}

}  // namespace
}  // namespace bitnet::inference
