// How much of a pool prepared weights take: little more than their bytes, in few blocks and on huge pages
// where they are many, and no more than that where the pool's limit allows no more.
#include "tile_memory.hpp"

#include <gmock/gmock.h>

#include <cstring>
#include <optional>
#include <vector>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::quant {
namespace {

constexpr std::size_t kKiB = 1024, kMiB = 1024 * kKiB;

struct TileMemoryTest : ::testing::Test {
  using Tiles = std::vector<std::shared_ptr<std::uint8_t>>;

  void open(std::size_t limit = kNoMemoryLimit) {
    MemoryPoolOptions options;
    options.limit = limit;
    options.check_blocks = false;  // marks need pages of their own
    options.tracking = TrackingLevel::kStandard;
    pool = std::make_shared<HybridMemoryPool>(options);
    ExecutionContext::Options machine;
    machine.threads = 1;
    machine.memory = pool;
    context.emplace(machine);
  }
  /// Matrices of these sizes, round after round; each has a byte of its own written all over it.
  std::size_t prepare(const std::vector<std::size_t>& sizes, int rounds, Tiles& tiles) {
    std::size_t sum = 0;
    for (int i = 0; i < rounds; ++i) {
      for (const std::size_t bytes : sizes) {
        tiles.push_back(allocate_tiles(*context, bytes));
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(tiles.back().get()) % 64, 0u);
        std::memset(tiles.back().get(), static_cast<int>(tiles.size() % 251), bytes);
        written.push_back(bytes);
        sum += bytes;
      }
    }
    return sum;
  }
  void expect_apart(const Tiles& tiles) const {
    for (std::size_t i = 0; i < tiles.size(); ++i) {
      EXPECT_EQ(tiles[i].get()[0], (i + 1) % 251) << i;
      EXPECT_EQ(tiles[i].get()[written[i] - 1], (i + 1) % 251) << i;
    }
  }

  std::shared_ptr<HybridMemoryPool> pool;
  std::optional<ExecutionContext> context;
  std::vector<std::size_t> written;
};

TEST_F(TileMemoryTest, ASmallModelTakesLittleMoreThanItsBytes) {
  open();
  Tiles tiles;
  const std::size_t sum = prepare({64 * kKiB, 16 * kKiB, 16 * kKiB, 64 * kKiB, 176 * kKiB}, 11, tiles);
  ASSERT_LT(sum, 4 * kMiB);
  EXPECT_LE(pool->stats().used, sum + sum / 5);
  expect_apart(tiles);
}

TEST_F(TileMemoryTest, ALargeModelLiesInFewBlocksOnHugePages) {
  open();
  Tiles tiles;
  // Thirty layers of 17 MiB, q to down. Nobody touches them, so they cost nothing.
  const std::vector<std::size_t> layer{1600 * kKiB, 400 * kKiB,  400 * kKiB, 1600 * kKiB,
                                       4320 * kKiB, 4320 * kKiB, 4320 * kKiB};
  std::size_t sum = 0;
  for (int i = 0; i < 30; ++i) {
    for (const std::size_t bytes : layer) {
      tiles.push_back(allocate_tiles(*context, bytes));
      sum += bytes;
    }
  }
  EXPECT_LE(pool->stats().used, sum + sum / 8);
  const auto blocks = pool->live_blocks();
  EXPECT_LE(blocks.size(), 50u);
  std::size_t on_small_pages = 0;
  for (const LiveBlock& block : blocks) {
    on_small_pages += block.bytes % (2 * kMiB);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block.address) % (2 * kMiB), 0u);
  }
  EXPECT_LE(on_small_pages, sum / 50);
}

TEST_F(TileMemoryTest, WhereMemoryIsShortAMatrixTakesItsOwnBytesAlone) {
  open(kMiB);
  Tiles tiles;
  prepare({200 * kKiB}, 5, tiles);
  EXPECT_LE(pool->stats().used, kMiB);
  EXPECT_EQ(pool->stats().refusals, 0u);
  expect_apart(tiles);
  BITNET_EXPECT_ERROR(allocate_tiles(*context, 200 * kKiB), ErrorCode::kOutOfMemory,
                      "asked for 204800 bytes (weights)");
}

TEST_F(TileMemoryTest, ABlockGoesBackWithTheLastOfItsMatrices) {
  open();
  Tiles tiles;
  prepare({100 * kKiB}, 8, tiles);
  EXPECT_EQ(pool->stats().used, 2 * kMiB);
  tiles.erase(tiles.begin(), tiles.end() - 1);
  EXPECT_EQ(pool->stats().used, 2 * kMiB);
  tiles.clear();
  EXPECT_EQ(pool->stats().used, 0u);
  prepare({100 * kKiB}, 1, tiles);
  pool->reset();
  Tiles after{allocate_tiles(*context, 100 * kKiB)};  // not in a block that the pool took back
  EXPECT_EQ(pool->stats().used, 2 * kMiB);
}

}  // namespace
}  // namespace bitnet::quant
