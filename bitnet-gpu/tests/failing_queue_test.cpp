// A real OpenCL queue that fails (failing_queue.hpp): a batch must end on the device after a passing fault,
// on the CPU after a lasting one, with the tokens of the CPU alone.
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <vector>

#include "bitnet/gpu/register.hpp"
#include "bitnet/inference/fallback_backend.hpp"
#include "bitnet/inference/recovering_scheduler.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/testing/failing_queue.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using inference::BatchScheduler;
using inference::GenerationResult;
using inference::Model;
using inference::RecoveringScheduler;

constexpr std::size_t kRequests = 5;

struct FailingQueueTest : ::testing::Test {
  void SetUp() override {
    gpu::register_backends(registry);
    BITNET_REQUIRE_OPENCL_DEVICE(!registry.devices().empty());
    testing::failing_queue.heal();
    model = on_device();
  }

  std::shared_ptr<const Model> load(std::unique_ptr<Backend> backend) {
    return Model::load(testing::source_path("tests/data/models/llama-packed-divide"), std::move(backend));
  }
  std::shared_ptr<const Model> on_device() {
    return load(inference::with_cpu_fallback(registry.create(registry.devices()[0].name, context),
                                             inference::make_cpu_backend(context)));
  }
  std::shared_ptr<const Model> on_cpu() { return load(inference::make_cpu_backend(context)); }

  std::map<std::size_t, GenerationResult> batch(Recovery& recovery) {
    std::map<std::size_t, GenerationResult> results;
    const auto factory = [this] {
      return std::make_unique<BatchScheduler>(
          model,
          inference::SchedulerOptions{.n_ctx = 32, .max_sequences = 3, .step_rows = 8, .page_size = 4});
    };
    RecoveringScheduler scheduler(factory, recovery);
    for (std::size_t i = 0; i < kRequests; ++i) {
      inference::Request r;
      r.prompt = {3, 1, 4, static_cast<TokenId>(1 + i)};
      r.options.max_tokens = 6;
      r.options.sampling.seed = i;
      r.on_done = [&results, i](inference::RequestId, const GenerationResult& result) {
        EXPECT_TRUE(results.emplace(i, result).second) << "finished twice";
      };
      scheduler.submit(std::move(r));
    }
    while (scheduler.step()) {
    }
    return results;
  }

  void expect_tokens_of_the_cpu(const std::map<std::size_t, GenerationResult>& results) {
    testing::failing_queue.heal();
    model = on_cpu();
    Recovery none({});
    const auto expected = batch(none);
    ASSERT_EQ(results.size(), kRequests);
    for (const auto& [i, result] : results) {
      EXPECT_FALSE(result.error.has_value()) << result.error->what();
      EXPECT_EQ(result.tokens, expected.at(i).tokens) << "request " << i;
    }
  }

  static RecoveryRule quick_retry() {
    RetryOptions o;
    o.limit = 2;
    o.applies = [](const Error& e) { return e.code() == ErrorCode::kDevice; };
    o.sleep = [](double) {};
    return retry(o);
  }

  std::shared_ptr<const ExecutionContext> context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 2, .isa = {}});
  BackendRegistry registry;
  std::shared_ptr<const Model> model;
};

TEST_F(FailingQueueTest, ThatComesBackLosesNothing) {
  testing::failing_queue.fail_from(20, 2);
  Recovery recovery({quick_retry()});
  const auto results = batch(recovery);
  EXPECT_GT(testing::failing_queue.launches, testing::failing_queue.last);
  EXPECT_GE(recovery.times("retry"), 1);
  expect_tokens_of_the_cpu(results);
}

TEST_F(FailingQueueTest, ThatStaysBrokenIsLeftForTheCpu) {
  testing::failing_queue.fail_from(20);
  const auto next = [&](const Error& e) {
    EXPECT_THAT(e.what(), ::testing::HasSubstr("CL_OUT_OF_RESOURCES"));
    model = on_cpu();
    return true;
  };
  Recovery recovery({quick_retry(), fall_back(next)});
  const auto results = batch(recovery);
  EXPECT_EQ(recovery.times("retry"), 2);
  EXPECT_EQ(recovery.times("fall back"), 1);
  expect_tokens_of_the_cpu(results);
}

TEST_F(FailingQueueTest, WithoutARemedyIsAnErrorOfEachRequest) {
  testing::failing_queue.fail_from(20);
  Recovery none({});
  const auto results = batch(none);
  ASSERT_EQ(results.size(), kRequests);
  std::size_t failed = 0;
  for (const auto& [i, result] : results) {
    if (!result.error) continue;
    ++failed;
    EXPECT_EQ(result.error->code(), ErrorCode::kDevice);
  }
  EXPECT_GT(failed, 0u);
}

}  // namespace
}  // namespace bitnet
