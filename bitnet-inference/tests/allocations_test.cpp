// A decoded token allocates nothing, neither from the heap nor from the memory pool, a waiting request
// little, and memory that is refused is an Error: operator new of this executable counts and refuses.
#include <array>
#include <new>
#include <optional>

#include "bitnet/core/profiler.hpp"
#include "bitnet/inference/recovering_scheduler.hpp"
#include "bitnet/testing/refusing_new.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

using testing::allocated_bytes;
using testing::allocations;
using testing::Refuse;
using testing::RefuseNth;

ModelConfig config(WeightKind kind) {
  ModelConfig c = testing::tiny_config();
  c.hidden_size = 256;
  c.intermediate_size = 512;
  c.vocab_size = 2048;
  c.weights = kind;
  c.eos_ids = {};
  return c;
}

std::uint64_t pool_allocations(const Model& model) { return model.backend().memory()->stats().allocations; }

TEST(Allocations, TheCounterCounts) {
  const long before = allocations;
  auto p = std::make_unique<int>(1);
  EXPECT_EQ(allocations - before, 1);
}

TEST(Allocations, DecodingATokenAllocatesNothing) {
  Profiler profiler;
  for (const WeightKind kind : {WeightKind::kTernary, WeightKind::kDense}) {
    for (const std::size_t threads : {1, 2}) {
      const auto model = make_model(testing::random_model(config(kind), 1, DType::kF16), threads);
      Session session(model);
      SamplerOptions options;
      options.repeat_penalty = 1.1f;
      Sampler sampler(options, model->config().vocab_size);
      TokenId token = 5;
      for (int i = 0; i < 3; ++i) token = sampler.sample(session.evaluate({&token, 1}));
      for (Profiler* const p : {static_cast<Profiler*>(nullptr), &profiler}) {
        model->backend().set_profiler(p);
        session.truncate(0);
        const std::uint64_t blocks = pool_allocations(*model);
        const long before = allocations;
        for (int i = 0; i < 100; ++i) {
          token = sampler.sample(session.evaluate({&token, 1}));
          sampler.accept(token);
        }
        EXPECT_EQ(allocations - before, 0) << threads << " threads" << (p != nullptr ? ", profiled" : "");
        EXPECT_EQ(pool_allocations(*model), blocks);
      }
    }
  }
  EXPECT_FALSE(profiler.events().empty());
}

TEST(Allocations, AStepOfTheSchedulerThatDecodesAllocatesNothing) {
  const auto model = make_model(testing::random_model(config(WeightKind::kTernary), 1, DType::kF16), 2);
  SchedulerOptions options;
  options.max_sequences = 4;
  BatchScheduler scheduler(model, options);
  for (int i = 0; i < 4; ++i) {
    Request r;
    r.prompt = {1, 2, 3};
    r.options.max_tokens = 100;
    r.options.sampling.seed = static_cast<std::uint64_t>(i);
    scheduler.submit(std::move(r));
  }
  for (int i = 0; i < 5; ++i) scheduler.step();
  const std::uint64_t blocks = pool_allocations(*model);
  const long before = allocations;
  for (int i = 0; i < 80; ++i) scheduler.step();
  EXPECT_EQ(allocations - before, 0);
  EXPECT_EQ(pool_allocations(*model), blocks);
  EXPECT_EQ(scheduler.stats().running, 4);
}

TEST(Allocations, AStepWithDraftsAllocatesNothing) {
  const auto model = make_model(testing::random_model(config(WeightKind::kTernary), 1, DType::kF16), 2);
  SchedulerOptions options;
  options.max_sequences = 4;
  options.n_ctx = 1000;
  BatchScheduler scheduler(model, options);
  for (int i = 0; i < 4; ++i) {
    Request r;
    for (TokenId id = 0; id < 200; ++id) r.prompt.push_back(id % 3 + i);
    r.options.max_tokens = -1;
    r.options.sampling.top_k = 2;
    r.options.draft = 3;
    r.options.draft_ngram = 1;
    scheduler.submit(std::move(r));
  }
  for (int i = 0; i < 10; ++i) scheduler.step();
  const std::uint64_t drafted = scheduler.stats().drafted_tokens;
  const long before = allocations;
  for (int i = 0; i < 80; ++i) scheduler.step();
  EXPECT_EQ(allocations - before, 0);
  EXPECT_GT(scheduler.stats().drafted_tokens, drafted);
  EXPECT_EQ(scheduler.stats().running, 4);
}

constexpr std::size_t kCandidates = 2048 * 16;  // bytes of a sampler's list for the vocabulary

TEST(Allocations, AWaitingRequestHoldsLittleMoreThanItsPrompt) {
  const auto model = make_model(testing::random_model(config(WeightKind::kTernary), 1, DType::kF16));
  SchedulerOptions options;
  options.max_sequences = 1;
  BatchScheduler scheduler(model, options);
  const long before = allocated_bytes;
  for (int i = 0; i < 100; ++i) {
    Request r;
    r.prompt = {1, 2, 3};
    r.options.sampling.repeat_penalty = 1.1f;
    r.options.sampling.repeat_last_n = 1 << 20;
    scheduler.submit(std::move(r));
  }
  EXPECT_LT(allocated_bytes - before, 100 * 4096);
  const long waiting = allocated_bytes;
  scheduler.step();
  EXPECT_GT(allocated_bytes - waiting, static_cast<long>(kCandidates));  // now it runs
}

