// What a batch does when memory gets short, told by a file that stands for the kernel's: who joins, who goes
// back to the queue, what the cache gives back; and that no token changes by it.
#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/inference/batch_scheduler.hpp"
#include "bitnet/inference/kv_cache.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

namespace fs = std::filesystem;

struct PressureTest : ::testing::Test {
  PressureTest() {
    fs::remove_all(root);
    fs::create_directories(root / "proc/pressure");
    PressureOptions o;
    o.root = root;
    monitor = std::make_shared<PressureMonitor>(o);
  }
  ~PressureTest() override { fs::remove_all(root); }

  /// As many readings as a level needs to fall.
  void stall(double percent) {
    std::ofstream(root / "proc/pressure/memory") << "some avg10=" << percent << " avg60=0.00\n";
    for (int i = 0; i < 4; ++i) monitor->poll();
  }

  std::unique_ptr<BatchScheduler> make_scheduler(std::int64_t sequences) {
    SchedulerOptions o;
    o.max_sequences = sequences;
    o.n_ctx = 512;
    o.pressure = monitor;
    return std::make_unique<BatchScheduler>(model, o);
  }

  void submit(BatchScheduler& scheduler, std::uint64_t seed) {
    Request r;
    r.prompt = {static_cast<TokenId>(3 + seed), 7, 11, 13};
    r.options.max_tokens = 40;
    r.options.sampling.seed = seed;
    r.options.sampling.temperature = 1.5f;
    prompts.emplace(scheduler.submit([&] {
      Request copy = r;
      copy.on_done = [this](RequestId id, const GenerationResult& result) { results.emplace(id, result); };
      return copy;
    }()),
                    r);
  }

  void expect_tokens_as_alone() {
    ASSERT_EQ(results.size(), prompts.size());
    for (const auto& [id, r] : prompts) {
      EXPECT_FALSE(results.at(id).error.has_value());
      EXPECT_EQ(results.at(id).tokens, plain_generate(model, r.prompt, r.options.sampling, 40)) << id;
    }
  }

  fs::path root = fs::path(::testing::TempDir()) / "inference_pressure";
  std::shared_ptr<PressureMonitor> monitor;
  std::shared_ptr<const Model> model =
      make_model(testing::random_model(text_config(), 2), 2, byte_tokenizer());
  std::map<RequestId, Request> prompts;
  std::map<RequestId, GenerationResult> results;
};

TEST_F(PressureTest, HighLetsNobodyJoinWhileOthersRun) {
  const auto scheduler = make_scheduler(4);
  submit(*scheduler, 1);
  scheduler->step();
  stall(25);
  ASSERT_EQ(monitor->level(), MemoryPressure::kHigh);
  for (std::uint64_t seed = 2; seed < 5; ++seed) submit(*scheduler, seed);
  for (int i = 0; i < 5; ++i) scheduler->step();
  EXPECT_EQ(scheduler->stats().running, 1);
  EXPECT_EQ(scheduler->stats().waiting, 3);
  stall(0);
  scheduler->step();
  EXPECT_EQ(scheduler->stats().running, 4);
  stall(25);  // those that run go on
  scheduler->run();
  EXPECT_EQ(scheduler->stats().yielded, 0u);
  expect_tokens_as_alone();
}

TEST_F(PressureTest, UnderLastingPressureAllFinishOneByOne) {
  stall(25);
  const auto scheduler = make_scheduler(4);
  for (std::uint64_t seed = 1; seed < 4; ++seed) submit(*scheduler, seed);
  scheduler->run();
  EXPECT_EQ(scheduler->stats().max_running, 1);
  expect_tokens_as_alone();
}

TEST_F(PressureTest, CriticalSendsTheYoungerHalfBackOnce) {
  const auto scheduler = make_scheduler(4);
  for (std::uint64_t seed = 1; seed < 5; ++seed) submit(*scheduler, seed);
  for (int i = 0; i < 5; ++i) scheduler->step();
  ASSERT_EQ(scheduler->stats().running, 4);
  stall(50);
  for (int i = 0; i < 5; ++i) scheduler->step();
  EXPECT_EQ(scheduler->stats().running, 2);
  EXPECT_EQ(scheduler->stats().waiting, 2);
  EXPECT_EQ(scheduler->stats().yielded, 2u);
  stall(39);  // within the hysteresis: nothing changes
  scheduler->step();
  EXPECT_EQ(scheduler->stats().running, 2);
  stall(0);
  scheduler->run();
  EXPECT_EQ(scheduler->stats().max_running, 4);
  expect_tokens_as_alone();
}

TEST_F(PressureTest, FromLowOnNothingIsDrafted) {
  const auto scheduler = make_scheduler(1);
  const auto run_one = [&] {
    Request r;
    for (TokenId id = 0; id < 100; ++id) r.prompt.push_back(3 + id % 3);
    r.options.max_tokens = 30;
    r.options.sampling.top_k = 2;
    r.options.draft = 3;
    r.options.draft_ngram = 1;
    scheduler->submit(std::move(r));
    scheduler->run();
    return scheduler->stats().drafted_tokens;
  };
  stall(6);
  EXPECT_EQ(run_one(), 0u);
  stall(0);
  EXPECT_GT(run_one(), 0u);
}

TEST_F(PressureTest, TheCacheGivesFreePagesBackAndKeepsWhatIsStored) {
  const auto scheduler = make_scheduler(4);
  for (std::uint64_t seed = 1; seed < 5; ++seed) submit(*scheduler, seed);
  for (int i = 0; i < 5; ++i) scheduler->step();
  stall(50);
  scheduler->step();
  const std::size_t given = scheduler->stats().kv_discarded;
  EXPECT_GT(given, 0u);
  stall(0);
  stall(25);
  scheduler->run();
  expect_tokens_as_alone();
}

TEST(KvPoolDiscard, TakesFreePagesThatWereInUseAndNoOthers) {
  const auto model = make_model(testing::random_model(text_config(), 2));
  Backend& backend = model->backend();
  const ModelConfig& c = model->config();
  constexpr std::int64_t kTokens = 4096;  // pages of the cache that are whole pages of the system
  const std::size_t bytes = kv_page_bytes(DType::kF32, kTokens, c.n_kv_heads, c.head_dim);
  KvPool pool(backend, c, 16, kTokens, DType::kF32);
  EXPECT_EQ(pool.discard_free_pages(), 0u);
  KvCache kept(pool, 16 * kTokens), gone(pool, 16 * kTokens);
  ASSERT_TRUE(kept.reserve(3 * kTokens));
  ASSERT_TRUE(gone.reserve(5 * kTokens));
  const std::vector<std::byte> ones(bytes, std::byte{1});
  for (const std::int32_t page : kept.pages())
    backend.upload(*pool.layer(0).keys, static_cast<std::size_t>(page) * bytes, ones);
  EXPECT_EQ(pool.discard_free_pages(), 0u);
  gone.truncate(0);
  // All 13 free pages are neighbours of those that were in use.
  EXPECT_EQ(pool.discard_free_pages(), 13 * bytes * 2 * static_cast<std::size_t>(c.n_layers));
  EXPECT_EQ(pool.discard_free_pages(), 0u);
  std::vector<std::byte> back(bytes);
  for (const std::int32_t page : kept.pages()) {
    backend.download(*pool.layer(0).keys, static_cast<std::size_t>(page) * bytes, back);
    EXPECT_EQ(back, ones);
  }
}

}  // namespace
}  // namespace bitnet::inference
