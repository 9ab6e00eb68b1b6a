// Handles of a pool's blocks, containers on a pool, and what a pool tells of its blocks: levels of tracking,
// reports, leaks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory_resource>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/core/log.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
#include "bitnet/core/memory/memory_report.hpp"
#include "memory/allocation_tracker.hpp"
#include "memory/sanitizer.hpp"
#include "memory_support.hpp"

namespace bitnet {
namespace {

using testing::HasSubstr;

TEST(Handles, MoveAndEnd) {
  HybridMemoryPool pool(unchecked());
  MemoryBlock a(pool, 100);
  void* p = a.data();
  MemoryBlock b = std::move(a);
  EXPECT_EQ(b.data(), p);
  expect_error(ErrorCode::kInvalidArgument, {"empty memory handle"}, [&] { a.data(); });
  b = MemoryBlock(pool, 200);
  EXPECT_EQ(b.size(), 200u);
  b.reset();
  EXPECT_FALSE(b);
  b.reset();
  EXPECT_EQ(pool.stats().used, 0u);
}

TEST(Handles, ArraysMakeAndDestroyTheirValues) {
  HybridMemoryPool pool(unchecked());
  const auto shared = std::make_shared<int>(7);
  {
    MemoryArray<std::shared_ptr<int>> array(pool, 100);
    for (auto& value : array.span()) {
      EXPECT_EQ(value, nullptr);
      value = shared;
    }
    MemoryArray<std::shared_ptr<int>> moved = std::move(array);
    EXPECT_EQ(shared.use_count(), 101);
    EXPECT_EQ(array.size(), 0u);
  }
  EXPECT_EQ(shared.use_count(), 1);
  EXPECT_EQ(MemoryArray<int>(pool, 0).data(), nullptr);
  struct alignas(256) Wide {
    char c;
  };
  const MemoryArray<Wide> wide(pool, 3);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(wide.data()) % 256, 0u);
}

TEST(Handles, ABlockThatIsFreedBehindAHandlesBackIsLogged) {
  std::vector<std::string> said;
  set_log_sink([&](LogLevel, std::string_view text) { said.emplace_back(text); });
  {
    HybridMemoryPool pool(unchecked());
    const MemoryBlock block(pool, 100);
    pool.deallocate(block.data());
  }
  set_log_sink({});
  ASSERT_EQ(said.size(), 1u);
  EXPECT_THAT(said[0], HasSubstr("free already"));
}

TEST(Handles, StandardContainersTakeAResource) {
  HybridMemoryPool pool(unchecked());
  PmrResource resource(pool, "vector");
  {
    std::pmr::vector<int> values(&resource);
    for (int i = 0; i < 100000; ++i) values.push_back(i);
    EXPECT_GE(pool.stats().used, 400000u);
  }
  EXPECT_EQ(pool.stats().used, 0u);
}

TEST(Handles, ContainersOutliveAResetAndDamage) {
  std::vector<std::string> said;
  set_log_sink([&](LogLevel, std::string_view text) { said.emplace_back(text); });
  HybridMemoryPool pool(checked_blocks());
  {
    PmrResource resource(pool);
    std::pmr::vector<char> old(100, 'x', &resource), other(&resource);
    pool.reset();
    expect_error(ErrorCode::kInvalidArgument, {"stale"}, [&] { other.resize(10); });
  }
  EXPECT_TRUE(said.empty());
  {
    PmrResource resource(pool);
    std::pmr::vector<char> damaged(100, 'x', &resource);
    memory::unpoison(damaged.data() + 100, 1);
    *(damaged.data() + 100) = 'y';
  }
  set_log_sink({});
  ASSERT_EQ(said.size(), 1u);
  EXPECT_THAT(said[0], HasSubstr("test"));
  pool.reset();
}

TEST(Tracking, LevelsKeepWhatTheySay) {
  for (int level = 0; level <= 3; ++level) {
    MemoryPoolOptions options = unchecked();
    options.tracking = static_cast<TrackingLevel>(level);
    HybridMemoryPool pool(options);
    MemoryBlock a(pool, 1000, 16, "kv"), b(pool, 100000, 16, "arena");
    { const MemoryBlock passing(pool, kMiB, 16, "arena"); }
    const MemoryStats stats = pool.stats();
    EXPECT_EQ(stats.used, 1024u + 102400u);
    EXPECT_EQ(stats.allocations, 3u);
    EXPECT_EQ(stats.small_asked + stats.large_asked, level == 0 ? 0 : 1000 + 100000 + kMiB);
    EXPECT_EQ(stats.small_given, 1024u);
    if (level >= 1) {
      EXPECT_GE(stats.peak_used, kMiB + 102400);
    }
    const auto tags = pool.tags();
    ASSERT_EQ(tags.size(), level >= 2 ? 2u : 0u);
    if (level >= 2) {
      EXPECT_EQ(tags[0].tag, "arena");
      EXPECT_EQ(tags[0].allocations, 2u);
      EXPECT_EQ(tags[0].used, 100000u);
      EXPECT_EQ(tags[0].peak, 100000u + kMiB);
      EXPECT_EQ(stats.peak_used, 1024 + 102400 + kMiB);
      EXPECT_FALSE(pool.timeline().empty());
    }
    const auto live = pool.live_blocks();
    ASSERT_EQ(live.size(), level >= 2 ? 2u : 0u);
    if (level >= 2) {
      EXPECT_EQ(live[0].address, b.data());
      EXPECT_EQ(live[0].bytes, 100000u);
      EXPECT_EQ(live[1].tag, "kv");
      EXPECT_EQ(live[0].stack.empty(), level < 3);
    }
  }
}

TEST(Tracking, ReportsNameTagsSizesAndWhatIsNotKept) {
  for (const auto level : {TrackingLevel::kNone, TrackingLevel::kBasic, TrackingLevel::kDetailed}) {
    MemoryPoolOptions options = unchecked();
    options.name = "<kv>";
    options.tracking = level;
    HybridMemoryPool pool(options);
    const MemoryBlock a(pool, 1000, 16, "pages & co"), b(pool, 100000, 16, "arena");
    const std::string text = memory_text(pool), page = memory_page(pool);
    EXPECT_THAT(text, HasSubstr("memory pool '<kv>'"));
    EXPECT_THAT(text, HasSubstr("1024"));
    EXPECT_THAT(text, HasSubstr("large"));
    EXPECT_THAT(page, HasSubstr("&lt;kv&gt;"));
    const bool detailed = level == TrackingLevel::kDetailed;
    EXPECT_EQ(text.find("pages & co") != text.npos, detailed);
    EXPECT_EQ(page.find("pages &amp; co") != page.npos, detailed);
    EXPECT_EQ(page.find("Memory over time") != page.npos, detailed);
    EXPECT_EQ(page.find("are kept from the level") != page.npos, !detailed);
    EXPECT_EQ(text.find("not kept") != text.npos, level == TrackingLevel::kNone);
  }
}

TEST(Tracking, TimelineIsThinnedAndStaysInOrder) {
  memory::AllocationTracker tracker(false, 1e-9);
  std::vector<char> blocks(5000);
  for (std::size_t i = 0; i < blocks.size(); ++i) tracker.add(&blocks[i], 100, "blocks", 100 * (i + 1));
  const auto samples = tracker.timeline();
  EXPECT_LE(samples.size(), 1024u);
  EXPECT_GE(samples.size(), 100u);  // how many, the clock decides
  EXPECT_TRUE(std::is_sorted(samples.begin(), samples.end(),
                             [](const auto& a, const auto& b) { return a.seconds < b.seconds; }));
  EXPECT_EQ(samples.front().allocations, 1u);
  EXPECT_GT(samples.back().allocations, 1024u);  // beyond what there is room for
  for (const MemorySample& sample : samples) EXPECT_EQ(sample.used, 100 * sample.allocations);
}

TEST(Tracking, NoTagIsTheUntaggedOne) {
  MemoryPoolOptions options = with_limit(kMiB);
  options.tracking = TrackingLevel::kStandard;
  HybridMemoryPool pool(options);
  const MemoryBlock block(pool, 100, 16, nullptr);
  ASSERT_EQ(pool.tags().size(), 1u);
  EXPECT_EQ(pool.tags()[0].tag, kUntagged);
  expect_error(ErrorCode::kOutOfMemory, {"(untagged)"}, [&] { MemoryBlock(pool, 2 * kMiB, 16, nullptr); });
}

TEST(Tracking, NamesOfLevels) {
  for (const auto level :
       {TrackingLevel::kNone, TrackingLevel::kBasic, TrackingLevel::kStandard, TrackingLevel::kDetailed})
    EXPECT_EQ(parse_tracking_level(to_string(level)), level);
  expect_error(ErrorCode::kInvalidArgument, {"'full'", "none, basic, standard, detailed"},
               [] { parse_tracking_level("full"); });
}

TEST(Tracking, LeaksAreReportedWithTheirTagWhenAPoolEnds) {
  std::vector<std::string> said;
  set_log_sink([&](LogLevel, std::string_view text) { said.emplace_back(text); });
  {
    MemoryPoolOptions options = with_limit(kMiB);
    options.tracking = TrackingLevel::kDetailed;
    HybridMemoryPool pool(options);
    auto* lost = static_cast<char*>(pool.allocate(1000, 16, "lost pages"));
    lost[0] = 1;
  }
  set_log_sink({});
  ASSERT_EQ(said.size(), 1u);
  EXPECT_THAT(said[0], HasSubstr("'lost pages': 1000 bytes"));
  EXPECT_THAT(said[0], testing::ContainsRegex("\n  1000 bytes of 'lost pages', asked for at [0-9.]+ s by ."));
}

}  // namespace
}  // namespace bitnet
