// Whole models on the OpenCL device: the logits are the CPU's, to the bit, because the integers, the scales
// and the order of everything else are; and so is the text that the shipped model writes.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/profiler.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/gpu/register.hpp"
#include "bitnet/inference/batch_scheduler.hpp"
#include "bitnet/inference/engine.hpp"
#include "bitnet/inference/fallback_backend.hpp"
#include "bitnet/inference/model.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/inference/session.hpp"
#include "bitnet/quant/quantizer.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/reference_forward.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using inference::Model;
using inference::Session;

// Logits after a prompt, and after each of some further tokens.
std::vector<float> logits_of(std::shared_ptr<Backend> backend, const std::string& file) {
  const auto model = Model::load(testing::source_path("tests/data/models/" + file), std::move(backend));
  Session session(model, {.n_ctx = 32});
  std::vector<float> all;
  const std::vector<TokenId> prompt{3, 1, 4, 1, 5, 9, 2, 6};
  for (const auto& ids : {prompt, std::vector<TokenId>{5}, std::vector<TokenId>{3}}) {
    const auto logits = session.evaluate(ids);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

/// As a device with its own memory is used.
BackendRegistry with_own_memory() {
  gpu::Options options;
  options.kernels.zero_copy = false;
  BackendRegistry registry;
  gpu::register_backends(registry, options);
  return registry;
}

/// As a device is used whose driver records launches, with its own memory or not.
BackendRegistry recording(bool own_memory) {
  gpu::Options options;
  options.kernels.record = true;
  if (own_memory) options.kernels.zero_copy = false;
  BackendRegistry registry;
  gpu::register_backends(registry, options);
  return registry;
}
bool records(const Device& device) {
  const auto& all = device.capabilities.features;
  return std::find(all.begin(), all.end(), "cl_khr_command_buffer") != all.end();
}

class WholeModel : public ::testing::TestWithParam<std::tuple<const char*, bool>> {};

TEST_P(WholeModel, LogitsEqualTheCpus) {
  const auto [file, own_memory] = GetParam();
  BackendRegistry registry;
  gpu::register_backends(registry);
  if (own_memory) registry = with_own_memory();
  BITNET_REQUIRE_OPENCL_DEVICE(!registry.devices().empty());
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 2, .isa = {}});
  std::unique_ptr<Backend> mixed = inference::with_cpu_fallback(
      registry.create(registry.devices()[0].name, context), inference::make_cpu_backend(context));
  EXPECT_EQ(logits_of(std::move(mixed), file), logits_of(inference::make_cpu_backend(context), file));
}

INSTANTIATE_TEST_SUITE_P(Models, WholeModel,
                         ::testing::Combine(::testing::Values("bitnet-25-packed", "llama-packed-divide",
                                                              "1bitllm-float", "llama-dense"),
                                            ::testing::Bool()));

// Greedy: a prompt of 300 tokens in chunks, then 200 tokens one at a time, in a context of more than three
// tiles.
struct Text {
  std::vector<TokenId> tokens;
  std::vector<float> logits;  // of the last token
};
Text write(std::shared_ptr<Backend> backend, DType kv_type, std::size_t n) {
  const auto model = Model::load(testing::source_path("models/bitnet-demo-i2_s.gguf"), std::move(backend));
  const std::string book = read_file(testing::source_path("tests/data/text/northanger_abbey.txt"));
  std::vector<TokenId> prompt = model->require_tokenizer().encode(book.substr(0, 2000));
  prompt.resize(300);
  Session session(model, {.n_ctx = 512, .chunk_rows = 64, .kv_type = kv_type});
  Text text;
  auto logits = session.evaluate(prompt);
  while (text.tokens.size() < n) {
    text.tokens.push_back(
        static_cast<TokenId>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    logits = session.evaluate({&text.tokens.back(), 1});
  }
  text.logits.assign(logits.begin(), logits.end());
  return text;
}

class ShippedModel : public ::testing::TestWithParam<DType> {};

TEST_P(ShippedModel, WritesTheTextOfTheCpu) {
  BackendRegistry registry;
  gpu::register_backends(registry);
  BITNET_REQUIRE_OPENCL_DEVICE(!registry.devices().empty());
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 2, .isa = {}});
  const std::size_t n = GetParam() == DType::kF16 ? 200 : 30;
  const Text cpu = write(inference::make_cpu_backend(context), GetParam(), n);
  for (const BackendRegistry& devices : {registry, with_own_memory()}) {
    const Text device = write(devices.create(devices.devices()[0].name, context), GetParam(), n);
    EXPECT_EQ(device.tokens, cpu.tokens);
    EXPECT_EQ(device.logits, cpu.logits);
  }
}

