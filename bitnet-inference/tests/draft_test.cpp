// Prompt-lookup speculation: drafts are what a plain search of the text finds, and generating with them gives
// what generating without them gives, token for token, alone and in any batch.
#include <map>
#include <numeric>

#include "../src/prompt_lookup.hpp"
#include "bitnet/inference/batch_scheduler.hpp"
#include "bitnet/inference/engine.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

using Tokens = std::vector<TokenId>;

/// The definition, by trying every place: the longest common past, the latest of equal ones.
Tokens slow_draft(const Tokens& text, std::size_t ngram, std::size_t n) {
  std::size_t longest = 0, next = 0;
  for (std::size_t end = 1; end < text.size(); ++end) {  // a place: text[0, end)
    std::size_t length = 0;
    while (length < end && length < PromptLookup::kLongestMatch &&
           text[end - 1 - length] == text[text.size() - 1 - length])
      ++length;
    if (length >= ngram && length >= longest) {
      longest = length;
      next = end;
    }
  }
  Tokens out;
  if (longest == 0) return out;
  while (out.size() < n) {
    const std::size_t from = next + out.size();
    out.push_back(from < text.size() ? text[from] : out[from - text.size()]);
  }
  return out;
}

Tokens fast_draft(PromptLookup& lookup, const Tokens& text, std::size_t n) {
  Tokens to(n, -7);
  lookup.extend(text);
  to.resize(lookup.draft(text, to));
  return to;
}

TEST(PromptLookup, ContinuesTheLatestLongestMatch) {
  PromptLookup lookup(2, 100);
  EXPECT_EQ(fast_draft(lookup, {1, 2, 3, 9, 2, 3, 5, 1, 2, 3}, 4), (Tokens{9, 2, 3, 5}));  // 1 2 3, not 2 3
  PromptLookup again(2, 100);
  EXPECT_EQ(fast_draft(again, {2, 3, 4, 2, 3, 5, 2, 3}, 3), (Tokens{5, 2, 3}));  // the later one
  PromptLookup none(2, 100);
  EXPECT_EQ(fast_draft(none, {1, 2, 3, 4, 3}, 3), Tokens{});  // 3 alone is no match
  PromptLookup one(1, 100);
  EXPECT_EQ(fast_draft(one, {4, 4}, 3), (Tokens{4, 4, 4}));  // goes on periodically
  PromptLookup period(3, 100);
  EXPECT_EQ(fast_draft(period, {7, 8, 7, 8, 7, 8}, 5), (Tokens{7, 8, 7, 8, 7}));
}

TEST(PromptLookup, HasNothingForTextsThatAreTooShort) {
  PromptLookup lookup(3, 4);
  EXPECT_EQ(fast_draft(lookup, {}, 3), Tokens{});
  EXPECT_EQ(fast_draft(lookup, {1}, 3), Tokens{});
  EXPECT_EQ(fast_draft(lookup, {1, 1, 1}, 3), Tokens{});
  EXPECT_EQ(fast_draft(lookup, {1, 1, 1, 1}, 0), Tokens{});
  EXPECT_EQ(fast_draft(lookup, {1, 1, 1, 1}, 2), (Tokens{1, 1}));
}

TEST(PromptLookup, FindsWhatAPlainSearchFindsWhileItLooksAtAllPlaces) {
  std::mt19937 random(4);
  int drafts = 0;
  for (int round = 0; round < 200; ++round) {
    const std::size_t ngram = 1 + random() % 4;
    const auto vocab = static_cast<std::uint32_t>(12 + random() % 200);
    PromptLookup lookup(ngram, 100);
    Tokens text;
    while (text.size() < 100) {
      text.push_back(static_cast<TokenId>(random() % vocab));
      // Repeat a piece now and then, as texts do.
      if (random() % 5 == 0 && text.size() > 20) {
        const std::size_t from = random() % 15;
        for (std::size_t i = 0; i < 5 && text.size() < 100; ++i) text.push_back(text[from + i]);
      }
      const Tokens expected = slow_draft(text, ngram, 1 + random() % 6);
      const std::size_t wanted = expected.empty() ? 3 : expected.size();
      const Tokens found = fast_draft(lookup, text, wanted);
      const auto places = std::count(text.begin(), text.end(), text.back());
      if (places > static_cast<std::ptrdiff_t>(PromptLookup::kCandidates) / 2)
        continue;  // it may look at fewer
      EXPECT_EQ(found, expected);
      if (!expected.empty()) ++drafts;
    }
  }
  EXPECT_GT(drafts, 500);
}

