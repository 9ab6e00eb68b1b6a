// Continuous batching: every request's tokens equal those of a plain loop alone, whatever joins, leaves, is
// cancelled, fails or is preempted beside it.
#include "bitnet/inference/batch_scheduler.hpp"

#include <map>
#include <stdexcept>

#include "support.hpp"

namespace bitnet::inference {
namespace {

struct SchedulerTest : ::testing::Test {
  std::shared_ptr<const Model> model =
      make_model(testing::random_model(text_config(), 2), 2, byte_tokenizer());
  std::map<RequestId, GenerationResult> results;
  std::mt19937 random{9};

  Request request(std::vector<TokenId> prompt, std::int64_t max_tokens, std::uint64_t seed = 1) {
    Request r;
    r.prompt = std::move(prompt);
    r.options.max_tokens = max_tokens;
    r.options.sampling.seed = seed;
    r.options.sampling.temperature = 1.5f;
    r.options.sampling.repeat_penalty = 1.3f;
    r.on_done = [this](RequestId id, const GenerationResult& result) {
      EXPECT_TRUE(results.emplace(id, result).second) << "finished twice";
    };
    return r;
  }

  std::vector<TokenId> prompt(std::size_t n) {
    std::vector<TokenId> ids(n);
    for (TokenId& id : ids) id = static_cast<TokenId>(2 + random() % 250);
    return ids;
  }

  static SchedulerOptions options(std::int64_t sequences, std::int64_t rows = 16) {
    SchedulerOptions o;
    o.max_sequences = sequences;
    o.step_rows = rows;
    o.page_size = 4;
    return o;
  }

  void expect_as_alone(RequestId id, const Request& r) {
    const GenerationResult& result = results.at(id);
    EXPECT_FALSE(result.error.has_value());
    EXPECT_EQ(result.tokens, plain_generate(model, r.prompt, r.options.sampling,
                                            static_cast<std::size_t>(r.options.max_tokens)))
        << "request " << id;
    EXPECT_EQ(result.prompt_tokens, static_cast<std::int64_t>(r.prompt.size()));
  }
};

TEST_F(SchedulerTest, RequestsThatJoinAndLeaveGetTheTokensTheyGetAlone) {
  for (const std::int64_t rows : {4, 16, 256}) {
    results.clear();
    BatchScheduler scheduler(model, options(4, rows));
    std::map<RequestId, Request> requests;
    for (std::uint64_t i = 0; i < 12; ++i) {
      Request r = request(prompt(1 + random() % 40), 1 + static_cast<std::int64_t>(random() % 20), i);
      const Request copy = r;
      requests.emplace(scheduler.submit(std::move(r)), copy);
      for (std::size_t s = 0; s < random() % 4; ++s) scheduler.step();
    }
    scheduler.run();
    EXPECT_TRUE(scheduler.idle());
    ASSERT_EQ(results.size(), 12u);
    for (const auto& [id, r] : requests) expect_as_alone(id, r);
    const SchedulerStats stats = scheduler.stats();
    EXPECT_EQ(stats.finished, 12u);
    EXPECT_GT(stats.max_running, 1);
    EXPECT_EQ(stats.kv_pages_used, 0);
  }
}

TEST_F(SchedulerTest, AFullPoolSendsTheLastBackAndChangesNoToken) {
  SchedulerOptions o = options(4);
  o.kv_memory_bytes =
      14 * KvPool::page_bytes(model->config(), o.page_size);  // 56 tokens for four that want 30 each
  BatchScheduler scheduler(model, o);
  std::map<RequestId, Request> requests;
  for (std::uint64_t i = 0; i < 6; ++i) {
    Request r = request(prompt(8), 22, i);
    r.options.ignore_eos = true;
    requests.emplace(scheduler.submit(r), r);
  }
  scheduler.run();
  EXPECT_GT(scheduler.stats().preemptions, 0u);
  for (const auto& [id, r] : requests) {
    EXPECT_EQ(results.at(id).finish_reason, FinishReason::kLength);
    EXPECT_EQ(results.at(id).tokens.size(), 22u);
    const auto alone = plain_generate(model, r.prompt, r.options.sampling, 22);  // stops at EOS
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), results.at(id).tokens.begin()));
  }
}

