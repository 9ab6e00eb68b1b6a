// Recovery rules under injected faults: an allocator that refuses, a device that fails, a file that is torn.
// Each run must end with everything done. A real OpenCL queue that fails is bitnet-gpu/tests.
#include "bitnet/core/recovery.hpp"

#include <cstring>
#include <numeric>
#include <set>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// Memory of a fixed size, part of which a cache may hold; refuses what does not fit.
struct SmallMemory {
  std::int64_t free = 0, cached = 0;
  int refusals = 0;
  void take(std::int64_t n) {
    if (n > free) {
      ++refusals;
      throw std::bad_alloc();
    }
  }
  std::size_t drop_cache() {
    free += cached;
    return static_cast<std::size_t>(std::exchange(cached, 0));
  }
};

TEST(Retry, WaitsLongerEachTimeWithJitter) {
  std::vector<double> delays;
  RetryOptions options;
  options.limit = 5;
  options.first_delay = 1;
  options.longest_delay = 5;
  options.jitter = 0.5;
  options.seed = 3;
  options.sleep = [&](double s) { delays.push_back(s); };
  int calls = 0;
  Recovery recovery({retry(options)});
  EXPECT_TRUE(recovery.run("reading", [&] {
    if (++calls < 6) throw Error(ErrorCode::kIo, "torn");
  }));
  EXPECT_EQ(calls, 6);
  EXPECT_EQ(recovery.times("retry"), 5);
  const double whole[] = {1, 2, 4, 5, 5};
  ASSERT_EQ(delays.size(), 5u);
  std::set<double> shares;
  for (std::size_t i = 0; i < 5; ++i) {
    EXPECT_LE(delays[i], whole[i]);
    EXPECT_GE(delays[i], whole[i] / 2);
    shares.insert(delays[i] / whole[i]);
  }
  EXPECT_EQ(shares.size(), 5u);
  // The limit is that of one run: the next one has its own.
  calls = 2;
  EXPECT_TRUE(recovery.run("reading", [&] {
    if (++calls < 6) throw Error(ErrorCode::kIo, "torn");
  }));
}

TEST(Retry, RulesWaitDifferentlyUnlessTheySayWhichSeed) {
  std::vector<double> delays;
  RetryOptions options;
  options.jitter = 1;
  options.sleep = [&](double s) { delays.push_back(s); };
  const auto first_delay = [&](RecoveryRule rule) {
    int calls = 0;
    Recovery recovery({std::move(rule)});
    EXPECT_TRUE(recovery.run("x", [&] {
      if (++calls == 1) throw Error(ErrorCode::kIo, "torn");
    }));
    return delays.back();
  };
  EXPECT_NE(first_delay(retry(options)), first_delay(retry(options)));
  options.seed = 7;
  const RecoveryRule rule = retry(options);
  const double delay = first_delay(rule);
  EXPECT_EQ(first_delay(rule), delay);  // a copy has its own generator
  EXPECT_EQ(first_delay(retry(options)), delay);
}

TEST(RetryIo, TriesReadsAndWritesAgainAndNothingElse) {
  int calls = 0;
  const auto failing = [&](int n, ErrorCode code) {
    calls = 0;
    return [&calls, n, code] {
      if (++calls <= n) throw Error(code, "the cable is loose");
    };
  };
  retry_io("writing 'x'", failing(2, ErrorCode::kIo));
  EXPECT_EQ(calls, 3);
  BITNET_EXPECT_ERROR(retry_io("writing 'x'", failing(9, ErrorCode::kIo)), ErrorCode::kIo,
                      "writing 'x' (after retry × 3): the cable is loose");
  EXPECT_EQ(calls, 4);
  for (const ErrorCode code : {ErrorCode::kNotFound, ErrorCode::kOutOfMemory, ErrorCode::kCancelled}) {
    try {
      retry_io("writing 'x'", failing(1, code));
      FAIL();
    } catch (const Error& e) {
      EXPECT_STREQ(e.what(), "the cable is loose");
    }
    EXPECT_EQ(calls, 1);
  }
}

TEST(Retry, GivesUpWithTheWholeStory) {
  RetryOptions options;
  options.sleep = [](double) {};
  Recovery recovery({retry(options)});
  BITNET_EXPECT_ERROR((void)recovery.run("reading 'x'", [] { throw Error(ErrorCode::kIo, "torn"); }),
                      ErrorCode::kIo, "reading 'x' (after retry × 3): torn");
  int calls = 0;
  const auto fails_with = [&](ErrorCode code) {
    return [&calls, code] {
      ++calls;
      throw Error(code, "no");
    };
  };
  // Neither what was asked for, nor a bug, nor what stays wrong is tried again.
  for (const ErrorCode code : {ErrorCode::kCancelled, ErrorCode::kInternal, ErrorCode::kInvalidArgument}) {
    calls = 0;
    BITNET_EXPECT_ERROR((void)recovery.run("x", fails_with(code)), code, "x: no");
    EXPECT_EQ(calls, 1);
  }
  options.jitter = 2;
  BITNET_EXPECT_ERROR(retry(options), ErrorCode::kInvalidArgument, "jitter 2");
  options.jitter = 0;
  options.longest_delay = 1e300;
  BITNET_EXPECT_ERROR(retry(options), ErrorCode::kInvalidArgument, "none longer than a day");
}

