// The page pool: reservation, return, exhaustion, refusals.
#include "bitnet/inference/kv_cache.hpp"

#include <limits>
#include <set>

#include "support.hpp"

namespace bitnet::inference {
namespace {

struct KvCacheTest : ::testing::Test {
  std::unique_ptr<Backend> backend = make_cpu_backend(make_context(1));
  ModelConfig config = testing::tiny_config();
};

TEST_F(KvCacheTest, ReservesGrowsAndReturnsPages) {
  KvPool pool(*backend, config, 5, 4);
  EXPECT_EQ(pool.bytes(), 5 * KvPool::page_bytes(config, 4));
  EXPECT_EQ(KvPool::page_bytes(config, 4), 4u * 20 * 2 * 2 * 2);  // tokens · kv_dim · f16 · K and V · layers
  EXPECT_EQ(KvPool::page_bytes(config, 4, DType::kF32), 4u * 20 * 4 * 2 * 2);
  EXPECT_EQ(KvPool::page_bytes(config, 4, DType::kI8), 4u * (2 * 12 + 2 * 4) * 2 * 2);  // and f32 · heads
  EXPECT_EQ(KvPool(*backend, config, 5, 4, DType::kI8).bytes(),
            5 * KvPool::page_bytes(config, 4, DType::kI8));
  KvCache a(pool, 100);
  {
    KvCache b(pool, 100);
    EXPECT_TRUE(a.reserve(5));
    EXPECT_TRUE(b.reserve(8));
    EXPECT_EQ(pool.free_pages(), 1);
    EXPECT_TRUE(a.reserve(8));  // has them
    EXPECT_EQ(pool.free_pages(), 1);
    EXPECT_FALSE(b.reserve(17));  // needs three more: nothing changes
    EXPECT_EQ(b.pages().size(), 2u);
    std::set<std::int32_t> all(a.pages().begin(), a.pages().end());
    all.insert(b.pages().begin(), b.pages().end());
    EXPECT_EQ(all.size(), 4u);  // no page twice
  }
  EXPECT_EQ(pool.free_pages(), 3);
  a.set_length(7);
  a.truncate(4);
  EXPECT_EQ(a.length(), 4);
  EXPECT_EQ(pool.free_pages(), 4);
  KvCache moved = std::move(a);
  EXPECT_EQ(moved.length(), 4);
  moved = KvCache(pool, 10);
  EXPECT_EQ(pool.free_pages(), 5);
}

TEST_F(KvCacheTest, RefusesWhatCannotBe) {
  BITNET_EXPECT_ERROR(KvPool(*backend, config, 0, 4), ErrorCode::kInvalidArgument, "0 pages");
  BITNET_EXPECT_ERROR(KvPool(*backend, config, 4, 0), ErrorCode::kInvalidArgument, "0 tokens");
  BITNET_EXPECT_ERROR(KvPool(*backend, config, 4, std::numeric_limits<std::int64_t>::max()),
                      ErrorCode::kInvalidArgument, "KV pages");
  BITNET_EXPECT_ERROR(KvPool(*backend, config, std::int64_t{1} << 31, 1), ErrorCode::kInvalidArgument,
                      "pages");
  BITNET_EXPECT_ERROR(KvPool(*backend, config, 1 << 30, 1 << 20), ErrorCode::kOutOfMemory, "KV cache");
  // Each of its four buffers would fit alone.
  const auto pages = static_cast<std::int64_t>(backend->available_memory() / 3 / (16 * 20 * sizeof(float)));
  BITNET_EXPECT_ERROR(KvPool(*backend, config, pages, 16, DType::kF32), ErrorCode::kOutOfMemory, "n_ctx");
  BITNET_EXPECT_ERROR(KvPool(*backend, config, 4, 4, DType::kBF16), ErrorCode::kInvalidArgument,
                      "expected one of f16, i8, f32");
  KvPool pool(*backend, config, 5, 4);
  KvCache cache(pool, 10);
  BITNET_EXPECT_ERROR(cache.reserve(11), ErrorCode::kInvalidArgument, "11 tokens");
  BITNET_EXPECT_ERROR(cache.set_length(1), ErrorCode::kInternal, "KV length");
}

}  // namespace
}  // namespace bitnet::inference
