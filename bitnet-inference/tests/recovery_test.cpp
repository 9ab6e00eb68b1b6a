// Batches on a backend that fails: every request must end with the tokens that it gets alone on a sound one.
// The same with an OpenCL queue that fails is bitnet-gpu/tests/failing_queue_test.cpp.
#include <map>

#include "bitnet/inference/recovering_scheduler.hpp"
#include "faulty_backend.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

constexpr std::size_t kRequests = 9;

struct RecoveryTest : ::testing::Test {
  testing::TensorModel tensors = testing::random_model(text_config(), 2);
  std::shared_ptr<const Model> sound = make_model(tensors);
  FaultyBackend::Fault fault = [](std::string_view, std::size_t) {};
  std::shared_ptr<const Model> model = Model::build(
      tensors.config, nullptr,
      std::make_shared<FaultyBackend>(make_context(1),
                                      [this](std::string_view what, std::size_t size) { fault(what, size); }),
      tensors);
  std::map<std::size_t, GenerationResult> results;
  std::int64_t sequences = 8;
  ErrorMonitor monitor{{.threshold = 1000}};

  RecoveringScheduler::Factory factory() {
    return [this] {
      SchedulerOptions o;
      o.n_ctx = 64;
      o.max_sequences = sequences;
      o.page_size = 4;
      o.step_rows = 16;
      return std::make_unique<BatchScheduler>(model, o);
    };
  }

  static RetryOptions quick(std::int64_t limit) {
    RetryOptions o;
    o.limit = limit;
    o.applies = [](const Error& e) { return e.code() == ErrorCode::kDevice; };
    o.sleep = [](double) {};
    return o;
  }

  Request request(std::size_t i) {
    Request r;
    for (std::size_t t = 0; t < 2 + i; ++t)
      r.prompt.push_back(static_cast<TokenId>(2 + (7 * t + 31 * i) % 250));
    r.options.max_tokens = static_cast<std::int64_t>(3 + i);
    r.options.sampling.seed = i;
    r.options.sampling.temperature = 1.5f;
    r.on_done = [this, i](RequestId, const GenerationResult& result) {
      EXPECT_TRUE(results.emplace(i, result).second) << "finished twice";
    };
    return r;
  }

  void run(Recovery& recovery) {
    RecoveringScheduler scheduler(factory(), recovery);
    for (std::size_t i = 0; i < kRequests; ++i) scheduler.submit(request(i));
    while (scheduler.step()) {
    }
    ASSERT_EQ(results.size(), kRequests);
  }

  void expect_all_as_alone() {
    for (std::size_t i = 0; i < kRequests; ++i) {
      const Request r = request(i);
      const GenerationResult& result = results.at(i);
      EXPECT_FALSE(result.error.has_value()) << result.error->what();
      EXPECT_EQ(result.tokens, plain_generate(sound, r.prompt, r.options.sampling,
                                              static_cast<std::size_t>(r.options.max_tokens)))
          << "request " << i;
    }
  }
};

TEST_F(RecoveryTest, WithoutFaultsItIsABatch) {
  Recovery recovery({});
  run(recovery);
  expect_all_as_alone();
}

TEST_F(RecoveryTest, APassThatRunsOutOfMemoryIsDoneInSmallerOnes) {
  fault = [](std::string_view what, std::size_t size) {
    if (what == "attention" && size > 2) throw std::bad_alloc();
  };
  Recovery recovery({shrink(sequences)}, &monitor);
  run(recovery);
  expect_all_as_alone();
  EXPECT_EQ(sequences, 2);
  EXPECT_EQ(recovery.times("shrink"), 2);
  EXPECT_EQ(monitor.count(ErrorCode::kOutOfMemory), 2u);
}

TEST_F(RecoveryTest, ASchedulerThatDoesNotFitIsMadeSmaller) {
  // Keys or values of a layer for one sequence; those for eight and for four do not fit.
  const std::size_t one =
      KvPool::page_bytes(model->config(), 4) * 16 / static_cast<std::size_t>(2 * model->config().n_layers);
  fault = [&](std::string_view what, std::size_t size) {
    if (what == "allocate" && (size == 8 * one || size == 4 * one))
      throw Error(ErrorCode::kOutOfMemory, "asked " + std::to_string(size));
  };
  Recovery recovery({shrink(sequences)});
  run(recovery);
  expect_all_as_alone();
  EXPECT_EQ(sequences, 2);
  // One that cannot be made at all says what was tried.
  sequences = 8;
  fault = [](std::string_view what, std::size_t) {
    if (what == "allocate") throw Error(ErrorCode::kOutOfMemory, "asked too much");
  };
  BITNET_EXPECT_ERROR(RecoveringScheduler(factory(), recovery), ErrorCode::kOutOfMemory,
                      "making a batch (after shrink × 3): ");
}

TEST_F(RecoveryTest, ADeviceThatFailsNowAndThenLosesNothing) {
  int calls = 0;
  fault = [&](std::string_view what, std::size_t) {
    if (what == "linear" && (++calls == 40 || calls == 110))
      throw Error(ErrorCode::kDevice, "the queue is lost");
  };
  Recovery recovery({retry(quick(3))}, &monitor);
  run(recovery);
  expect_all_as_alone();
  EXPECT_EQ(recovery.times("retry"), 2);
  EXPECT_EQ(monitor.count(ErrorCode::kDevice), 2u);
}

TEST_F(RecoveryTest, ADeadDeviceIsLeftForAnother) {
  int calls = 0;
  fault = [&](std::string_view what, std::size_t) {
    if (what == "linear" && ++calls > 60) throw Error(ErrorCode::kDevice, "the device is gone");
  };
  const auto next = [this](const Error&) { return std::exchange(model, sound) != sound; };
  Recovery recovery({retry(quick(1)), fall_back(next)});
  run(recovery);
  expect_all_as_alone();
  EXPECT_EQ(recovery.times("fall back"), 1);
}

TEST_F(RecoveryTest, WhatCannotBeHelpedIsAnErrorOfItsRequests) {
  fault = [](std::string_view what, std::size_t) {
    if (what == "linear") throw Error(ErrorCode::kDevice, "the device is gone");
  };
  Recovery recovery({retry(quick(2))});
  run(recovery);
  for (const auto& [i, result] : results) {
    EXPECT_EQ(result.finish_reason, FinishReason::kError);
    ASSERT_TRUE(result.error.has_value());
    EXPECT_THAT(result.error->what(), ::testing::HasSubstr("(after retry × 2): the device is gone"));
  }
}

TEST_F(RecoveryTest, EndsWhatIsUnfinishedAndRefusesStreams) {
  Recovery recovery({});
  {
    RecoveringScheduler scheduler(factory(), recovery);
    for (std::size_t i = 0; i < kRequests; ++i) scheduler.submit(request(i));
    scheduler.step();
    Request streaming = request(0);
    streaming.on_text = [](std::string_view) {};
    BITNET_EXPECT_ERROR(scheduler.submit(streaming), ErrorCode::kInvalidArgument, "stream");
    BITNET_EXPECT_ERROR(scheduler.submit(Request{}), ErrorCode::kInvalidArgument, "no tokens");
  }
  ASSERT_EQ(results.size(), kRequests);
  EXPECT_EQ(results.at(kRequests - 1).finish_reason, FinishReason::kCancelled);
}

}  // namespace
}  // namespace bitnet::inference
