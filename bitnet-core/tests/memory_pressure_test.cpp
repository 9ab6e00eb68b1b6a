// Levels of memory pressure from pools, control groups and stalls, told by files made here; when callbacks
// run.
#include "bitnet/core/memory/memory_pressure.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "bitnet/core/cgroup.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/log.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/memory/memory_handle.hpp"

namespace bitnet {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr std::size_t kMiB = std::size_t{1} << 20;

class Pressure : public testing::Test {
 protected:
  Pressure() {
    fs::remove_all(root_);
    fs::create_directories(root_ / "proc/pressure");
    fs::create_directories(root_ / "sys/fs/cgroup/group");
    write("proc/self/cgroup", "0::/group\n");
    options_.root = root_;
  }
  ~Pressure() override { fs::remove_all(root_); }

  void write(const std::string& file, const std::string& text) const {
    fs::create_directories((root_ / file).parent_path());
    std::ofstream(root_ / file) << text;
  }
  void stall(double percent) const {
    write("proc/pressure/memory", "some avg10=" + std::to_string(percent) +
                                      " avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00\n");
  }
  void group_use(std::size_t used, std::size_t limit) const {
    write("sys/fs/cgroup/group/memory.max", std::to_string(limit) + "\n");
    write("sys/fs/cgroup/group/memory.current", std::to_string(used) + "\n");
  }

