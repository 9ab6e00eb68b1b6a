// A whole model with its linear layers on the OpenCL device and the rest on the CPU: the logits are the
// CPU's, to the bit, because the integers, the scales and the order of everything else are.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "bitnet/core/execution.hpp"
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

TEST(DeviceOnly, ListsWhatIsMissing) {
  BackendRegistry registry;
  gpu::register_backends(registry);
  BITNET_REQUIRE_OPENCL_DEVICE(!registry.devices().empty());
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 1, .isa = {}});
  BITNET_EXPECT_ERROR(inference::with_cpu_fallback(registry.create(registry.devices()[0].name, context),
                                                   inference::make_cpu_backend(context), true),
                      ErrorCode::kUnsupported, "rms_norm");
}

}  // namespace
}  // namespace bitnet