TEST_F(SchedulerTest, RefusesAtSubmissionWhatCanNeverRun) {
  SchedulerOptions o = options(2);
  o.n_ctx = 64;
  o.kv_memory_bytes = 5 * KvPool::page_bytes(model->config(), o.page_size);
  BatchScheduler scheduler(model, o);
  BITNET_EXPECT_ERROR(scheduler.submit(request(prompt(64), 1)), ErrorCode::kInvalidArgument,
                      "64 tokens, but the context holds 64");
  BITNET_EXPECT_ERROR(scheduler.submit(request(prompt(10), 20)), ErrorCode::kOutOfMemory, "holds 20");
  BITNET_EXPECT_ERROR(scheduler.submit(request({}, 1)), ErrorCode::kInvalidArgument, "no tokens");
  BITNET_EXPECT_ERROR(scheduler.submit(request({1, 9999}, 1)), ErrorCode::kInvalidArgument, "9999");
  BITNET_EXPECT_ERROR(scheduler.submit(request({1}, -2)), ErrorCode::kInvalidArgument, "max_tokens");
  Request bad = request({1}, 1);
  bad.options.sampling.top_p = 7;
  BITNET_EXPECT_ERROR(scheduler.submit(bad), ErrorCode::kInvalidArgument, "top_p");
  bad = request({1}, 1);
  bad.options.stop = {""};
  BITNET_EXPECT_ERROR(scheduler.submit(bad), ErrorCode::kInvalidArgument, "stop string");
  EXPECT_TRUE(scheduler.idle());
  o.kv_memory_bytes = 1;
  BITNET_EXPECT_ERROR(BatchScheduler(model, o), ErrorCode::kOutOfMemory, "KV budget");
}

TEST_F(SchedulerTest, BatchSizeComesFromTheMemory) {
  SchedulerOptions o = options(0);
  o.n_ctx = 64;
  o.kv_memory_bytes = 3 * 16 * KvPool::page_bytes(model->config(), o.page_size);  // three whole contexts
  EXPECT_EQ(BatchScheduler(model, o).max_sequences(), 6);
  o.kv_memory_bytes *= 100;
  EXPECT_EQ(BatchScheduler(model, o).max_sequences(), 64);
}

TEST_F(SchedulerTest, CancellingOneLeavesTheOthers) {
  BatchScheduler scheduler(model, options(2));
  const Request first = request(prompt(5), 12, 1), third = request(prompt(6), 12, 3);
  Request second = request(prompt(7), 100, 2), waiting = request(prompt(7), 100, 4);
  const RequestId a = scheduler.submit(first), b = scheduler.submit(second), c = scheduler.submit(third);
  const RequestId d = scheduler.submit(waiting);
  for (int i = 0; i < 5; ++i) scheduler.step();
  second.options.cancellation.cancel();  // running, by token
  EXPECT_TRUE(scheduler.cancel(d));      // waiting, by id
  scheduler.run();
  EXPECT_FALSE(scheduler.cancel(d));
  EXPECT_EQ(results.at(b).finish_reason, FinishReason::kCancelled);
  EXPECT_FALSE(results.at(b).tokens.empty());
  EXPECT_EQ(results.at(d).finish_reason, FinishReason::kCancelled);
  expect_as_alone(a, first);
  expect_as_alone(c, third);
}