TEST(Allocations, ARequestThatGetsNoMemoryEndsAlone) {
  const auto model = make_model(testing::random_model(config(WeightKind::kTernary), 1, DType::kF16));
  BatchScheduler scheduler(model);
  std::vector<GenerationResult> done;
  const auto submit = [&] {
    Request r;
    r.prompt = {1, 2, 3};
    r.options.max_tokens = 4;
    r.options.sampling.top_k = 0;  // candidates for the whole vocabulary
    r.on_done = [&](RequestId, const GenerationResult& result) { done.push_back(result); };
    scheduler.submit(std::move(r));
  };
  submit();
  scheduler.step();  // runs from here on
  submit();
  {
    const Refuse refuse(kCandidates);
    scheduler.step();
  }
  ASSERT_EQ(done.size(), 1u);
  EXPECT_EQ(done[0].finish_reason, FinishReason::kError);
  ASSERT_TRUE(done[0].error.has_value());
  EXPECT_EQ(done[0].error->code(), ErrorCode::kOutOfMemory);
  scheduler.run();
  submit();
  scheduler.run();
  ASSERT_EQ(done.size(), 3u);
  EXPECT_EQ(done[1].finish_reason, FinishReason::kLength);
  EXPECT_EQ(done[2].tokens, done[1].tokens);
}

TEST(Allocations, RefusedMemoryIsAnError) {
  const auto model = make_model(testing::random_model(config(WeightKind::kTernary), 1, DType::kF16));
  const auto refusing = [](std::size_t from, const auto& body) {
    const Refuse refuse(from);
    body();
  };
  for (const std::size_t from : {256, 4096, 8192}) {
    BITNET_EXPECT_ERROR(refusing(from, [&] { Session session(model); }), ErrorCode::kOutOfMemory, "memory");
    BITNET_EXPECT_ERROR(refusing(from, [&] { BatchScheduler scheduler(model); }), ErrorCode::kOutOfMemory,
                        "memory");
  }
  BatchScheduler scheduler(model);
  BITNET_EXPECT_ERROR(refusing(256,
                               [&] {
                                 Request r;
                                 r.prompt = {1, 2, 3};
                                 scheduler.submit(std::move(r));
                               }),
                      ErrorCode::kOutOfMemory, "queueing a request");
}

/// A small batch with rules, in memory that is refused now and then.
struct SmallBatch {
  static constexpr std::size_t kRequests = 5;
  std::shared_ptr<const Model> model =
      make_model(testing::random_model(text_config(), 1, DType::kF16), 1, byte_tokenizer());
  std::vector<std::vector<TokenId>> expected = std::vector<std::vector<TokenId>>(kRequests);
  std::int64_t sequences = 3;

  /// How each request ended; those that submit() refused are not in it.
  struct Outcome {
    bool made = false;
    int accepted = 0, done = 0, cancelled = 0, wrong = 0, lost = 0, twice = 0, others = 0;
  };

  /// Touches no memory of its own where some may be refused, but for what it calls. The scheduler is
  /// destroyed after so many steps; `refuse_there`: without memory.
  Outcome run(int most_steps = 1 << 20, bool refuse_there = false) {
    Outcome o;
    std::array<int, kRequests> ends{};
    std::array<bool, kRequests> accepted{};
    sequences = 3;
    const auto factory = [this] {
      SchedulerOptions options;
      options.n_ctx = 24;
      options.max_sequences = sequences;
      options.page_size = 4;
      options.step_rows = 8;
      options.kv_memory_bytes = 8 * KvPool::page_bytes(model->config(), 4);  // preempts
      return std::make_unique<BatchScheduler>(model, options);
    };
    std::optional<RefuseNth> none;
    try {
      Recovery recovery({shrink(sequences)});
      RecoveringScheduler scheduler(factory, recovery);
      o.made = true;
      for (std::size_t i = 0; i < kRequests; ++i) accepted[i] = submit(scheduler, i, ends, o);
      for (int i = 0; i < most_steps && scheduler.step();) ++i;
      if (refuse_there) none.emplace(1, 1L << 40);
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kOutOfMemory) ++o.others;
    } catch (const std::bad_alloc&) {
      if (o.made) ++o.others;  // the rules themselves are the caller's
    }
    none.reset();
    for (std::size_t i = 0; i < kRequests; ++i) {
      o.accepted += accepted[i] ? 1 : 0;
      if (accepted[i] && ends[i] == 0) ++o.lost;
      if (ends[i] > 1 || (!accepted[i] && ends[i] != 0)) ++o.twice;
    }
    return o;
  }

  bool submit(RecoveringScheduler& scheduler, std::size_t i, std::array<int, kRequests>& ends, Outcome& o) {
    try {
      Request r;
      for (std::size_t t = 0; t < 2 + 2 * i; ++t) r.prompt.push_back(static_cast<TokenId>(40 + 3 * t + i));
      r.options.max_tokens = static_cast<std::int64_t>(4 + i);
      r.options.sampling.seed = i;
      r.options.stop.emplace_back("a text longer than a string holds by itself");
      r.on_done = [this, &ends, &o, i](RequestId, const GenerationResult& result) {
        ++ends[i];
        if (result.error) {
          if (result.error->code() != ErrorCode::kOutOfMemory) ++o.others;
          return;
        }
        if (result.finish_reason == FinishReason::kCancelled) {
          ++o.cancelled;
          return;
        }
        ++o.done;
        if (expected[i].empty()) expected[i] = result.tokens;
        if (result.tokens != expected[i]) ++o.wrong;
      };
      scheduler.submit(std::move(r));
      return true;
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kOutOfMemory) ++o.others;
    } catch (const std::bad_alloc&) {  // of the prompt itself
    }
    return false;
  }
};

