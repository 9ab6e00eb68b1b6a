// That inference takes its memory from the context's pool: a tag for each use, the pool's limit as an error,
// and nothing left when all is gone.
#include <gmock/gmock.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/inference/batch_scheduler.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

using ::testing::IsSupersetOf;

constexpr std::size_t kMiB = std::size_t{1} << 20;

struct MemoryUseTest : ::testing::Test {
  std::shared_ptr<HybridMemoryPool> make_pool(std::size_t limit = kNoMemoryLimit) {
    MemoryPoolOptions o = host_pool_options();
    o.tracking = TrackingLevel::kStandard;
    o.limit = limit;
    return std::make_shared<HybridMemoryPool>(o);
  }
  std::shared_ptr<const Model> load(std::shared_ptr<HybridMemoryPool> pool, HeadType head = HeadType::kAuto) {
    ExecutionContext::Options o;
    o.threads = 2;
    o.memory = std::move(pool);
    LoadOptions options;
    options.head = head;
    const auto tensors = testing::random_model(text_config(), 2);
    return Model::build(tensors.config, byte_tokenizer(),
                        make_cpu_backend(std::make_shared<const ExecutionContext>(o)), tensors, options);
  }
  static std::vector<std::string> tags_in_use(const HybridMemoryPool& pool) {
    std::vector<std::string> tags;
    for (const TagStats& tag : pool.tags())
      if (tag.used != 0) tags.push_back(tag.tag);
    return tags;
  }
};

TEST_F(MemoryUseTest, EveryUseHasItsTagAndNothingIsLeft) {
  for (const HeadType head : {HeadType::kInt8, HeadType::kF16, HeadType::kStored}) {
    const auto pool = make_pool();
    {
      const auto model = load(pool, head);
      EXPECT_THAT(tags_in_use(*pool), IsSupersetOf({"weights"}));
      Session session(model);
      const std::vector<TokenId> ids{3, 4, 5};
      static_cast<void>(session.evaluate(ids));
      EXPECT_THAT(tags_in_use(*pool),
                  IsSupersetOf({"activations", "kv pages", "logits", "rope table", "weights"}));
      EXPECT_GE(pool->stats().used, session.cache_bytes() + session.workspace_bytes());
      BatchScheduler scheduler(model);
    }
    EXPECT_EQ(pool->stats().used, 0u);
    EXPECT_EQ(pool->stats().allocations, pool->stats().frees);
  }
}

TEST_F(MemoryUseTest, TheLimitOfThePoolBoundsWhatIsLoadedAndCached) {
  BITNET_EXPECT_ERROR(load(make_pool(64 << 10)), ErrorCode::kOutOfMemory, "memory pool 'host': asked for");
  const auto pool = make_pool(18 * kMiB);  // weights take 2
  const auto model = load(pool);
  EXPECT_LE(model->backend().available_memory(), 16 * kMiB);
  SessionOptions options;
  options.n_ctx = 1 << 20;
  BITNET_EXPECT_ERROR(Session(model, options), ErrorCode::kOutOfMemory, "memory pool 'host': asked for");
  EXPECT_LE(pool->stats().peak_held, 18 * kMiB);
  BatchScheduler scheduler(model);  // sizes its cache by what is left
  EXPECT_LE(pool->held(), 18 * kMiB);
}

}  // namespace
}  // namespace bitnet::inference