INSTANTIATE_TEST_SUITE_P(CacheTypes, ShippedModel, ::testing::Values(DType::kF16, DType::kI8, DType::kF32));

TEST(ADeviceWithItsOwnMemory, SendsTheLargestLogitsAlone) {
  BackendRegistry devices = with_own_memory();
  BITNET_REQUIRE_OPENCL_DEVICE(!devices.devices().empty());
  inference::register_cpu_backend(devices);
  inference::GenerationOptions options;
  options.max_tokens = 24;
  options.sampling.seed = 5;
  options.sampling.repeat_penalty = 1.3f;
  options.ignore_eos = true;
  const auto generate = [&](inference::InferenceEngine& engine) {
    const auto result = engine.generate("The weather in Bath", options);
    EXPECT_FALSE(result.error.has_value());
    return result.tokens;
  };
  const auto model = testing::source_path("models/bitnet-demo-i2_s.gguf");
  inference::InferenceEngine device({.model = model, .device = devices.devices()[0].name, .n_ctx = 64},
                                    devices);
  inference::InferenceEngine cpu({.model = model, .n_ctx = 64});
  EXPECT_EQ(generate(device), generate(cpu));
  const DeviceStatistics before = device.model()->backend().statistics();  // with all its memory
  EXPECT_EQ(generate(device), generate(cpu));
  const DeviceStatistics after = device.model()->backend().statistics();
  const std::uint64_t steps = after.downloads - before.downloads;
  EXPECT_EQ(steps, 24u);
  EXPECT_EQ(after.download_bytes - before.download_bytes, steps * (40 + 64) * 8);  // top_k, the window
  EXPECT_EQ(after.waits - before.waits, steps);  // once a step, for the token
  options.sampling.top_k = 0;                    // every logit is needed
  EXPECT_EQ(generate(device), generate(cpu));
}

TEST(ATokenOfTheShippedModel, TakesTenLaunchesALayerAndFourMore) {
  BackendRegistry registry;
  gpu::register_backends(registry);
  BITNET_REQUIRE_OPENCL_DEVICE(!registry.devices().empty());
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 2, .isa = {}});
  const auto model = Model::load(testing::source_path("models/bitnet-demo-i2_s.gguf"),
                                 registry.create(registry.devices()[0].name, context));
  Session session(model, {.n_ctx = 32});
  session.evaluate(std::vector<TokenId>{3, 1, 4, 1, 5});
  const std::uint64_t before = model->backend().statistics().launches;
  session.evaluate(std::vector<TokenId>{9});
  // Of a layer: rows quantised and multiplied four times (queries, keys and values; their output; gate and
  // up; down), the additions in these; rotation and storing; attention. Beside layers: embedding, last norm,
  // rows quantised and multiplied by the head.
  EXPECT_EQ(model->config().n_layers, 6);
  EXPECT_EQ(model->backend().statistics().launches - before, 10u * 6u + 4u);
}

TEST(ADeviceThatRecords, ReplaysTheStepsOfAToken) {
  for (const bool own_memory : {false, true}) {
    SCOPED_TRACE(own_memory);
    BackendRegistry devices = recording(own_memory);
    BITNET_REQUIRE_OPENCL_DEVICE(!devices.devices().empty());
    if (!records(devices.devices()[0])) GTEST_SKIP() << "no cl_khr_command_buffer";
    const auto context =
        std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 2, .isa = {}});
    const std::shared_ptr<Backend> backend = devices.create(devices.devices()[0].name, context);
    const Text cpu = write(inference::make_cpu_backend(context), DType::kF16, 60);
    const Text device = write(backend, DType::kF16, 60);
    EXPECT_EQ(device.tokens, cpu.tokens);
    EXPECT_EQ(device.logits, cpu.logits);
    const DeviceStatistics s = backend->statistics();
    EXPECT_GE(s.replays, 30u);  // of 60 steps; one that the driver still calls running is not replayed
    EXPECT_GT(s.replayed_launches / s.replays, 20u);
    EXPECT_GT(s.launches, s.replayed_launches);
    // The model is gone, its memory is the pool's; another one has it next, and then the first again.
    for (const char* file : {"llama-packed-divide", "bitnet-25-packed", "llama-packed-divide"})
      EXPECT_EQ(logits_of(backend, file), logits_of(inference::make_cpu_backend(context), file)) << file;
    MemoryResource& pool = *backend->memory();
    pool.trim();
    EXPECT_EQ(pool.stats().held, pool.stats().used);
    EXPECT_EQ(logits_of(backend, "1bitllm-float"),
              logits_of(inference::make_cpu_backend(context), "1bitllm-float"));
  }
}

