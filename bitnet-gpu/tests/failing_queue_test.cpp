// A real OpenCL queue that fails (failing_queue.hpp), at once or when it is waited for: a batch must end on
// the device after a passing fault, on a new queue where the old one is dead, on the CPU after a lasting
// fault, with the tokens of the CPU alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <vector>

#include "bitnet/core/profiler.hpp"
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
using testing::ClCall;
using testing::failing_queue;

constexpr std::size_t kRequests = 5;

struct Way {
  const char* name;
  gpu::KernelChoice kernels;
};

gpu::KernelChoice own_transfers() {
  gpu::KernelChoice choice;
  choice.transfer_queue = true;
  return choice;
}

gpu::KernelChoice recorded() {
  gpu::KernelChoice choice = own_transfers();
  choice.record = true;
  return choice;
}

struct FailingQueueTest : ::testing::TestWithParam<Way> {
  void SetUp() override {
    gpu::Options options;
    options.kernels = GetParam().kernels;
    gpu::register_backends(registry, options);
    BITNET_REQUIRE_OPENCL_DEVICE(!registry.devices().empty());
    failing_queue.heal();
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
    failing_queue.heal();
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

/// The call of a batch that is to fail, counted from its first: a pass has many launches and one read.
constexpr int nth(ClCall call) { return call == ClCall::kRead ? 5 : 20; }

constexpr ClCall kOfAPass[] = {ClCall::kLaunch, ClCall::kAsync, ClCall::kRead, ClCall::kWrite};

TEST_P(FailingQueueTest, ThatComesBackLosesNothing) {
  for (const ClCall call : kOfAPass) {
    SCOPED_TRACE(static_cast<int>(call));
    failing_queue.heal();
    model = on_device();
    failing_queue.fail_from(call, nth(call), 2);
    Recovery recovery({quick_retry()});
    const auto results = batch(recovery);
    EXPECT_GE(failing_queue.failures, 2);
    EXPECT_GE(recovery.times("retry"), 1);
    expect_tokens_of_the_cpu(results);
  }
}

TEST_P(FailingQueueTest, ThatIsDeadUntilItIsMadeAnewIsMadeAnew) {
  for (const ClCall call : kOfAPass) {
    SCOPED_TRACE(static_cast<int>(call));
    failing_queue.heal();
    model = on_device();
    failing_queue.die_at(call, nth(call));
    RecoveryRule reopen;
    reopen.name = "reopen";
    reopen.act = [&](const Error&, std::int64_t) {
      model.reset();
      model = on_device();
      return RecoveryStep::kAgain;
    };
    reopen.per_run = 1;
    Recovery recovery({quick_retry(), reopen});
    const auto results = batch(recovery);
    EXPECT_GE(failing_queue.failures, 2);  // the retry met the dead queue
    EXPECT_EQ(recovery.times("reopen"), 1);
    expect_tokens_of_the_cpu(results);
  }
}

TEST_P(FailingQueueTest, ThatStaysBrokenIsLeftForTheCpu) {
  for (const ClCall call : kOfAPass) {
    SCOPED_TRACE(static_cast<int>(call));
    failing_queue.heal();
    model = on_device();
    failing_queue.fail_from(call, nth(call));
    const auto next = [&](const Error& e) {
      EXPECT_THAT(e.what(), ::testing::HasSubstr("CL_OUT_OF_RESOURCES"));
      EXPECT_THAT(e.what(), ::testing::HasSubstr(registry.devices()[0].name + ": "));
      model = on_cpu();
      return true;
    };
    Recovery recovery({quick_retry(), fall_back(next)});
    const auto results = batch(recovery);
    EXPECT_EQ(recovery.times("retry"), 2);
    EXPECT_EQ(recovery.times("fall back"), 1);
    expect_tokens_of_the_cpu(results);
  }
}

TEST_P(FailingQueueTest, ThatRefusesBuffersOfABatchGetsASmallerOne) {
  failing_queue.fail_from(ClCall::kBuffer, 1, 2);
  std::int64_t sequences = 8;
  Recovery recovery({shrink(sequences)});
  const auto results = batch(recovery);
  EXPECT_EQ(failing_queue.failures, 2);
  EXPECT_GE(recovery.times("shrink"), 1);
  expect_tokens_of_the_cpu(results);
}

TEST_P(FailingQueueTest, WithoutARemedyIsAnErrorOfEachRequest) {
  failing_queue.fail_from(ClCall::kLaunch, 20);
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

INSTANTIATE_TEST_SUITE_P(Ways, FailingQueueTest,
                         ::testing::Values(Way{"one_queue", {}}, Way{"own_transfers", own_transfers()},
                                           Way{"recorded", recorded()}),
                         [](const auto& way) { return std::string(way.param.name); });

/// Queues that were given back, and unmappings on one of those: its memory may be another object's.
struct ReleasedQueues {
  bool watched = false;  // later queues may have the addresses of those

  std::vector<cl_command_queue> queues = {};
  int unmaps = 0, unmaps_on_released = 0;
} released;

// A profiler that joins makes the next call take another queue, and the old one is given back.
TEST(AProfilerThatJoins, LeavesStagingBuffersTheQueueThatTheyAreMappedOn) {
  gpu::Options options;
  options.kernels.zero_copy = false;
  BackendRegistry devices;
  gpu::register_backends(devices, options);
  BITNET_REQUIRE_OPENCL_DEVICE(!devices.devices().empty());
  failing_queue.heal();
  const auto backend = devices.create(devices.devices()[0].name, std::make_shared<const ExecutionContext>());
  Profiler profiler;
  backend->set_profiler(&profiler);
  const std::vector<std::int8_t> trits(std::size_t{64} * 300, 1);
  const float scale = 1.0f;
  LinearWeights w;
  w.out = 64;
  w.in = 300;
  w.trits = trits;
  w.scales = {&scale, 1};
  w.rows_per_scale = 64;
  released = {.watched = true};
  const PreparedPtr weights = backend->prepare(w);
  released.watched = false;
  EXPECT_EQ(released.queues.size(), 2u);  // that of launches, and that of uploads
  EXPECT_GT(released.unmaps, 0);
  EXPECT_EQ(released.unmaps_on_released, 0);
}

}  // namespace
}  // namespace bitnet

BITNET_CL_STANDS_BEFORE cl_int CL_API_CALL clReleaseCommandQueue(cl_command_queue queue) {
  if (bitnet::released.watched) bitnet::released.queues.push_back(queue);
  static const auto real = bitnet::testing::driver(&clReleaseCommandQueue, "clReleaseCommandQueue");
  return real(queue);
}

BITNET_CL_STANDS_BEFORE cl_int CL_API_CALL clEnqueueUnmapMemObject(cl_command_queue queue, cl_mem mem,
                                                                   void* host, cl_uint n_events,
                                                                   const cl_event* events, cl_event* event) {
  auto& state = bitnet::released;
  state.unmaps += state.watched ? 1 : 0;
  if (state.watched && std::count(state.queues.begin(), state.queues.end(), queue) > 0) {
    ++state.unmaps_on_released;
    return CL_INVALID_COMMAND_QUEUE;
  }
  static const auto real = bitnet::testing::driver(&clEnqueueUnmapMemObject, "clEnqueueUnmapMemObject");
  return real(queue, mem, host, n_events, events, event);
}
