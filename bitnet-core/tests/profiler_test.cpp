// Zones, the table and the trace, on events with times of the test's own. Which zones the ops of a backend
// make is backend_test.cpp's and, for a whole run, bitnet-cli's.
#include "bitnet/core/profiler.hpp"

#include <gtest/gtest-spi.h>

#include <thread>

#include "bitnet/testing/testing.hpp"
#include "bitnet/testing/trace.hpp"

namespace bitnet {
namespace {

using Clock = std::chrono::steady_clock;
using nlohmann::json;
using ::testing::HasSubstr;

/// Records zones at stated µs; inner ones end first, as scopes do.
struct ProfilerTest : ::testing::Test {
  Profiler profiler;
  Clock::time_point zero = Clock::now();
  void add(const char* name, int begin, int end, std::uint64_t bytes = 0, std::int64_t rows = 0) {
    profiler.record(name, zero + std::chrono::microseconds(begin), zero + std::chrono::microseconds(end),
                    bytes, rows);
  }
  const ProfileRow& row(const std::vector<ProfileRow>& rows, const std::string& name) {
    for (const ProfileRow& r : rows)
      if (r.name == name) return r;
    throw Error(ErrorCode::kNotFound, name);
  }
};

TEST_F(ProfilerTest, OwnTimeIsWithoutTheZonesInside) {
  add("linear", 10, 30, 4000);
  add("linear", 30, 40, 4000);  // begins where the one before ended
  add("norm", 45, 50);
  add("step", 10, 60);
  add("linear", 60, 70, 4000);  // outside
  const auto rows = profiler.summary();
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_EQ(rows[0].name, "linear");
  EXPECT_EQ(rows[0].calls, 3u);
  EXPECT_EQ(rows[0].bytes, 12000u);
  EXPECT_NEAR(rows[0].total_seconds, 40e-6, 1e-12);
  EXPECT_NEAR(rows[0].self_seconds, 40e-6, 1e-12);
  EXPECT_NEAR(row(rows, "step").total_seconds, 50e-6, 1e-12);
  EXPECT_NEAR(row(rows, "step").self_seconds, 15e-6, 1e-12);
  const std::string table = profiler.table();
  EXPECT_THAT(
      table,
      HasSubstr("linear                             3       0.040       0.040    66.7       13.33      0.3"));
  EXPECT_THAT(
      table,
      HasSubstr(
          "step                               1       0.050       0.015    25.0       50.00         \n"));
}

TEST_F(ProfilerTest, AZoneInsideItselfCountsOnce) {
  add("f", 20, 30);
  add("f", 10, 40);
  const auto rows = profiler.summary();
  EXPECT_EQ(rows[0].calls, 2u);
  EXPECT_NEAR(rows[0].self_seconds, 30e-6, 1e-12);
}

TEST_F(ProfilerTest, ThreadsDoNotNestInEachOther) {
  std::thread([&] { add("inner", 20, 30); }).join();
  add("outer", 10, 40);
  EXPECT_NEAR(row(profiler.summary(), "outer").self_seconds, 30e-6, 1e-12);
  const auto events = profiler.events();
  EXPECT_NE(events[0].thread, events[1].thread);
}

TEST_F(ProfilerTest, TheTraceIsTheFormatOfChrome) {
  add("linear", 10, 30, 4000, 2);
  add("step", 10, 60);
  const json trace = testing::expect_trace(profiler.chrome_trace("run \"x\""));
  EXPECT_EQ(trace["otherData"]["dropped"], 0);
  const json& events = trace["traceEvents"];
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events[0]["ph"], "M");
  EXPECT_EQ(events[0]["args"]["name"], "run \"x\"");
  EXPECT_EQ(events[1]["name"], "step");  // the outer one first
  EXPECT_EQ(events[2]["name"], "linear");
  EXPECT_EQ(events[2]["ph"], "X");
  EXPECT_EQ(events[2]["pid"], events[0]["pid"]);
  EXPECT_EQ(events[2]["tid"], events[1]["tid"]);
  EXPECT_NEAR(events[2]["dur"].get<double>(), 20, 1e-9);
  EXPECT_NEAR(events[2]["ts"].get<double>(), events[1]["ts"].get<double>(), 1e-9);
  EXPECT_EQ(events[2]["args"]["rows"], 2);
  EXPECT_EQ(events[2]["args"]["bytes"], 4000);
  EXPECT_NEAR(events[2]["args"]["GB/s"].get<double>(), 0.2, 1e-9);
  EXPECT_TRUE(events[1]["args"].empty());
}

TEST(Trace, TheCheckSeesWhatPerfettoRefuses) {
  Profiler profiler;
  const auto zero = Clock::now();
  const auto add = [&](int begin, int end) {
    profiler.record("z", zero + std::chrono::microseconds(begin), zero + std::chrono::microseconds(end), 0,
                    0);
  };
  add(10, 30);
  add(20, 40);  // no scopes make this
  EXPECT_NONFATAL_FAILURE(testing::expect_trace(profiler.chrome_trace("x")), "overlaps");
}

TEST(Profiler, AnEmptyOneHasATraceAndATable) {
  const Profiler profiler(1);
  EXPECT_EQ(testing::expect_trace(profiler.chrome_trace("x"))["traceEvents"].size(), 1u);
  EXPECT_TRUE(profiler.summary().empty());
  BITNET_EXPECT_ERROR(Profiler(0), ErrorCode::kInvalidArgument, "0 zones");
}

TEST(Profiler, TracesCarryOtherDataOfTheirWriter) {
  const Profiler profiler(2);
  std::string text;
  profiler.chrome_trace(
      "x", [&](std::string_view piece) { text += piece; }, "\"device\":{\"launches\":7}");
  const json trace = testing::expect_trace(text);
  EXPECT_EQ(trace["otherData"]["device"]["launches"], 7);
  EXPECT_EQ(trace["otherData"]["dropped"], 0);
}

TEST(Profiler, WhatDoesNotFitIsCounted) {
  Profiler profiler(2);
  for (int i = 0; i < 5; ++i) const ProfileZone zone(&profiler, "z");
  EXPECT_EQ(profiler.events().size(), 2u);
  EXPECT_EQ(profiler.dropped(), 3u);
  EXPECT_THAT(profiler.table(), HasSubstr("3 zones more were dropped: the buffer holds 2"));
  EXPECT_EQ(testing::expect_trace(profiler.chrome_trace("x"))["otherData"]["dropped"], 3);
  profiler.clear();
  EXPECT_EQ(profiler.events().size(), 0u);
}

TEST(Profiler, ZonesNestAsScopesDoOnManyThreads) {
  Profiler profiler;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 500; ++i) {
        const ProfileZone outer(&profiler, "outer", 7, 3);
        const ProfileZone inner(&profiler, "inner");
      }
    });
  for (std::thread& t : threads) t.join();
  const auto rows = profiler.summary();
  ASSERT_EQ(rows.size(), 2u);
  for (const ProfileRow& r : rows) {
    EXPECT_EQ(r.calls, 2000u);
    EXPECT_GE(r.self_seconds, -1e-12);
  }
  EXPECT_EQ(rows[0].bytes + rows[1].bytes, 14000u);
  EXPECT_EQ(testing::expect_trace(profiler.chrome_trace("threads"))["traceEvents"].size(), 4001u);
  const ProfileZone off(nullptr, "nothing");
}

}  // namespace
}  // namespace bitnet