/// Every token's last n tokens lie in one bucket that holds the whole text: a search without a bound would
/// look at all places for each token.
TEST(PromptLookup, AMonotonousTextIsNoWorstCase) {
  constexpr std::size_t kLength = 200'000;  // squared, it would not end within the time of a test
  PromptLookup lookup(1, kLength);
  Tokens text;
  std::array<TokenId, 4> to{};
  text.reserve(kLength);
  while (text.size() < kLength) {
    text.push_back(text.size() % 40 == 0 ? 2 : 1);
    lookup.extend(text);
    lookup.draft(text, to);
  }
  EXPECT_EQ(lookup.draft(text, to), 4u);
}

struct DraftTest : ::testing::Test {
  std::mt19937 random{17};

  std::size_t below(std::size_t n) { return random() % n; }

  /// Text that repeats itself, or not.
  Tokens prompt(std::size_t n, std::int64_t vocab) {
    Tokens ids(1 + below(n));
    const std::size_t period = 1 + below(ids.size());
    for (std::size_t i = 0; i < ids.size(); ++i)
      ids[i] =
          i < period ? static_cast<TokenId>(2 + below(static_cast<std::size_t>(vocab) - 2)) : ids[i - period];
    return ids;
  }

  GenerationOptions options() {
    GenerationOptions o;
    o.max_tokens = static_cast<std::int64_t>(1 + below(60));
    if (below(6) == 0) o.max_tokens = -1;
    o.sampling.seed = random();
    constexpr float kTemperatures[] = {0.0f, 0.0f, 0.3f, 0.8f, 1.5f};
    o.sampling.temperature = kTemperatures[below(5)];
    if (below(3) == 0) o.sampling.repeat_penalty = 1.2f;
    o.sampling.repeat_last_n = static_cast<std::int32_t>(below(20));
    if (below(3) == 0) o.sampling.top_k = 3;
    o.ignore_eos = below(3) != 0;
    constexpr const char* kStops[] = {"e", "the ", "at", "zq"};
    while (below(3) == 0) o.stop.emplace_back(kStops[below(4)]);
    if (below(4) == 0) o.stop_tokens = {static_cast<TokenId>(below(300))};
    return o;
  }

  /// The same request with drafts.
  GenerationOptions drafting(GenerationOptions o) {
    o.draft = static_cast<std::int64_t>(1 + below(GenerationOptions::kMaxDraft));
    o.draft_ngram = static_cast<std::int64_t>(1 + below(4));
    o.cancellation = {};
    return o;
  }

  static void expect_equal(const GenerationResult& drafted, const GenerationResult& plain) {
    EXPECT_EQ(drafted.tokens, plain.tokens);
    EXPECT_EQ(drafted.text, plain.text);
    EXPECT_EQ(drafted.finish_reason, plain.finish_reason);
    EXPECT_EQ(drafted.completion_tokens, plain.completion_tokens);
    EXPECT_EQ(drafted.prompt_tokens, plain.prompt_tokens);
    EXPECT_EQ(drafted.reused_tokens, plain.reused_tokens);
    EXPECT_EQ(drafted.error.has_value(), plain.error.has_value());
    EXPECT_LE(drafted.accepted_tokens, drafted.drafted_tokens);
    EXPECT_EQ(plain.drafted_tokens, 0);
  }
};

/// Pieces of text with what surrounds them: callbacks must come one a token, in the same pieces.
struct Pieces {
  std::vector<std::string> list;
  TextCallback callback() {
    return [this](std::string_view piece) { list.emplace_back(piece); };
  }
};

struct EngineDraftTest : DraftTest {
  testing::TempDir dir;
  std::filesystem::path folder;

  EngineDraftTest() : folder(dir / "model") {
    const auto tensors = testing::random_model(text_config(), 6);
    quant::write_model(folder, text_config(), byte_tokenizer().get(),
                       [&](TensorId id) { return tensors(id); },
                       {.type = quant::LinearType::kHf, .gguf = false});
  }

  EngineOptions engine_options(std::int64_t n_ctx, std::int64_t chunk_rows,
                               DType kv_type = DType::kF16) const {
    EngineOptions o;
    o.model = folder;
    o.n_ctx = n_ctx;
    o.chunk_rows = chunk_rows;
    o.kv_type = kv_type;
    o.context = make_context(2);
    return o;
  }
};