TEST_F(SchedulerTest, AnItemThatFailsLeavesTheOthers) {
  BatchScheduler scheduler(model, options(3));
  const Request good = request(prompt(5), 10, 1);
  Request throwing = request(prompt(5), 30, 2);
  throwing.on_text = [](std::string_view) { throw std::runtime_error("disk full"); };
  Request refusing = request(prompt(5), 30, 3);
  refusing.on_text = [](std::string_view) { throw Error(ErrorCode::kIo, "pipe closed"); };
  const RequestId a = scheduler.submit(good), b = scheduler.submit(throwing), c = scheduler.submit(refusing);
  scheduler.run();
  expect_as_alone(a, good);
  EXPECT_EQ(results.at(b).finish_reason, FinishReason::kError);
  ASSERT_TRUE(results.at(b).error.has_value() && results.at(c).error.has_value());
  EXPECT_THAT(results.at(b).error->what(), ::testing::HasSubstr("disk full"));
  EXPECT_EQ(results.at(c).error->code(), ErrorCode::kIo);
}

TEST_F(SchedulerTest, ACallbackMaySubmitAndCancel) {
  BatchScheduler scheduler(model, options(3));
  RequestId second = 0;
  bool submitted = false;
  Request a = request(prompt(5), 10, 1);
  a.on_text = [&](std::string_view) {
    if (submitted) return;
    submitted = true;
    EXPECT_TRUE(scheduler.cancel(second));
    scheduler.submit(request(prompt(3), 4, 7));
  };
  scheduler.submit(a);
  second = scheduler.submit(request(prompt(5), 100, 2));
  scheduler.run();
  EXPECT_TRUE(submitted);
  EXPECT_EQ(results.size(), 3u);
  EXPECT_EQ(results.at(second).finish_reason, FinishReason::kCancelled);
}

// Text that is held back as the possible begin of a stop string is given out when the request ends, that is
// also outside a pass.
TEST_F(SchedulerTest, ACallbackThatGetsHeldBackTextMayCancelTheOthers) {
  for (const int way : {0, 1, 2}) {  // by token in step(), by cancel(), by the destructor
    results.clear();
    auto scheduler = std::make_unique<BatchScheduler>(model, options(4));
    std::vector<RequestId> others;
    int flushes = 0;
    const auto cancel_all = [&](std::string_view) {
      ++flushes;
      for (const RequestId id : others) scheduler->cancel(id);
    };
    Request a = request(prompt(5), 100, 1);
    a.options.ignore_eos = true;
    const std::string text = [&] {
      Request alone = a;
      const RequestId id = scheduler->submit(alone);
      scheduler->run();
      return results.at(id).text;
    }();
    results.clear();
    a.options.stop = {text + "never"};  // holds everything back
    a.on_text = cancel_all;
    const RequestId first = scheduler->submit(a);
    for (std::uint64_t i = 0; i < 5; ++i) others.push_back(scheduler->submit(request(prompt(5), 100, 2 + i)));
    for (int i = 0; i < 6; ++i) scheduler->step();
    ASSERT_EQ(flushes, 0);
    if (way == 0) a.options.cancellation.cancel();
    if (way == 1) {
      EXPECT_TRUE(scheduler->cancel(first));
    }
    if (way == 2) {
      delete scheduler.get();  // the callback still needs the pointer
      scheduler.release();
    } else {
      scheduler->run();
    }
    EXPECT_EQ(flushes, 1);
    ASSERT_EQ(results.size(), 6u);
    for (const auto& [id, result] : results) EXPECT_EQ(result.finish_reason, FinishReason::kCancelled);
  }
}

TEST_F(SchedulerTest, AnEndingSchedulerRefusesWhatItsCallbacksSubmit) {
  int refused = 0;
  {
    BatchScheduler scheduler(model, options(1));
    for (int i = 0; i < 3; ++i) {
      Request r = request(prompt(3), 50);
      r.on_done = [&](RequestId, const GenerationResult&) {
        try {
          scheduler.submit(request(prompt(3), 50));
        } catch (const Error& e) {
          refused += e.code() == ErrorCode::kCancelled ? 1 : 0;
          throw;  // does not leave the destructor
        }
      };
      scheduler.submit(r);
    }
    scheduler.step();
  }
  EXPECT_EQ(refused, 3);
}