// Continuous batching: sequences come and go, so that steps of many kinds take turns.
TEST(ADeviceThatRecords, RunsBatchesAsTheCpuDoes) {
  BackendRegistry devices = recording(true);
  BITNET_REQUIRE_OPENCL_DEVICE(!devices.devices().empty());
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 2, .isa = {}});
  const auto batch = [&](std::shared_ptr<Backend> backend) {
    const auto model = Model::load(testing::source_path("tests/data/models/llama-packed-divide"), backend);
    inference::BatchScheduler scheduler(
        model, inference::SchedulerOptions{.n_ctx = 64, .max_sequences = 3, .step_rows = 8, .page_size = 4});
    std::map<std::size_t, std::vector<TokenId>> texts;
    for (std::size_t i = 0; i < 7; ++i) {
      inference::Request r;
      r.prompt = std::vector<TokenId>(1 + 2 * i, static_cast<TokenId>(1 + i));
      r.options.max_tokens = 10 + static_cast<std::int64_t>(5 * i);
      r.options.sampling.seed = i;
      r.options.ignore_eos = true;
      r.on_done = [&texts, i](inference::RequestId, const inference::GenerationResult& result) {
        EXPECT_FALSE(result.error.has_value());
        texts[i] = result.tokens;
      };
      scheduler.submit(std::move(r));
    }
    while (scheduler.step()) {
    }
    return texts;
  };
  const std::shared_ptr<Backend> backend = devices.create(devices.devices()[0].name, context);
  EXPECT_EQ(batch(backend), batch(inference::make_cpu_backend(context)));
  if (records(devices.devices()[0])) {
    EXPECT_GT(backend->statistics().replays, 10u);
  }
}

TEST(DeviceStatistics, TellWhatADeviceDidAndWithAProfilerHowLong) {
  BackendRegistry devices = with_own_memory();
  BITNET_REQUIRE_OPENCL_DEVICE(!devices.devices().empty());
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 1, .isa = {}});
  const std::shared_ptr<Backend> backend = devices.create(devices.devices()[0].name, context);
  EXPECT_EQ(backend->statistics().launches, 0u);
  const BufferPtr x = backend->allocate(4096), y = backend->allocate(4096);
  const Matrix a{x.get(), 0, 4, 256}, b{y.get(), 0, 4, 256};
  const std::vector<float> ones(1024, 1.0f);
  backend->upload(*y, 0, std::as_bytes(std::span(ones)));
  backend->add(a, b);
  EXPECT_EQ(backend->statistics().launches, 1u);
  EXPECT_EQ(backend->statistics().upload_bytes, 4096u);
  EXPECT_TRUE(backend->statistics().kernels.empty());

  Profiler profiler;
  backend->set_profiler(&profiler);
  for (int i = 0; i < 3; ++i) backend->add(a, b);
  backend->rms_norm(a, *y, 1e-5f, a);
  backend->upload(*y, 0, std::as_bytes(std::span(ones)));
  std::vector<float> got(1024);
  backend->download(*x, 0, std::as_writable_bytes(std::span(got)));
  backend->set_profiler(nullptr);
  backend->add(a, b);
  const DeviceStatistics s = backend->statistics();
  EXPECT_EQ(s.launches, 6u);
  EXPECT_EQ(s.timed_upload_bytes, 4096u);
  EXPECT_EQ(s.timed_download_bytes, 4096u);
  EXPECT_EQ(s.download_bytes, 4096u);
  EXPECT_GT(s.programs, 0u);
  EXPECT_EQ(s.buffers, 2u + 0u);
  ASSERT_EQ(s.kernels.size(), 2u);
  std::map<std::string, std::uint64_t> launches;
  for (const auto& k : s.kernels) launches[k.name] = k.launches;
  EXPECT_EQ(launches, (std::map<std::string, std::uint64_t>{{"add_rows", 3}, {"normalize_quantize", 1}}));
  // Each op's zone has its kernel's inside.
  std::map<std::string, int> zones;
  for (const ProfileEvent& e : profiler.events()) ++zones[e.name];
  EXPECT_EQ(zones["add"], 3);
  EXPECT_EQ(zones["kernel add_rows"], 3);
  EXPECT_EQ(zones["kernel normalize_quantize"], 1);
  EXPECT_EQ(zones["copy from device"], 1);
  for (const ProfileRow& row : profiler.summary()) EXPECT_GE(row.self_seconds, 0) << row.name;
}