TEST(Shrink, AFailingAllocatorLosesNoItem) {
  std::vector<int> items(37), done;
  std::iota(items.begin(), items.end(), 0);
  SmallMemory memory{.free = 5};
  std::int64_t batch = 16;
  Recovery recovery({shrink(batch)});
  while (done.size() < items.size()) {
    EXPECT_TRUE(recovery.run("a batch", [&] {
      const auto n = std::min<std::size_t>(static_cast<std::size_t>(batch), items.size() - done.size());
      memory.take(static_cast<std::int64_t>(n));
      for (std::size_t i = 0; i < n; ++i) done.push_back(items[done.size()]);
    }));
  }
  EXPECT_EQ(done, items);
  EXPECT_EQ(batch, 4);
  EXPECT_EQ(memory.refusals, 2);  // 16 and 8
  EXPECT_EQ(recovery.times("shrink"), 2);
  memory.free = 0;
  BITNET_EXPECT_ERROR((void)recovery.run("a batch", [&] { memory.take(batch); }), ErrorCode::kOutOfMemory,
                      "a batch (after shrink × 2): out of memory");
  BITNET_EXPECT_ERROR(shrink(batch, 0), ErrorCode::kInvalidArgument, "down to 0");
}

TEST(DropCaches, ComesBeforeShrinkingWhenItIsNamedFirst) {
  SmallMemory memory{.free = 1, .cached = 4};
  std::int64_t batch = 4;
  std::vector<std::string> notes;
  ErrorMonitor monitor;
  Recovery recovery({drop_caches([&] { return memory.drop_cache(); }), shrink(batch)}, &monitor,
                    [&](const std::string& note) { notes.push_back(note); });
  EXPECT_TRUE(recovery.run("a step", [&] { memory.take(batch); }));
  EXPECT_EQ(batch, 4);
  EXPECT_THAT(notes, ElementsAre("a step: drop caches (1): out of memory"));
  batch = 10;
  EXPECT_TRUE(recovery.run("a step", [&] { memory.take(batch); }));  // nothing is cached any more
  EXPECT_EQ(batch, 5);
  EXPECT_EQ(monitor.count(ErrorCode::kOutOfMemory), 2u);
}

TEST(DropCaches, AFullPoolGivesUpItsCacheThenTheBatchShrinksAndNoItemIsLost) {
  constexpr std::size_t kItem = std::size_t{200} << 10;
  HybridMemoryPool pool({.name = "steps", .limit = std::size_t{5} << 20});
  std::vector<MemoryBlock> cache;
  for (int i = 0; i < 10; ++i) cache.emplace_back(pool, kItem);
  const auto drop = [&] {
    const std::size_t bytes = cache.size() * kItem;
    cache.clear();
    pool.trim();
    return bytes;
  };
  std::vector<int> items(50), done;
  std::iota(items.begin(), items.end(), 0);
  std::int64_t batch = 32;  // 6.3 MiB: never fits; 16 do without the cache
  std::vector<std::string> notes;
  Recovery recovery({drop_caches(drop), shrink(batch)}, nullptr,
                    [&](const std::string& note) { notes.push_back(note); });
  while (done.size() < items.size()) {
    EXPECT_TRUE(recovery.run("a step", [&] {
      const auto n = std::min(static_cast<std::size_t>(batch), items.size() - done.size());
      const MemoryBlock temporary(pool, n * kItem);
      done.insert(done.end(), items.begin() + static_cast<std::ptrdiff_t>(done.size()),
                  items.begin() + static_cast<std::ptrdiff_t>(done.size() + n));
    }));
  }
  EXPECT_EQ(done, items);
  EXPECT_EQ(batch, 16);
  EXPECT_TRUE(cache.empty());
  EXPECT_THAT(notes, ElementsAre(HasSubstr("drop caches (1): "), HasSubstr("shrink (1): ")));
}

