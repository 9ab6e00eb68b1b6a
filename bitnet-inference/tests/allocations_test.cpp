// A decoded token allocates nothing: operator new of this executable counts.
#include <atomic>
#include <cstdlib>
#include <new>

#include "bitnet/inference/batch_scheduler.hpp"
#include "support.hpp"

namespace {
std::atomic<long> allocations{0};

void* counted(std::size_t bytes, std::size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
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

TEST(Allocations, TheCounterCounts) {
  const long before = allocations;
  auto p = std::make_unique<int>(1);
  EXPECT_EQ(allocations - before, 1);
}

TEST(Allocations, DecodingATokenAllocatesNothing) {
  for (const WeightKind kind : {WeightKind::kTernary, WeightKind::kDense}) {
    for (const std::size_t threads : {1, 2}) {
      const auto model = make_model(testing::random_model(config(kind), 1, DType::kF16), threads);
      Session session(model);
      SamplerOptions options;
      options.repeat_penalty = 1.1f;
      Sampler sampler(options, model->config().vocab_size);
      TokenId token = 5;
      for (int i = 0; i < 3; ++i) token = sampler.sample(session.evaluate({&token, 1}));
      const long before = allocations;
      for (int i = 0; i < 100; ++i) {
        token = sampler.sample(session.evaluate({&token, 1}));
        sampler.accept(token);
      }
      EXPECT_EQ(allocations - before, 0) << threads << " threads";
    }
  }
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
  const long before = allocations;
  for (int i = 0; i < 80; ++i) scheduler.step();
  EXPECT_EQ(allocations - before, 0);
  EXPECT_EQ(scheduler.stats().running, 4);
}

}  // namespace
}  // namespace bitnet::inference