/// What a token of the shipped model does, after a prompt.
struct Token {
  std::map<std::string, std::uint64_t> kernels;  // launches, where times were taken
  std::map<std::string, std::uint64_t> zones;    // calls, of a profiler
  std::uint64_t launches = 0, waits = 0, timed_download_bytes = 0;
};
Token token_of(const BackendRegistry& devices, bool times, Profiler* profiler) {
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 2, .isa = {}});
  const auto model = Model::load(testing::source_path("models/bitnet-demo-i2_s.gguf"),
                                 devices.create(devices.devices()[0].name, context));
  Session session(model, {.n_ctx = 32});
  session.evaluate(std::vector<TokenId>{3, 1, 4, 1, 5});
  Backend& backend = model->backend();
  const DeviceStatistics before = backend.statistics();
  backend.take_device_times(times);
  backend.set_profiler(profiler);
  session.evaluate(std::vector<TokenId>{9});
  backend.set_profiler(nullptr);
  const DeviceStatistics after = backend.statistics();
  Token token;
  token.launches = after.launches - before.launches;
  token.waits = after.waits - before.waits;
  token.timed_download_bytes = after.timed_download_bytes;
  for (const auto& k : after.kernels) token.kernels[k.name] = k.launches;
  if (profiler != nullptr)
    for (const ProfileRow& row : profiler->summary()) token.zones[row.name] = row.calls;
  return token;
}

TEST(TimesOfADevice, AreTakenOfTheSameLaunches) {
  BackendRegistry devices;
  gpu::register_backends(devices);
  BITNET_REQUIRE_OPENCL_DEVICE(!devices.devices().empty());
  const Token without = token_of(devices, false, nullptr), with = token_of(devices, true, nullptr);
  EXPECT_TRUE(without.kernels.empty());
  EXPECT_EQ(with.launches, without.launches);
  EXPECT_EQ(with.waits, without.waits + 1);  // for the queue without times
  EXPECT_GT(with.timed_download_bytes, 0u);
  std::uint64_t launches = 0;
  for (const auto& [name, n] : with.kernels) launches += n;
  EXPECT_EQ(launches, with.launches);
  EXPECT_EQ(with.kernels.at("attention"), 6u);
  EXPECT_EQ(with.kernels.at("rope_and_store"), 6u);
}

TEST(ZonesOfAProfiler, TellKernelsFromOpsOfTheirName) {
  BackendRegistry devices;
  gpu::register_backends(devices);
  BITNET_REQUIRE_OPENCL_DEVICE(!devices.devices().empty());
  Profiler profiler;
  const Token token = token_of(devices, false, &profiler);
  EXPECT_EQ(token.zones.at("attention"), 6u);
  EXPECT_EQ(token.zones.at("kernel attention"), 6u);
  EXPECT_EQ(token.zones.at("rope"), 12u);
  EXPECT_EQ(token.zones.at("kernel rope"), 12u);  // each alone: the profiler waits for it
  EXPECT_EQ(token.kernels.at("attention"), 6u);
}

