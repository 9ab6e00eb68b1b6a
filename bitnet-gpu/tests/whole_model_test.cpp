// Whole models on the OpenCL device: the logits are the CPU's, to the bit, because the integers, the scales
// and the order of everything else are; and so is the text that the shipped model writes.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/gpu/register.hpp"
#include "bitnet/inference/fallback_backend.hpp"
#include "bitnet/inference/model.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/inference/session.hpp"
#include "bitnet/testing/opencl.hpp"
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

class WholeModel : public ::testing::TestWithParam<const char*> {};

TEST_P(WholeModel, LogitsEqualTheCpus) {
  BackendRegistry registry;
  gpu::register_backends(registry);
  BITNET_REQUIRE_OPENCL_DEVICE(!registry.devices().empty());
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 2, .isa = {}});
  std::unique_ptr<Backend> mixed = inference::with_cpu_fallback(
      registry.create(registry.devices()[0].name, context), inference::make_cpu_backend(context));
  EXPECT_EQ(logits_of(std::move(mixed), GetParam()),
            logits_of(inference::make_cpu_backend(context), GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Models, WholeModel,
                         ::testing::Values("bitnet-25-packed", "llama-packed-divide", "1bitllm-float",
                                           "llama-dense"));

// Greedy: a prompt of 300 tokens in chunks, then 200 tokens one at a time, in a context of more than three
// tiles.
struct Text {
  std::vector<TokenId> tokens;
  std::vector<float> logits;  // of the last token
};
Text write(std::shared_ptr<Backend> backend, DType kv_type, std::size_t n) {
  const auto model =
      Model::load(testing::source_path("models/bitnet-demo-10m-i2_s.gguf"), std::move(backend));
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
  const Text device = write(registry.create(registry.devices()[0].name, context), GetParam(), n);
  EXPECT_EQ(device.tokens, cpu.tokens);
  EXPECT_EQ(device.logits, cpu.logits);
}

INSTANTIATE_TEST_SUITE_P(CacheTypes, ShippedModel, ::testing::Values(DType::kF16, DType::kI8, DType::kF32));

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