TEST_F(EngineDraftTest, AnyRequestGivesWhatItGivesWithoutDrafts) {
  std::int64_t accepted = 0;
  for (const std::int64_t chunk : {1, 2, 5, 256}) {
    for (const std::int64_t n_ctx : {24, 128}) {
      constexpr DType kTypes[] = {DType::kF16, DType::kI8, DType::kF32};
      const DType kv_type = kTypes[below(3)];
      InferenceEngine with(engine_options(n_ctx, chunk, kv_type)),
          without(engine_options(n_ctx, chunk, kv_type));
      Tokens history;
      for (int round = 0; round < 25; ++round) {
        SCOPED_TRACE(::testing::Message() << "chunk " << chunk << ", n_ctx " << n_ctx << ", round " << round);
        // Every second request goes on with the conversation, so that what a request leaves in the cache
        // counts.
        Tokens ids = round % 2 == 1 ? history : Tokens{};
        for (const TokenId id : prompt(20, 304)) ids.push_back(id);
        if (static_cast<std::int64_t>(ids.size()) >= n_ctx) ids.resize(static_cast<std::size_t>(n_ctx) - 1);
        const GenerationOptions plain = options();
        Pieces a, b;
        const GenerationResult expected = without.generate(ids, plain, a.callback());
        const GenerationResult result = with.generate(ids, drafting(plain), b.callback());
        expect_equal(result, expected);
        EXPECT_EQ(b.list, a.list);
        EXPECT_EQ(with.session().tokens(), without.session().tokens());
        accepted += result.accepted_tokens;
        history = ids;
        history.insert(history.end(), result.tokens.begin(), result.tokens.end());
      }
    }
  }
  EXPECT_GT(accepted, 100);
}

TEST_F(EngineDraftTest, CancellingInACallbackEndsAtTheSameToken) {
  InferenceEngine with(engine_options(128, 256)), without(engine_options(128, 256));
  const Tokens ids{5, 6, 7, 8, 5, 6, 7, 8, 5, 6, 7, 8};
  for (std::size_t after = 1; after < 12; ++after) {
    const auto cancelled = [&](InferenceEngine& engine, std::int64_t draft) {
      GenerationOptions o;
      o.sampling.temperature = 0;
      o.ignore_eos = true;
      o.draft = draft;
      o.draft_ngram = 1;
      std::size_t pieces = 0;
      const CancellationToken token = o.cancellation;
      return engine.generate(ids, o, [&](std::string_view) {
        if (++pieces == after) token.cancel();
      });
    };
    const GenerationResult expected = cancelled(without, 0), result = cancelled(with, 8);
    expect_equal(result, expected);
    EXPECT_EQ(result.finish_reason, FinishReason::kCancelled);
    EXPECT_EQ(with.session().tokens(), without.session().tokens());
  }
}

TEST_F(EngineDraftTest, AnErrorOfTheCallbackEndsAtTheSameToken) {
  InferenceEngine with(engine_options(128, 256)), without(engine_options(128, 256));
  for (std::size_t after = 1; after < 8; ++after) {
    const auto failed = [&](InferenceEngine& engine, std::int64_t draft) {
      GenerationOptions o;
      o.sampling.temperature = 0;
      o.ignore_eos = true;
      o.draft = draft;
      std::size_t pieces = 0;
      return engine.generate(Tokens{5, 6, 7, 8, 5, 6, 7, 8}, o, [&](std::string_view) {
        if (++pieces == after) throw Error(ErrorCode::kIo, "the pipe is closed");
      });
    };
    const GenerationResult expected = failed(without, 0), result = failed(with, 8);
    expect_equal(result, expected);
    ASSERT_TRUE(result.error.has_value());
    EXPECT_EQ(result.error->code(), ErrorCode::kIo);
  }
}

TEST_F(EngineDraftTest, RefusesOptionsOutOfRange) {
  InferenceEngine engine(engine_options(64, 16));
  GenerationOptions o;
  o.draft = 17;
  BITNET_EXPECT_ERROR((void)engine.generate(Tokens{3}, o), ErrorCode::kInvalidArgument,
                      "draft = 17: expected 0 … 16");
  o.draft = -1;
  BITNET_EXPECT_ERROR((void)engine.generate(Tokens{3}, o), ErrorCode::kInvalidArgument, "draft = -1");
  o.draft = 4;
  o.draft_ngram = 0;
  BITNET_EXPECT_ERROR((void)engine.generate(Tokens{3}, o), ErrorCode::kInvalidArgument, "draft_ngram = 0");
}

struct SchedulerDraftTest : DraftTest {
  std::shared_ptr<const Model> model =
      make_model(testing::random_model(text_config(), 6), 2, byte_tokenizer());