// A model whose linears are not one plane with a scale a row, on the device; and where it lacks what they
// take, on the CPU, the rest of the step on the device: to the CPU's bits.
void expect_the_cpus_logits(const std::filesystem::path& model,
                            const std::shared_ptr<const ExecutionContext>& context) {
  BackendRegistry registry, without_doubles;
  gpu::register_backends(registry);
  BITNET_REQUIRE_OPENCL_DEVICE(!registry.devices().empty());
  gpu::Options few;
  few.kernels.doubles = false;
  gpu::register_backends(without_doubles, few);
  std::int64_t on_the_cpu = 0;
  const auto logits = [&](const BackendRegistry& devices, const std::string& device, bool alone) {
    inference::EngineOptions options;
    options.model = model;
    options.device = device;
    options.device_only = alone;
    options.context = context;
    inference::InferenceEngine engine(options, devices);
    on_the_cpu = engine.fallback_weights();
    std::vector<float> all;
    const std::vector<TokenId> ids{3, 1, 4, 1, 5, 9, 2, 6, 5, 3};
    engine.session().evaluate_all(ids, 0, [&](std::int64_t, std::span<const float> row) {
      all.insert(all.end(), row.begin(), row.end());
    });
    return all;
  };
  const std::string name = registry.devices()[0].name;
  inference::register_cpu_backend(registry);
  inference::register_cpu_backend(without_doubles);
  const auto want = logits(registry, "cpu", false);
  EXPECT_EQ(logits(without_doubles, name, false), want);
  EXPECT_GT(on_the_cpu, 0);
  BITNET_EXPECT_ERROR(logits(without_doubles, name, true), ErrorCode::kUnsupported,
                      "not two planes, groups of columns, int8 or activations of 4 bits");
  const std::vector<Device> devices = registry.devices();
  const auto& extensions = devices[0].capabilities.features;
  if (std::find(extensions.begin(), extensions.end(), "cl_khr_fp64") == extensions.end())
    GTEST_SKIP() << "this device has no numbers of 64 bits";
  EXPECT_EQ(logits(registry, name, true), want);
  EXPECT_EQ(on_the_cpu, 0);
}

TEST(ExtendedModel, LogitsEqualTheCpus) {
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 2, .isa = {}});
  const auto reader = quant::ModelReader::open(testing::source_path("tests/data/models/llama-dense"));
  const quant::QuantConfig config = quant::QuantConfig::from_yaml(
      "scheme: mixed_precision\n"
      "weights: {method: ls, scales: row}\n"
      "layers:\n"
      "  - {match: ['*attn_k', '*ffn_up'], method: two-plane}\n"
      "  - {match: '*attn_v', method: int8}\n"
      "  - {match: '*ffn_gate', scales: group32}\n"
      "keep: ['*attn_output']\n",
      "plan");
  const testing::TempDir dir;
  quant::WriteOptions as;
  as.type = quant::LinearType::kExtended;
  quant::Quantizer quantizer(*context, *reader, config);
  quant::write_model(
      dir.path() / "mixed", reader->config(), nullptr, [&](TensorId id) { return quantizer.read(id); }, as);
  expect_the_cpus_logits(dir.path() / "mixed", context);
}

/// Blocks of TQ1_0 and TQ2_0 whose scales differ within a row.
TEST(TqBlocks, LogitsEqualTheCpus) {
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 2, .isa = {}});
  ModelConfig config = testing::tiny_config();
  config.hidden_size = config.intermediate_size = 512;
  config.head_dim = 128;
  testing::TensorModel model = testing::random_model(config, 4);
  Rng rng(1);
  for (auto& [name, t] : model.tensors) {
    if (!t.ternary) continue;
    t.weights.rows_per_scale = 1;
    t.weights.cols_per_scale = 256;
    t.weights.scales.resize(static_cast<std::size_t>(t.weights.out * 2));
    for (float& s : t.weights.scales) s = static_cast<float>(0.02 + 0.05 * rng.uniform());
  }
  const testing::TempDir dir;
  for (const auto type : {quant::LinearType::kTQ1_0, quant::LinearType::kTQ2_0}) {
    const auto path = dir.path() / (type == quant::LinearType::kTQ1_0 ? "tq1.gguf" : "tq2.gguf");
    quant::write_model(path, config, nullptr, model, {.type = type});
    EXPECT_EQ(quant::ModelReader::open(path)->read({TensorRole::kFfnUp, 0}).weights.cols_per_scale, 256);
    expect_the_cpus_logits(path, context);
  }
}

TEST(DeviceOnly, LacksNothing) {
  BackendRegistry registry;
  gpu::register_backends(registry);
  BITNET_REQUIRE_OPENCL_DEVICE(!registry.devices().empty());
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 1, .isa = {}});
  const std::string name = registry.devices()[0].name;
  const auto backend = inference::with_cpu_fallback(registry.create(name, context),
                                                    inference::make_cpu_backend(context), true);
  EXPECT_EQ(backend->name(), name);
  EXPECT_TRUE(inference::missing_ops(*backend).empty());
}

}  // namespace
}  // namespace bitnet