TEST_F(SchedulerTest, ACallbackMustNotStep) {
  BatchScheduler scheduler(model, options(2));
  Request r = request(prompt(5), 30, 2);
  r.on_text = [&](std::string_view) { scheduler.step(); };
  const RequestId id = scheduler.submit(r);
  scheduler.run();
  ASSERT_TRUE(results.at(id).error.has_value()) << "text '" << results.at(id).text << "'";
  EXPECT_EQ(results.at(id).error->code(), ErrorCode::kInvalidArgument);
}

TEST_F(SchedulerTest, CountsPromptAndGeneratedTokens) {
  for (const std::int64_t rows : {3, 64}) {
    results.clear();
    BatchScheduler scheduler(model, options(3, rows));
    std::uint64_t prompts = 0, generated = 0;
    for (std::uint64_t i = 0; i < 5; ++i) {
      Request r = request(prompt(1 + 4 * i), 6, i);
      r.options.ignore_eos = true;
      prompts += r.prompt.size();
      generated += 6;
      scheduler.submit(r);
    }
    scheduler.run();
    EXPECT_EQ(scheduler.stats().prompt_tokens, prompts);
    EXPECT_EQ(scheduler.stats().generated_tokens, generated);
  }
}

TEST_F(SchedulerTest, UnfinishedRequestsEndWithTheScheduler) {
  {
    BatchScheduler scheduler(model, options(1));
    scheduler.submit(request(prompt(3), 100));
    scheduler.submit(request(prompt(3), 100));
    scheduler.step();
  }
  ASSERT_EQ(results.size(), 2u);
  for (const auto& [id, result] : results) EXPECT_EQ(result.finish_reason, FinishReason::kCancelled);
}

TEST_F(SchedulerTest, StopsAtStopStringsTokensLimitsAndTheEndOfTheContext) {
  SchedulerOptions o = options(4);
  o.n_ctx = 40;
  BatchScheduler scheduler(model, o);
  const std::vector<TokenId> p = prompt(6);
  Request free = request(p, -1, 5);
  free.options.ignore_eos = true;
  const RequestId to_the_end = scheduler.submit(free);
  scheduler.run();
  const GenerationResult whole = results.at(to_the_end);
  EXPECT_EQ(whole.finish_reason, FinishReason::kLength);
  EXPECT_EQ(whole.tokens.size(), 34u);

  Request token = free;
  token.options.stop_tokens = {whole.tokens[10]};
  Request none = request(p, 0, 5);
  std::string streamed;
  Request text = free;
  text.options.stop = {whole.text.substr(whole.text.size() / 2, 3)};
  text.on_text = [&](std::string_view piece) { streamed += piece; };
  const RequestId by_token = scheduler.submit(token), nothing = scheduler.submit(none),
                  by_text = scheduler.submit(text);
  scheduler.run();
  EXPECT_EQ(results.at(by_token).finish_reason, FinishReason::kStop);
  EXPECT_LE(results.at(by_token).tokens.size(), 10u);
  EXPECT_EQ(results.at(by_token).completion_tokens,
            static_cast<std::int64_t>(results.at(by_token).tokens.size()) + 1);
  EXPECT_EQ(results.at(nothing).finish_reason, FinishReason::kLength);
  EXPECT_TRUE(results.at(nothing).tokens.empty());
  EXPECT_EQ(results.at(by_text).finish_reason, FinishReason::kStop);
  EXPECT_EQ(results.at(by_text).text, whole.text.substr(0, whole.text.find(text.options.stop[0])));
  EXPECT_EQ(streamed, results.at(by_text).text);
}

}  // namespace
}  // namespace bitnet::inference