  fs::path root_ = fs::path(testing::TempDir()) /
                   (std::string("pressure_") + testing::UnitTest::GetInstance()->current_test_info()->name());
  PressureOptions options_;
};

void record_into(PressureMonitor& monitor, std::vector<std::string>& said) {
  monitor.subscribe([&](MemoryPressure before, MemoryPressure now, std::string_view reason) {
    said.push_back(std::string(to_string(before)) + " > " + std::string(to_string(now)) + ": " +
                   std::string(reason));
  });
}

TEST_F(Pressure, NothingToReadIsNoPressure) {
  options_.root = root_ / "none";
  PressureMonitor monitor(options_);
  EXPECT_EQ(monitor.poll(), MemoryPressure::kNone);
  write("proc/pressure/memory", "some avg10=abc\n");
  options_.root = root_;
  EXPECT_EQ(PressureMonitor(options_).poll(), MemoryPressure::kNone);
}

TEST_F(Pressure, StallsRaiseAtOnceAndFallLate) {
  PressureMonitor monitor(options_);
  std::vector<std::string> said;
  record_into(monitor, said);
  const auto reads = [&](double percent) {
    stall(percent);
    return monitor.poll();
  };
  EXPECT_EQ(reads(4.9), MemoryPressure::kNone);
  EXPECT_EQ(reads(5), MemoryPressure::kLow);
  EXPECT_EQ(reads(50), MemoryPressure::kCritical);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(reads(39), MemoryPressure::kCritical);  // within the hysteresis
  EXPECT_EQ(reads(30), MemoryPressure::kCritical);
  EXPECT_EQ(reads(30), MemoryPressure::kCritical);
  EXPECT_EQ(reads(39), MemoryPressure::kCritical);  // the calm begins anew
  EXPECT_EQ(reads(30), MemoryPressure::kCritical);
  EXPECT_EQ(reads(30), MemoryPressure::kCritical);
  EXPECT_EQ(reads(30), MemoryPressure::kHigh);
  for (int i = 0; i < 3; ++i) reads(0);
  EXPECT_EQ(monitor.level(), MemoryPressure::kNone);
  EXPECT_THAT(said, ElementsAre("none > low: tasks wait for memory 5.0 % of the time",
                                "low > critical: tasks wait for memory 50.0 % of the time",
                                "critical > high: tasks wait for memory 30.0 % of the time",
                                "high > none: nothing is near its limit"));
}

TEST_F(Pressure, TheControlGroupsLimitCounts) {
  PressureMonitor monitor(options_);
  group_use(60, 100);
  EXPECT_EQ(monitor.poll(), MemoryPressure::kNone);
  group_use(86, 100);
  EXPECT_EQ(monitor.poll(), MemoryPressure::kHigh);
  write("sys/fs/cgroup/group/memory.stat", "inactive_file 40\n");  // page cache is not use
  for (int i = 0; i < 3; ++i) monitor.poll();
  EXPECT_EQ(monitor.level(), MemoryPressure::kNone);
}

TEST_F(Pressure, TheFullestOfNestedGroupsCountsNotTheOneWithTheLeastRoom) {
  PressureMonitor monitor(options_);
  write("proc/self/cgroup", "0::/outer/inner\n");
  const auto group = [&](const std::string& name, int used, int limit) {
    write("sys/fs/cgroup/" + name + "/memory.max", std::to_string(limit) + "\n");
    write("sys/fs/cgroup/" + name + "/memory.current", std::to_string(used) + "\n");
  };
  group("outer", 6100, 6400);  // 95 %, 300 left
  group("outer/inner", 200, 400);
  const CgroupLimits limits = cgroup_limits(options_.root);
  EXPECT_EQ(limits.memory_headroom, 200u);
  EXPECT_EQ(limits.memory_limit, 400u);
  ASSERT_TRUE(limits.memory_used);
  EXPECT_NEAR(*limits.memory_used, 0.953, 0.001);
  EXPECT_EQ(monitor.poll(), MemoryPressure::kCritical);
  group("outer", 3000, 6400);
  for (int i = 0; i < 3; ++i) monitor.poll();
  EXPECT_EQ(monitor.level(), MemoryPressure::kNone);
}

/// Counts how often it is trimmed.
class TrimmedResource final : public MemoryResource {
 public:
  void* allocate(std::size_t, std::size_t, MemoryTag) override { return nullptr; }
  void* try_allocate(std::size_t, std::size_t, MemoryTag) override { return nullptr; }
  void deallocate(void*) override {}
  std::string_view name() const noexcept override { return "trimmed"; }
  MemoryStats stats() const override { return now; }
  TrimReport trim() override {
    ++trims;
    return {};
  }
  MemoryStats now;
  int trims = 0;
};

TEST_F(Pressure, WhatFreedNothingSinceIsNotTrimmedAgain) {
  TrimmedResource resource;
  resource.now.limit = 100;
  resource.now.held = 99;
  PressureMonitor monitor(options_);
  monitor.watch(resource);
  for (int i = 0; i < 5; ++i) monitor.poll();
  EXPECT_EQ(resource.trims, 1);
  resource.now.frees = 3;
  for (int i = 0; i < 5; ++i) monitor.poll();
  EXPECT_EQ(resource.trims, 2);
  monitor.forget(resource);
}

TEST_F(Pressure, StartsAndStopsFromSeveralThreads) {
  PressureMonitor monitor(options_);
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) {
        monitor.start(std::chrono::milliseconds(1));
        monitor.stop();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(Pressure, APoolsLimitCountsAndHighPressureTrims) {
  MemoryPoolOptions pool_options;
  pool_options.name = "kv";
  pool_options.limit = 10 * kMiB;
  HybridMemoryPool pool(pool_options);
  PressureMonitor monitor(options_);
  monitor.watch(pool);
  std::vector<std::string> said;
  record_into(monitor, said);
  MemoryBlock most(pool, 5 * kMiB);
  EXPECT_EQ(monitor.poll(), MemoryPressure::kNone);
  {
    MemoryBlock more(pool, 4 * kMiB);
    std::memset(more.data(), 1, more.size());
  }
  MemoryBlock again(pool, 5 * kMiB - 65536);
  EXPECT_EQ(monitor.poll(), MemoryPressure::kCritical);
  ASSERT_EQ(said.size(), 1u);
  EXPECT_THAT(said[0], HasSubstr("pool 'kv' holds 99 % of its limit"));
  EXPECT_EQ(pool.stats().free_bytes, 0u);  // trimmed
  again.reset();
  for (int i = 0; i < 3; ++i) monitor.poll();
  EXPECT_EQ(monitor.level(), MemoryPressure::kNone);
  monitor.forget(pool);
}

TEST_F(Pressure, CallbacksCanGiveMemoryUp) {
  MemoryPoolOptions pool_options;
  pool_options.limit = 10 * kMiB;
  HybridMemoryPool pool(pool_options);
  PressureMonitor monitor(options_);
  monitor.watch(pool);
  MemoryBlock cache(pool, 9 * kMiB);
  monitor.subscribe([&](MemoryPressure, MemoryPressure now, std::string_view) {
    if (now >= MemoryPressure::kHigh) cache.reset();
  });
  EXPECT_EQ(monitor.poll(), MemoryPressure::kHigh);
  EXPECT_FALSE(cache);
  EXPECT_EQ(pool.held(), 0u);
}

TEST_F(Pressure, CallbacksMayUnsubscribePollAndThrow) {
  std::vector<std::string> logged;
  set_log_sink([&](LogLevel, std::string_view text) { logged.emplace_back(text); });
  PressureMonitor monitor(options_);
  int first = 0, second = 0;
  std::uint64_t id = 0;
  id = monitor.subscribe([&](MemoryPressure, MemoryPressure now, std::string_view) {
    ++first;
    EXPECT_EQ(monitor.poll(), now);
    monitor.unsubscribe(id);
    throw Error(ErrorCode::kIo, "no");
  });
  monitor.subscribe([&](MemoryPressure, MemoryPressure, std::string_view) { ++second; });
  stall(10);
  monitor.poll();
  stall(30);
  monitor.poll();
  set_log_sink({});
  EXPECT_EQ(first, 1);
  EXPECT_EQ(second, 2);
  ASSERT_EQ(logged.size(), 1u);
  EXPECT_THAT(logged[0], HasSubstr("callback"));
}

TEST_F(Pressure, AThreadOfItsOwnReads) {
  PressureMonitor monitor(options_);
  std::atomic<int> called{0};
  monitor.subscribe([&](MemoryPressure, MemoryPressure, std::string_view) { ++called; });
  stall(100);
  monitor.start(std::chrono::milliseconds(1));
  while (called == 0) std::this_thread::yield();
  monitor.stop();
  monitor.stop();
  EXPECT_EQ(monitor.level(), MemoryPressure::kCritical);
}

TEST_F(Pressure, RefusesOptionsThatMakeNoSense) {
  const auto refused = [](const PressureOptions& options) {
    try {
      PressureMonitor monitor(options);
    } catch (const Error& e) {
      return e.code() == ErrorCode::kInvalidArgument;
    }
    return false;
  };
  EXPECT_FALSE(refused(options_));
  PressureOptions bad = options_;
  bad.used = {0.9, 0.8, 0.95};
  EXPECT_TRUE(refused(bad));
  bad = options_;
  bad.stalled.low = 0;
  EXPECT_TRUE(refused(bad));
  bad = options_;
  bad.hysteresis = 1;
  EXPECT_TRUE(refused(bad));
  bad = options_;
  bad.calm_readings = -1;
  EXPECT_TRUE(refused(bad));
  PressureMonitor monitor(options_);
  EXPECT_THROW(monitor.start(std::chrono::milliseconds(0)), Error);
  EXPECT_THROW(monitor.start(std::chrono::milliseconds::max()), Error);
  EXPECT_THROW(monitor.start(std::chrono::hours(24) + std::chrono::milliseconds(1)), Error);
  monitor.start(std::chrono::hours(24));
  monitor.stop();
}

}  // namespace
}  // namespace bitnet