  struct Outcome {
    std::map<std::size_t, GenerationResult> results;  // by the number of the request
    SchedulerStats stats;
  };
  /// All requests, some joining while others run, as `joins` says.
  Outcome run(const std::vector<Request>& requests, const std::vector<int>& joins,
              const SchedulerOptions& o) {
    Outcome out;
    BatchScheduler scheduler(model, o);
    for (std::size_t i = 0; i < requests.size(); ++i) {
      Request r = requests[i];
      r.on_done = [&out, i](RequestId, const GenerationResult& result) { out.results.emplace(i, result); };
      scheduler.submit(std::move(r));
      for (int s = 0; s < joins[i]; ++s) scheduler.step();
    }
    scheduler.run();
    out.stats = scheduler.stats();
    return out;
  }
};

TEST_F(SchedulerDraftTest, AnyBatchGivesWhatItGivesWithoutDrafts) {
  std::uint64_t accepted = 0;
  for (int round = 0; round < 30; ++round) {
    SCOPED_TRACE(round);
    SchedulerOptions o;
    o.max_sequences = static_cast<std::int64_t>(1 + below(6));
    o.step_rows = static_cast<std::int64_t>(1 + below(40));
    o.page_size = static_cast<std::int64_t>(1 + below(6));
    o.draft_rows = static_cast<std::int64_t>(below(24));
    o.n_ctx = 90;
    // Sometimes a pool that is too small for all, so that sequences are sent back.
    const std::size_t pages =
        static_cast<std::size_t>(o.max_sequences) * 90 / static_cast<std::size_t>(o.page_size);
    o.kv_memory_bytes =
        KvPool::page_bytes(model->config(), o.page_size) *
        std::max<std::size_t>(91 / static_cast<std::size_t>(o.page_size) + 1, pages / (1 + below(3)));
    std::vector<Request> plain, drafted;
    std::vector<int> joins;
    for (int i = 0; i < 8; ++i) {
      Request r;
      r.prompt = prompt(25, 304);
      r.options = options();
      plain.push_back(r);
      if (below(4) != 0) r.options = drafting(r.options);  // others of the batch have none
      drafted.push_back(std::move(r));
      joins.push_back(static_cast<int>(below(4)));
    }
    const Outcome expected = run(plain, joins, o), outcome = run(drafted, joins, o);
    ASSERT_EQ(outcome.results.size(), plain.size());
    std::uint64_t generated = 0;
    for (std::size_t i = 0; i < plain.size(); ++i) {
      SCOPED_TRACE(i);
      expect_equal(outcome.results.at(i), expected.results.at(i));
      generated += static_cast<std::uint64_t>(outcome.results.at(i).completion_tokens);
    }
    EXPECT_EQ(outcome.stats.generated_tokens, generated);
    EXPECT_EQ(outcome.stats.kv_pages_used, 0);
    EXPECT_LE(outcome.stats.accepted_tokens, outcome.stats.drafted_tokens);
    if (o.draft_rows == 0) {
      EXPECT_EQ(outcome.stats.drafted_tokens, 0u);
    }
    if (outcome.stats.preemptions == 0) {
      std::uint64_t prompts = 0;
      for (const Request& r : plain) prompts += r.prompt.size();
      EXPECT_EQ(outcome.stats.prompt_tokens, prompts);
    }
    accepted += outcome.stats.accepted_tokens;
  }
  EXPECT_GT(accepted, 100u);
}

TEST_F(SchedulerDraftTest, DraftsSaveSteps) {
  std::vector<Request> requests(2);
  for (Request& r : requests) {
    r.options.max_tokens = 60;
    r.options.ignore_eos = true;
    r.options.sampling.temperature = 0;
    r.options.sampling.top_k = 1;
    for (int i = 0; i < 30; ++i) r.prompt.push_back(static_cast<TokenId>(10 + i % 5));
  }
  const Outcome plain = run(requests, {0, 0}, {});
  for (Request& r : requests) r.options.draft = 8;
  const Outcome drafted = run(requests, {0, 0}, {});
  EXPECT_EQ(plain.stats.steps, 60u);
  EXPECT_LT(drafted.stats.steps, plain.stats.steps);
  EXPECT_GT(drafted.results.at(0).accepted_tokens, 0);
  EXPECT_EQ(drafted.stats.accepted_tokens, static_cast<std::uint64_t>(drafted.results.at(0).accepted_tokens +
                                                                      drafted.results.at(1).accepted_tokens));
  for (const std::size_t i : {0, 1}) expect_equal(drafted.results.at(i), plain.results.at(i));
}

TEST_F(SchedulerDraftTest, RefusesDraftRowsOutOfRange) {
  SchedulerOptions o;
  o.draft_rows = -1;
  BITNET_EXPECT_ERROR(BatchScheduler(model, o), ErrorCode::kInvalidArgument, "draft_rows = -1");
}

}  // namespace
}  // namespace bitnet::inference