TEST(FallBack, GoesThroughTheDevicesThereAre) {
  std::vector<std::string> devices{"gpu0", "gpu1", "cpu"}, done;
  std::size_t at = 0;
  const auto work = [&] {
    if (devices[at] == "gpu0") throw Error(ErrorCode::kDevice, "queue lost");
    if (devices[at] == "gpu1") throw Error(ErrorCode::kUnsupported, "no fp16");
    done.push_back(devices[at]);
  };
  const auto next = [&](const Error&) { return ++at < devices.size(); };
  Recovery recovery({fall_back(next)});
  EXPECT_TRUE(recovery.run("a step", work));
  EXPECT_THAT(done, ElementsAre("cpu"));
  devices = {"gpu0"};
  at = 0;
  BITNET_EXPECT_ERROR((void)recovery.run("a step", work), ErrorCode::kDevice, "a step: queue lost");
}

TEST(Skip, LeavesBadItemsOutUpToALimit) {
  std::vector<int> done;
  std::vector<std::string> skipped;
  RetryOptions quick;
  quick.limit = 1;
  quick.sleep = [](double) {};
  Recovery recovery({retry(quick), skip_item([&](const Error& e) { skipped.push_back(e.what()); }, 2)});
  const auto item = [&](int i) {
    return recovery.run("item " + std::to_string(i), [&] {
      if (i % 3 == 0) throw Error(ErrorCode::kIo, "item " + std::to_string(i) + " is torn");
      done.push_back(i);
    });
  };
  for (int i = 1; i < 9; ++i) EXPECT_EQ(item(i), i % 3 != 0);
  EXPECT_THAT(done, ElementsAre(1, 2, 4, 5, 7, 8));
  EXPECT_THAT(skipped, ElementsAre("item 3 is torn", "item 6 is torn"));
  EXPECT_EQ(recovery.times("retry"), 2);
  BITNET_EXPECT_ERROR(item(9), ErrorCode::kIo, "item 9 (after retry × 1): item 9 is torn");
}

// A file that somebody else is still writing: the reader refuses what is torn, and the retry finds it whole.
TEST(TornFile, IsReadWhenItIsWhole) {
  const testing::TempDir dir;
  const std::vector<float> values{1, 2, 3, 4};
  SafeTensorsWriter writer(dir / "whole.safetensors", {{"w", SafeDType::kF32, {2, 2}}});
  writer.write("w", std::as_bytes(std::span(values)));
  writer.finish();
  const std::string whole = read_file(dir / "whole.safetensors");
  std::size_t written = whole.size() / 3;
  const auto write_more = [&](double) {
    written = std::min(whole.size(), written + whole.size() / 3 + 1);
    write_file(dir / "torn.safetensors", whole.substr(0, written));
  };
  write_more(0);
  RetryOptions options;
  options.applies = [](const Error& e) { return e.code() == ErrorCode::kCorruptFile; };
  options.sleep = write_more;
  Recovery recovery({retry(options)});
  std::vector<float> read(4);
  EXPECT_TRUE(recovery.run("loading", [&] {
    const auto file = SafeTensors::open(dir / "torn.safetensors");
    std::memcpy(read.data(), file->data(*file->find("w")).data(), 16);
  }));
  EXPECT_EQ(read, values);
  EXPECT_GE(recovery.times("retry"), 1);
}

TEST(Recovery, NotesManyEqualFaultsAsOneReport) {
  std::vector<std::string> notes, reports;
  ErrorMonitor monitor({.report = [&](const std::string& line) { reports.push_back(line); }});
  RetryOptions quick;
  quick.sleep = [](double) {};
  std::int64_t batch = 8;
  Recovery recovery({shrink(batch), retry(quick)}, &monitor,
                    [&](const std::string& note) { notes.push_back(note); });
  int done = 0;
  for (int i = 0; i < 20; ++i) {
    bool failed = false;
    EXPECT_TRUE(recovery.run("item " + std::to_string(i), [&] {
      if (!std::exchange(failed, true)) throw Error(ErrorCode::kIo, "the disk is slow");
      ++done;
    }));
  }
  EXPECT_EQ(done, 20);
  EXPECT_THAT(notes,
              ElementsAre("item 0: retry (1): the disk is slow", "item 1: retry (1): the disk is slow"));
  EXPECT_THAT(reports, ElementsAre(HasSubstr("3 times within")));
  monitor.flush();
  EXPECT_THAT(reports, ElementsAre(HasSubstr("3 times"), HasSubstr("20 times")));
  // A step after which something is different is always noted; the Error once the monitor reports is not.
  SmallMemory memory{.free = 1};
  notes.clear();
  EXPECT_TRUE(recovery.run("a step", [&] { memory.take(batch); }));
  EXPECT_THAT(notes, ElementsAre(HasSubstr("a step: shrink (1): "), HasSubstr("a step: shrink (2): "),
                                 "a step: shrink (3)"));
}

TEST(Recovery, RefusesARuleThatDoesNothing) {
  BITNET_EXPECT_ERROR(Recovery({RecoveryRule{.name = "empty"}}), ErrorCode::kInvalidArgument, "'empty'");
}

}  // namespace
}  // namespace bitnet
