// Batches on a backend that fails: every request must end with the tokens that it gets alone on a sound one.
// The same with an OpenCL queue that fails is bitnet-gpu/tests/failing_queue_test.cpp.
#include <map>

#include "bitnet/inference/recovering_scheduler.hpp"
#include "bitnet/testing/forwarding_backend.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

using testing::FaultyBackend;

constexpr std::size_t kRequests = 9;

struct RecoveryTest : ::testing::Test {
  testing::TensorModel tensors = testing::random_model(text_config(), 2);
  std::shared_ptr<const Model> sound = make_model(tensors);
  FaultyBackend::Fault fault = [](std::string_view, std::size_t) {};
  std::shared_ptr<const Model> model = Model::build(
      tensors.config, nullptr,
      std::make_shared<FaultyBackend>(make_cpu_backend(make_context(1)),
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
    EXPECT_THAT(result.error->what(), ::testing::HasSubstr("(after retry × 2): faulty: the device is gone"));
  }
}

TEST_F(RecoveryTest, ABatchThatCannotBeMadeAnewIsTriedAgainWithTheNextRequests) {
  // The first pass fails, then four schedulers in a row: the rule helps with two of them.
  int passes = 0, made = 0;
  fault = [&](std::string_view what, std::size_t) {
    if (what == "attention" && ++passes == 3) throw Error(ErrorCode::kDevice, "the queue is lost");
  };
  const auto sometimes = [&] {
    if (++made >= 2 && made <= 5) throw Error(ErrorCode::kDevice, "no context");
    return factory()();
  };
  Recovery recovery({retry(quick(3))});
  RecoveringScheduler scheduler(sometimes, recovery);
  for (std::size_t i = 0; i < 4; ++i) scheduler.submit(request(i));
  while (scheduler.step()) {
  }
  ASSERT_EQ(results.size(), 4u);
  for (const auto& [i, result] : results) {
    EXPECT_EQ(result.finish_reason, FinishReason::kError);
    EXPECT_THAT(result.error->what(), ::testing::HasSubstr("making a batch (after retry × 3): no context"));
  }
  EXPECT_EQ(made, 4);
  // Without a scheduler requests are kept, and what is wrong with one is its result.
  results.clear();
  for (std::size_t i = 0; i < 4; ++i) scheduler.submit(request(i));
  Request empty = request(4);
  empty.prompt.clear();
  scheduler.submit(empty);
  EXPECT_EQ(scheduler.stats().waiting, 5);
  while (scheduler.step()) {
  }
  EXPECT_EQ(made, 6);
  EXPECT_THAT(results.at(4).error->what(), ::testing::HasSubstr("no tokens"));
  results.erase(4);
  ASSERT_EQ(results.size(), 4u);
  for (const auto& [i, result] : results) EXPECT_EQ(result.finish_reason, FinishReason::kLength) << i;
  EXPECT_GT(scheduler.stats().generated_tokens, 0u);
}

TEST_F(RecoveryTest, ABatchThatCanNeverBeMadeAgainEndsAllWithThatError) {
  int made = 0;
  fault = [](std::string_view what, std::size_t) {
    if (what == "attention") throw std::bad_alloc();
  };
  const auto once = [&] {
    if (++made > 1) throw std::bad_alloc();
    return factory()();
  };
  Recovery recovery({shrink(sequences)});
  RecoveringScheduler scheduler(once, recovery);
  for (std::size_t i = 0; i < kRequests; ++i) scheduler.submit(request(i));
  while (scheduler.step()) {
  }
  ASSERT_EQ(results.size(), kRequests);
  for (const auto& [i, result] : results) EXPECT_EQ(result.error->code(), ErrorCode::kOutOfMemory);
}

TEST_F(RecoveryTest, WhatIsGivenUpTakesItsSchedulerWithIt) {
  int made = 0, passes = 0;
  fault = [&](std::string_view what, std::size_t) {
    if (what == "attention" && ++passes == 1) throw Error(ErrorCode::kDevice, "the cache is lost");
  };
  const auto counted = [&] {
    ++made;
    return factory()();
  };
  sequences = 3;
  Recovery none({});
  RecoveringScheduler scheduler(counted, none);
  for (std::size_t i = 0; i < kRequests; ++i) scheduler.submit(request(i));
  while (scheduler.step()) {
  }
  ASSERT_EQ(results.size(), kRequests);
  EXPECT_EQ(made, 2);
  std::size_t failed = 0;
  for (const auto& [i, result] : results) failed += result.error.has_value() ? 1 : 0;
  EXPECT_EQ(failed, 3u);  // those of the pass; the others were done on a new cache
}

// Short requests finish between faults, which gives the rule its times back; the long one must not begin anew
// for ever.
TEST_F(RecoveryTest, ALongRequestAmongShortOnesBeginsAnewSoManyTimesAndNoMore) {
  int passes = 0;
  fault = [&](std::string_view what, std::size_t) {
    if (what == "linear" && ++passes % 200 == 0) throw Error(ErrorCode::kDevice, "every now and then");
  };
  Recovery recovery({retry(quick(6))});
  sequences = 2;
  RecoveringScheduler scheduler(factory(), recovery);
  const auto submit_short = [&](std::size_t i) {
    Request r = request(i);
    r.prompt = {2, 3, 4};
    r.options.max_tokens = 3;
    scheduler.submit(std::move(r));
  };
  Request endless = request(0);
  endless.options.max_tokens = 60;
  const RequestId first = 0;
  scheduler.submit(std::move(endless));
  std::size_t next = 1, done = 0;
  while (!results.contains(first) && next < 2000) {
    while (scheduler.stats().waiting < 2) submit_short(next++);
    scheduler.step();
    done = results.size();
  }
  ASSERT_TRUE(results.contains(first));
  ASSERT_TRUE(results.at(first).error.has_value());
  EXPECT_THAT(results.at(first).error->what(),
              ::testing::HasSubstr("a request that 16 passes failed under: "));
  EXPECT_EQ(results.at(first).error->code(), ErrorCode::kDevice);
  EXPECT_EQ(recovery.times("retry"), RecoveringScheduler::kMostFailures);
  EXPECT_GT(done, 10u);
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