// With n = 1, 2, … until nothing is refused any more: every request ends once, with its tokens or an Error.
TEST(Allocations, ARefusalAnywhereInABatchLosesNoRequest) {
  SmallBatch batch;
  ASSERT_EQ(batch.run().done, static_cast<int>(SmallBatch::kRequests));
  for (const long in_a_row : {1, 2, 3, 10, 100}) {
    long nth = 1;
    int whole = 0;
    for (bool happened = true; happened; ++nth) {
      SmallBatch::Outcome o;
      {
        const RefuseNth refuse(nth, in_a_row);
        o = batch.run();
        happened = refuse.happened();
      }
      EXPECT_EQ(o.lost, 0) << nth << ", " << in_a_row;
      EXPECT_EQ(o.twice, 0) << nth << ", " << in_a_row;
      EXPECT_EQ(o.wrong, 0) << nth << ", " << in_a_row;
      EXPECT_EQ(o.others, 0) << nth << ", " << in_a_row;
      whole += o.done == static_cast<int>(SmallBatch::kRequests) ? 1 : 0;
      ASSERT_LT(nth, 100000);
    }
    EXPECT_GT(nth, 100) << "allocations of such a batch";
    EXPECT_GT(whole, 0);
    RecordProperty("allocations_" + std::to_string(in_a_row), static_cast<int>(nth));
  }
}

// The same where the scheduler is destroyed in the middle, and where it is destroyed without memory.
TEST(Allocations, ASchedulerThatIsDestroyedWithoutMemoryCancelsItsRequests) {
  SmallBatch batch;
  ASSERT_EQ(batch.run().done, static_cast<int>(SmallBatch::kRequests));
  for (int steps = 0; steps < 8; ++steps) {
    const SmallBatch::Outcome o = batch.run(steps, true);
    EXPECT_EQ(o.done + o.cancelled, static_cast<int>(SmallBatch::kRequests)) << steps;
    EXPECT_GT(o.cancelled, 0) << steps;
    EXPECT_EQ(o.lost + o.twice + o.wrong + o.others, 0) << steps;
  }
  long nth = 1;
  for (bool happened = true; happened; ++nth) {
    SmallBatch::Outcome o;
    {
      const RefuseNth refuse(nth, 3);
      o = batch.run(4);
      happened = refuse.happened();
    }
    EXPECT_EQ(o.lost + o.twice + o.wrong + o.others, 0) << nth;
    ASSERT_LT(nth, 100000);
  }
}

TEST(Allocations, OneRequestThatGetsNoMemoryDoesNotShrinkTheBatch) {
  const auto model = make_model(testing::random_model(config(WeightKind::kTernary), 1, DType::kF16));
  std::int64_t sequences = 4;
  int made = 0;
  Recovery recovery({shrink(sequences)});
  RecoveringScheduler scheduler(
      [&] {
        ++made;
        SchedulerOptions options;
        options.max_sequences = sequences;
        return std::make_unique<BatchScheduler>(model, options);
      },
      recovery);
  std::vector<FinishReason> ends;
  const auto submit = [&] {
    Request r;
    r.prompt = {1, 2, 3};
    r.options.max_tokens = 4;
    r.options.sampling.top_k = 0;
    r.on_done = [&](RequestId, const GenerationResult& result) { ends.push_back(result.finish_reason); };
    scheduler.submit(std::move(r));
  };
  submit();
  scheduler.step();
  submit();
  {
    const Refuse refuse(kCandidates);
    scheduler.step();
  }
  EXPECT_EQ(ends, std::vector{FinishReason::kError});
  while (scheduler.step()) {
  }
  EXPECT_EQ(ends, (std::vector{FinishReason::kError, FinishReason::kLength}));
  EXPECT_EQ(made, 1);
  EXPECT_EQ(sequences, 4);
}

}  // namespace
}  // namespace bitnet::inference
