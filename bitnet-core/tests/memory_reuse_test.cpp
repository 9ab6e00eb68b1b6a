// How freed memory of a pool is used again and goes back: trims, large blocks that wait, the caches of
// threads that come, pass blocks to each other and end, reset(). What a block is: memory_pool_test.cpp.
#include "bitnet/core/memory/hybrid_memory_pool.hpp"

#include <gtest/gtest.h>

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstring>
#include <deque>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
#include "memory/large_block_cache.hpp"
#include "memory/small_block_pool.hpp"
#include "memory_support.hpp"

namespace bitnet {
namespace {

TEST(Pool, TrimReturnsWhatWasWrittenAndKeepsLiveBlocks) {
  HybridMemoryPool pool(unchecked());
  MemoryBlock large(pool, 64 * kMiB), kept(pool, 8 * kMiB);
  std::memset(large.data(), 1, large.size());
  std::memset(kept.data(), 2, kept.size());
  const void* where = kept.data();
  large.reset();
  const TrimReport report = pool.trim();
  EXPECT_GE(report.offered, 64 * kMiB);
  EXPECT_GE(report.returned, 64 * kMiB);
  EXPECT_EQ(kept.data(), where);
  for (const std::byte b : kept.bytes()) ASSERT_EQ(b, std::byte{2});
  EXPECT_EQ(pool.trim().returned, 0u);  // there is no more
  const MemoryBlock again(pool, 64 * kMiB);
  std::memset(again.data(), 3, again.size());
}

TEST(Pool, WhatIsBeingTrimmedIsNotMissing) {
  HybridMemoryPool pool(with_limit(256 * kMiB));
  std::atomic<bool> done{false};
  std::thread trims([&] {
    while (!done) pool.trim();
  });
  for (int round = 0; round < 300; ++round) {  // of an empty pool, whose range is one free block
    auto* p = static_cast<char*>(pool.try_allocate(100 * kMiB));
    EXPECT_NE(p, nullptr) << "round " << round;
    if (p == nullptr) break;
    for (std::size_t i = 0; i < 100 * kMiB; i += kMiB) p[i] = 1;
    pool.deallocate(p);
    EXPECT_LE(pool.stats().used, pool.held());
  }
  done = true;
  trims.join();
}

TEST(LargeBlocks, SmallRequestsLeaveTheLargePiecesWhole) {
  HybridMemoryPool pool(with_limit(64 * kMiB));
  const MemoryBlock small(pool, 100);
  pool.deallocate(pool.allocate(40 * kMiB));  // the system has given its memory
  const MemoryBlock other(pool, 100000);
  for (int i = 0; i < 3; ++i) {
    const MemoryBlock large(pool, 40 * kMiB);
    EXPECT_EQ(large.size(), 40 * kMiB);
  }
}

TEST(LargeBlocks, FreedMemoryIsUsedBeforeFresh) {
  memory::LargeBlockPool pages(kNoMemoryLimit, false);
  memory::Outcome outcome;
  const auto allocate = [&] { return pages.allocate(2048, memory::PageKind::kLarge, 0, outcome); };
  const auto free = [&](std::uint32_t page) {
    pages.close(page);
    pages.free_large(page, false);
  };
  std::deque<std::uint32_t> blocks;
  for (int i = 0; i < 258; ++i) blocks.push_back(allocate());  // a little more than 2 GiB
  const auto committed = [&] { return pages.range().committed(0, pages.range().bytes()); };
  const std::size_t most = committed();
  for (unsigned round = 0; round < 5000; ++round) {  // numbers that go up and down, first come, first freed
    const std::size_t live = 258 - (round * 2654435761u >> 16) % 200;
    for (; blocks.size() > live; blocks.pop_front()) free(blocks.front());
    while (blocks.size() < live) blocks.push_back(allocate());
  }
  EXPECT_EQ(committed(), most);
  for (const std::uint32_t page : blocks) free(page);
}

TEST(LargeBlocks, OnTheirWayBackAreNotMissing) {
  constexpr std::size_t kLimit = 64 * kMiB;
  HybridMemoryPool pool(with_limit(kLimit));
  std::atomic<bool> done{false};
  std::thread trims([&] {
    while (!done) pool.trim();
  });
  for (int round = 0; round < 300; ++round) {
    {
      std::vector<MemoryBlock> blocks;  // that wait for the next request of their size
      for (int i = 0; i < 6; ++i) blocks.emplace_back(pool, kMiB);
    }
    void* most = pool.try_allocate(kLimit - 2 * kMiB);
    EXPECT_NE(most, nullptr) << "round " << round;
    if (most == nullptr) break;
    pool.deallocate(most);
  }
  done = true;
  trims.join();
}

TEST(LargeBlocks, WaitForTheNextRequestOfTheirSizeAndAreFreeMeanwhile) {
  HybridMemoryPool pool(with_limit(64 * kMiB));
  void* first = pool.allocate(200000);
  pool.deallocate(first);
  EXPECT_EQ(pool.held(), 0u);
  EXPECT_GE(pool.stats().free_bytes, 200000u);
  EXPECT_GE(pool.stats().largest_free, 200000u);
  void* other = pool.allocate(300000);
  EXPECT_NE(other, first);
  void* again = pool.allocate(200000);
  EXPECT_EQ(again, first);
  EXPECT_EQ(pool.held(), 49 * 4096u + 74 * 4096u);
  pool.deallocate(again);
  pool.deallocate(other);
  std::vector<MemoryBlock> blocks;
  for (std::size_t i = 0; i < 300; ++i) blocks.emplace_back(pool, 66000 + i % 5 * 4096);
  blocks.clear();
  EXPECT_EQ(pool.held(), 0u);
  EXPECT_EQ(pool.stats().used, 0u);
  const MemoryBlock all(pool, 64 * kMiB);  // whatever waits is no reason for a refusal
  EXPECT_EQ(pool.held(), 64 * kMiB);
}

TEST(LargeBlocks, ThatWaitAreBounded) {
  constexpr std::size_t kBound = 32 * kMiB;
  memory::LargeBlockPool pages(kNoMemoryLimit, false);
  memory::LargeBlockCache cache(pages, nullptr, kBound, kNoMemoryLimit);
  std::vector<std::uint32_t> blocks;
  memory::Outcome outcome;
  for (std::uint32_t i = 0; i < 1500; ++i) blocks.push_back(cache.allocate(1 + i * 7 % 600, 1, outcome));
  std::size_t most = 0;
  for (const std::uint32_t page : blocks) {
    ASSERT_TRUE(cache.free(page));
    ASSERT_FALSE(cache.free(page));
    most = std::max(most, cache.waiting());
  }
  EXPECT_LE(most, kBound);
  EXPECT_GT(most, kBound / 4);
  const std::size_t waited = cache.waiting();
  EXPECT_EQ(pages.held(), waited);
  EXPECT_TRUE(cache.flush());
  EXPECT_FALSE(cache.flush());
  EXPECT_EQ(pages.held(), 0u);
}

TEST(LargeBlocks, PassBetweenThreadsBesideTrimsAndCounts) {
  HybridMemoryPool pool(with_limit(256 * kMiB));
  constexpr int kBlocks = 4000;
  std::array<std::atomic<unsigned char*>, 32> places{};
  std::atomic<bool> done{false};
  const auto bytes_of = [](int i) { return std::size_t{66000} + static_cast<std::size_t>(i % 3) * 500000; };
  std::thread frees([&] {
    for (int i = 0; i < kBlocks; ++i) {
      unsigned char* p = nullptr;
      while ((p = places[static_cast<std::size_t>(i) % 32].exchange(nullptr)) == nullptr)
        std::this_thread::yield();
      EXPECT_EQ(p[0], static_cast<unsigned char>(i));
      EXPECT_EQ(p[bytes_of(i) - 1], static_cast<unsigned char>(i));
      pool.deallocate(p);
    }
  });
  std::thread looks([&] {
    while (!done) {
      EXPECT_LE(pool.stats().held, 256 * kMiB);
      pool.trim();
      std::this_thread::yield();
    }
  });
  MemoryBlock own(pool, kMiB);
  for (int i = 0; i < kBlocks; ++i) {
    auto* p = static_cast<unsigned char*>(pool.allocate(bytes_of(i)));
    p[0] = p[bytes_of(i) - 1] = static_cast<unsigned char>(i);
    auto& place = places[static_cast<std::size_t>(i) % 32];
    for (unsigned char* empty = nullptr; !place.compare_exchange_strong(empty, p); empty = nullptr)
      std::this_thread::yield();
    if (i % 100 == 0) pool.discard(own.data(), own.size());
  }
  frees.join();
  done = true;
  looks.join();
  own.reset();
  pool.trim();
  EXPECT_EQ(pool.held(), 0u);
  const MemoryStats stats = pool.stats();
  EXPECT_EQ(stats.used, 0u);
  EXPECT_EQ(stats.allocations, kBlocks + 1u);
  EXPECT_EQ(stats.frees, kBlocks + 1u);
}

TEST(Pool, TablesGrowWithTheSizesThatAreUsed) {
  HybridMemoryPool pool(unchecked());
  const std::size_t none = pool.stats().small_bookkeeping;
  const MemoryBlock one(pool, 100);
  const std::size_t first = pool.stats().small_bookkeeping;
  EXPECT_GT(first, none);
  EXPECT_LT(first, none + 1024);
  EXPECT_EQ(pool.held(), 4096u);  // the first span of a size is a page
  std::vector<MemoryBlock> blocks;
  for (int i = 0; i < 20000; ++i) blocks.emplace_back(pool, 100);
  EXPECT_LT(pool.stats().small_bookkeeping * 100, pool.stats().used * 2);
}

TEST(Pool, CachesOfThreadsThatEndedServeThoseThatCome) {
  HybridMemoryPool pool(unchecked());
  std::size_t after_one = 0;
  for (int i = 0; i < 50; ++i) {
    std::thread([&] { const MemoryBlock block(pool, 100); }).join();
    if (i == 0) after_one = pool.stats().small_bookkeeping;
  }
  EXPECT_LE(pool.stats().small_bookkeeping, after_one);
  EXPECT_EQ(pool.stats().allocations, 50u);
  EXPECT_EQ(pool.stats().used, 0u);
}

TEST(Pool, ThreadsMayEndWhileAPoolDoes) {
  for (int round = 0; round < 200; ++round) {
    std::atomic<int> used{0};
    std::atomic<bool> go{false};
    std::vector<std::thread> threads;
    {
      HybridMemoryPool pool(with_limit(kMiB));
      for (int t = 0; t < 2; ++t)
        threads.emplace_back([&] {
          { const MemoryBlock block(pool, 100); }
          ++used;
          while (!go) std::this_thread::yield();
        });
      while (used < 2) std::this_thread::yield();
      go = true;
    }
    for (std::thread& thread : threads) thread.join();
  }
}

/// Locks all memory of the process, which the system then refuses to take back page by page.
class LockedMemory : public testing::Test {
 protected:
  void SetUp() override {
    if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0)
      GTEST_SKIP() << "this process may not lock its memory";
    alignas(4096) static char page[4096];
    page[0] = 1;
    if (madvise(page, sizeof page, MADV_DONTNEED) == 0) GTEST_SKIP() << "sanitizers lock nothing";
  }
  void TearDown() override { munlockall(); }
};

TEST_F(LockedMemory, IsZeroedAndTakenBackAllTheSame) {
  MemoryPoolOptions options = unchecked();
  options.release_from = kMiB;
  HybridMemoryPool pool(options);
  const auto all_zero = [](const unsigned char* p, std::size_t n) {
    return std::all_of(p, p + n, [](unsigned char c) { return c == 0; });
  };
  const std::size_t bytes = 4 * kMiB;
  for (int round = 0; round < 3; ++round) {
    auto* p = static_cast<unsigned char*>(pool.allocate_zeroed(bytes));
    ASSERT_TRUE(all_zero(p, bytes));
    std::memset(p, 1, bytes);
    EXPECT_EQ(pool.discard(p, kMiB), 0u);
    EXPECT_TRUE(all_zero(p, kMiB));
    pool.deallocate(p);
    EXPECT_EQ(pool.trim().offered, 0u);
  }
  std::vector<void*> first;
  for (int i = 0; i < 50; ++i) first.push_back(pool.allocate((1 + static_cast<std::size_t>(i) % 7) * 65537));
  pool.reset();
  std::vector<std::pair<char*, std::size_t>> blocks;
  for (std::size_t i = 0; i < 200; ++i) {
    const std::size_t n = 1000 + i * 7919 % 300000;
    blocks.emplace_back(static_cast<char*>(pool.allocate(n)), n);
    std::memset(blocks.back().first, static_cast<int>(i % 100), n);
  }
  for (std::size_t i = 0; i < blocks.size(); ++i) {  // none lies on another
    const auto [p, n] = blocks[i];
    ASSERT_TRUE(std::all_of(p, p + n, [&](char c) { return c == static_cast<char>(i % 100); })) << i;
  }
}

TEST(Pool, DiscardGivesWholePagesOfALiveBlockBack) {
  HybridMemoryPool pool(unchecked());
  MemoryBlock block(pool, 4 * kMiB);
  std::memset(block.data(), 1, block.size());
  auto* p = static_cast<std::byte*>(block.data());
  EXPECT_EQ(pool.discard(p + 100, 3 * kMiB), 3 * kMiB - 4096);
  EXPECT_EQ(p[99], std::byte{1});
  EXPECT_EQ(p[4095], std::byte{1});  // of a page that begins before
  EXPECT_EQ(p[4096], std::byte{0});
  EXPECT_EQ(p[3 * kMiB - 1], std::byte{0});
  EXPECT_EQ(p[3 * kMiB], std::byte{1});
  EXPECT_EQ(pool.discard(p, 4095), 0u);
  expect_error(ErrorCode::kInvalidArgument, {"one live block"}, [&] { pool.discard(p, 4 * kMiB + 1); });
  expect_error(ErrorCode::kInvalidArgument, {"one live block"}, [&] { pool.discard(p + 4 * kMiB, 4096); });
  MemoryBlock small(pool, 40960, 4096);
  std::memset(small.data(), 1, small.size());
  auto* q = static_cast<std::byte*>(small.data());
  EXPECT_EQ(pool.discard(q, 8192), 8192u);
  EXPECT_EQ(q[8191], std::byte{0});
  EXPECT_EQ(q[8192], std::byte{1});
  expect_error(ErrorCode::kInvalidArgument, {"one live block"}, [&] { pool.discard(q, 45056); });
  int local = 0;
  expect_error(ErrorCode::kInvalidArgument, {"not of this pool"}, [&] { pool.discard(&local, 4096); });
  expect_error(ErrorCode::kInvalidArgument, {"one live block"}, [&] { pool.discard(p, ~std::size_t{0}); });
}

TEST(Pool, LargeBlocksGoBackAtOnceWhereThatIsAsked) {
  MemoryPoolOptions options = unchecked();
  options.release_from = kMiB;
  HybridMemoryPool pool(options);
  {
    MemoryBlock large(pool, 32 * kMiB);
    std::memset(large.data(), 1, large.size());
  }
  EXPECT_LT(pool.trim().returned, kMiB);
}

TEST(Pool, TrimReturnsSmallBlocks) {
  HybridMemoryPool pool(unchecked());
  std::vector<MemoryBlock> blocks;
  for (int i = 0; i < 100000; ++i) {
    blocks.emplace_back(pool, 200);
    std::memset(blocks.back().data(), 1, 200);
  }
  blocks.clear();
  EXPECT_GE(pool.trim().returned, 100000 * 200u);
  EXPECT_EQ(pool.held(), 0u);
}

TEST(Pool, LargeBlocksTakePagesAndNotPowersOfTwo) {
  HybridMemoryPool pool(unchecked());
  const MemoryBlock block(pool, 33 * kMiB + 1);
  EXPECT_EQ(pool.held(), 33 * kMiB + 4096);
}

TEST(Pool, FreeNeighboursJoin) {
  HybridMemoryPool pool(with_limit(32 * kMiB));  // of 64 MiB of addresses
  for (int round = 0; round < 3; ++round) {
    std::vector<MemoryBlock> pieces;
    for (std::size_t i = 0; i < 96; ++i) pieces.emplace_back(pool, (i % 7 + 1) * 70000 / 2 + 65536);
    for (std::size_t i = 0; i < pieces.size(); i += 2) pieces[i].reset();
    for (std::size_t i = 1; i < pieces.size(); i += 2) pieces[i].reset();
    EXPECT_EQ(pool.held(), 0u);
    const MemoryBlock whole(pool, 32 * kMiB);
  }
}

TEST(SmallBlocks, ThreadCachesAreBounded) {
  constexpr std::size_t kThreshold = 64 * kKiB, kBound = 256 * kKiB;
  memory::LargeBlockPool pages(kNoMemoryLimit, false);
  memory::UseTotal total;
  memory::SmallBlockPool pool(pages, total, kThreshold, kBound);
  memory::ThreadCache& cache = *pool.cache();
  std::vector<std::pair<void*, unsigned>> blocks;
  for (unsigned c = 0; c < pool.n_classes(); ++c) {
    memory::Outcome outcome;
    for (std::size_t sum = 0; sum < 256 * kKiB; sum += pool.bytes_of(c))
      blocks.emplace_back(pool.allocate(cache, c, outcome), c);
  }
  for (const auto& [p, c] : blocks) pool.free(cache, p, c);
  std::size_t spare = 0;
  for (unsigned c = 0; c < pool.n_classes(); ++c) {
    const memory::Bin& bin = cache.bin(c);
    EXPECT_LE(bin.count * pool.bytes_of(c), std::max<std::size_t>(16 * kKiB, 4 * pool.bytes_of(c)));
    if (bin.spare != nullptr) spare += bin.batch * pool.bytes_of(c);
  }
  EXPECT_EQ(cache.spare_bytes, spare);
  EXPECT_LE(spare, kBound);
  EXPECT_GT(spare, kBound / 2);
  pool.reclaim(true);
  EXPECT_EQ(pages.held(), 0u);
}

TEST(Pool, BlocksMayBeFreedOnOtherThreadsAndThreadsMayEnd) {
  HybridMemoryPool pool(unchecked());
  std::vector<std::vector<MemoryBlock>> made(4);
  std::vector<std::thread> makers;
  for (std::size_t t = 0; t < made.size(); ++t) {
    makers.emplace_back([&, t] {
      for (std::size_t i = 0; i < 3000; ++i) {
        made[t].emplace_back(pool, 1 + i * 37 % 70000);
        std::memset(made[t].back().data(), static_cast<int>(t + 1), made[t].back().size());
      }
    });
  }
  for (std::thread& thread : makers) thread.join();
  std::vector<std::thread> enders;
  for (std::size_t t = 0; t < made.size(); ++t) {
    enders.emplace_back([&, t] {
      for (const MemoryBlock& block : made[(t + 1) % 4]) {
        const auto bytes = block.bytes();
        ASSERT_EQ(bytes.front(), static_cast<std::byte>((t + 1) % 4 + 1));
        ASSERT_EQ(bytes.back(), static_cast<std::byte>((t + 1) % 4 + 1));
      }
      made[(t + 1) % 4].clear();
    });
  }
  for (std::thread& thread : enders) thread.join();
  EXPECT_EQ(pool.stats().used, 0u);
  EXPECT_EQ(pool.stats().allocations, 12000u);
  pool.trim();
  EXPECT_EQ(pool.held(), 0u);  // the caches of threads that ended are empty
}

TEST(Pool, AThreadMayOutliveAPool) {
  HybridMemoryPool lasting(unchecked());
  std::thread thread([&] {
    for (int i = 0; i < 50; ++i) {
      HybridMemoryPool passing(unchecked());
      const MemoryBlock a(passing, 100), b(lasting, 100);
    }
  });
  thread.join();
  EXPECT_EQ(lasting.stats().used, 0u);
  EXPECT_EQ(lasting.stats().allocations, 50u);
}

/// Lives until its thread ends, beyond the thread's cache.
struct EndsWithThread {
  HybridMemoryPool* pool = nullptr;
  MemoryBlock block;
  ~EndsWithThread() {
    if (pool == nullptr) return;
    block.reset();
    const MemoryBlock last(*pool, 50);
  }
};

TEST(Pool, AThreadThatEndsMayStillAllocateAndFree) {
  HybridMemoryPool pool(unchecked());
  std::thread thread([&] {
    thread_local EndsWithThread last;  // made before the cache, hence ends after it
    last.pool = &pool;
    last.block = MemoryBlock(pool, 100);
  });
  thread.join();
  EXPECT_EQ(pool.stats().used, 0u);
  EXPECT_EQ(pool.stats().allocations, 2u);
}

TEST(Pool, ResetTakesEverythingBackAndHandlesKnow) {
  HybridMemoryPool pool(unchecked());
  MemoryBlock small(pool, 100), large(pool, kMiB);
  MemoryArray<int> array(pool, 10);
  void* raw = pool.allocate(300);
  pool.reset();
  EXPECT_EQ(pool.stats().used, 0u);
  EXPECT_EQ(pool.held(), 0u);
  EXPECT_FALSE(small);
  const auto invalid = ErrorCode::kInvalidArgument;
  expect_error(invalid, {"stale", "before reset 1 of 'test'"}, [&] { small.data(); });
  expect_error(invalid, {"stale"}, [&] { large.bytes(); });
  expect_error(invalid, {"stale"}, [&] { array[0] = 1; });
  expect_error(invalid, {"'test'"}, [&] { pool.deallocate(raw); });
  large.reset();
  const MemoryBlock again(pool, kMiB);
  std::memset(again.data(), 1, kMiB);
  std::vector<MemoryBlock> many;
  for (int i = 0; i < 1000; ++i) many.emplace_back(pool, 100);
}

}  // namespace
}  // namespace bitnet
