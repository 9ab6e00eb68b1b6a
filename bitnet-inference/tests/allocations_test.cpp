// A decoded token allocates nothing, neither from the heap nor from the memory pool, a waiting request
// little, and memory that is refused is an Error: operator new of this executable counts and refuses.
#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>

#include "bitnet/core/profiler.hpp"
#include "bitnet/inference/batch_scheduler.hpp"
#include "support.hpp"

namespace {
std::atomic<long> allocations{0}, allocated_bytes{0};
std::atomic<std::size_t> refused_from{std::numeric_limits<std::size_t>::max()};

/// While it lives, single allocations of `bytes` and more fail.
struct Refuse {
  explicit Refuse(std::size_t bytes) { refused_from = bytes; }
  ~Refuse() { refused_from = std::numeric_limits<std::size_t>::max(); }
  Refuse(const Refuse&) = delete;
  Refuse& operator=(const Refuse&) = delete;
};

void* counted(std::size_t bytes, std::size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  allocated_bytes.fetch_add(static_cast<long>(bytes), std::memory_order_relaxed);
  if (bytes >= refused_from) throw std::bad_alloc();
  const std::size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  if (void* p = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded)) return p;
  throw std::bad_alloc();
}
}  // namespace

void* operator new(std::size_t n) { return counted(n, alignof(std::max_align_t)); }
void* operator new[](std::size_t n) { return counted(n, alignof(std::max_align_t)); }
void* operator new(std::size_t n, std::align_val_t a) { return counted(n, static_cast<std::size_t>(a)); }
void* operator new[](std::size_t n, std::align_val_t a) { return counted(n, static_cast<std::size_t>(a)); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }

namespace bitnet::inference {
namespace {

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

}  // namespace
}  // namespace bitnet::inference
