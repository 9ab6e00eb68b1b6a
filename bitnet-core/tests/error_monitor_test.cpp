// The error monitor on a clock of the test's own: one report of many that are the same.
#include "bitnet/core/error_monitor.hpp"

#include <thread>

#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct MonitorTest : ::testing::Test {
  double now = 0;
  std::vector<std::string> lines;

  ErrorMonitor::Options options(std::uint64_t threshold = 3) {
    return {.threshold = threshold,
            .window_seconds = 10,
            .report = [this](const std::string& line) { lines.push_back(line); },
            .clock = [this] { return now; }};
  }
  static Error at_line(unsigned line, ErrorCode code = ErrorCode::kIo) {
    return {code, "disk " + std::to_string(line), {"src/io/reader.cpp", "read", line}};
  }
};

TEST_F(MonitorTest, ReportsTheSamePlaceOnce) {
  ErrorMonitor monitor(options());
  EXPECT_TRUE(monitor.record(at_line(7)));
  EXPECT_TRUE(monitor.record(at_line(7)));
  EXPECT_TRUE(lines.empty());
  now = 2;
  EXPECT_FALSE(monitor.record(at_line(7)));
  EXPECT_THAT(lines, ElementsAre(AllOf(HasSubstr("3 times within 2 s"), HasSubstr("reader.cpp:7"),
                                       HasSubstr("input/output error: disk 7"))));
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(monitor.record(at_line(7)));
  EXPECT_EQ(lines.size(), 1u);
  monitor.flush();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[1], HasSubstr("103 times"));
  monitor.flush();
  EXPECT_EQ(lines.size(), 2u);
}

TEST_F(MonitorTest, OtherPlacesCodesAndWindowsAreOthers) {
  ErrorMonitor monitor(options(2));
  EXPECT_TRUE(monitor.record(at_line(1)));
  EXPECT_TRUE(monitor.record(at_line(2)));
  EXPECT_TRUE(monitor.record(at_line(1, ErrorCode::kDevice)));
  now = 11;  // line 1's window has passed
  EXPECT_TRUE(monitor.record(at_line(1)));
  EXPECT_TRUE(lines.empty());
  EXPECT_FALSE(monitor.record(at_line(1)));
  EXPECT_FALSE(monitor.record(at_line(1)));
  now = 30;
  EXPECT_TRUE(monitor.record(at_line(1)));  // ends the window, whose number is told
  EXPECT_THAT(lines, ElementsAre(HasSubstr("2 times"), HasSubstr("3 times")));
  EXPECT_EQ(monitor.count(ErrorCode::kIo), 6u);
  EXPECT_EQ(monitor.count(ErrorCode::kDevice), 1u);
  EXPECT_EQ(monitor.total(), 7u);
  const auto patterns = monitor.patterns();
  ASSERT_EQ(patterns.size(), 3u);
  EXPECT_EQ(patterns[0].count, 5u);
  EXPECT_EQ(patterns[0].in_window, 1u);
  EXPECT_EQ(patterns[0].place, "reader.cpp:1");
}

TEST_F(MonitorTest, ForgetsTheQuietestPlace) {
  auto o = options(2);
  o.max_places = 2;
  ErrorMonitor monitor(o);
  monitor.record(at_line(1));
  now = 1;
  monitor.record(at_line(2));
  now = 2;
  monitor.record(at_line(1));
  monitor.record(at_line(3));  // in place of line 2
  const auto patterns = monitor.patterns();
  ASSERT_EQ(patterns.size(), 2u);
  EXPECT_EQ(patterns[0].place, "reader.cpp:1");
  EXPECT_EQ(patterns[1].place, "reader.cpp:3");
  EXPECT_EQ(monitor.total(), 4u);
}

TEST_F(MonitorTest, TellsTheFinalNumberOfAPlaceThatItForgets) {
  auto o = options(2);
  o.max_places = 1;
  ErrorMonitor monitor(o);
  for (int i = 0; i < 5; ++i) monitor.record(at_line(1));
  EXPECT_THAT(lines, ElementsAre(HasSubstr("2 times")));
  monitor.record(at_line(2));
  EXPECT_THAT(lines,
              ElementsAre(HasSubstr("2 times"), AllOf(HasSubstr("5 times"), HasSubstr("reader.cpp:1"))));
  monitor.flush();
  EXPECT_EQ(lines.size(), 2u);
}

TEST_F(MonitorTest, CountsFromManyThreads) {
  ErrorMonitor monitor(options());
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) monitor.record(at_line(9));
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(monitor.total(), 4000u);
  monitor.flush();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_THAT(lines[1], HasSubstr("4000 times"));
}

TEST_F(MonitorTest, RefusesOptionsWithoutSense) {
  auto o = options(0);
  BITNET_EXPECT_ERROR(ErrorMonitor{o}, ErrorCode::kInvalidArgument, "expected positive numbers");
  o.threshold = 1;
  o.window_seconds = 0;
  BITNET_EXPECT_ERROR(ErrorMonitor{o}, ErrorCode::kInvalidArgument, "in 0 s");
}

TEST(Errors, TellMessageAndContextApart) {
  Error e(ErrorCode::kCorruptFile, "expected 2 dims: got 3");
  EXPECT_EQ(e.context(), "");
  EXPECT_EQ(e.message(), "expected 2 dims: got 3");
  e.add_context("tensor 'a'").add_context("loading 'm'");
  EXPECT_STREQ(e.what(), "loading 'm': tensor 'a': expected 2 dims: got 3");
  EXPECT_EQ(e.context(), "loading 'm': tensor 'a'");
  EXPECT_EQ(e.message(), "expected 2 dims: got 3");
}

TEST(Errors, HaveFourSeverities) {
  const auto severity = [](ErrorCode code) { return Error(code, "").severity(); };
  EXPECT_EQ(severity(ErrorCode::kCancelled), Severity::kNotice);
  EXPECT_EQ(severity(ErrorCode::kOutOfMemory), Severity::kRecoverable);
  EXPECT_EQ(severity(ErrorCode::kDevice), Severity::kSevere);
  EXPECT_EQ(severity(ErrorCode::kInternal), Severity::kFatal);
  EXPECT_EQ(to_string(Severity::kSevere), "severe");
  EXPECT_TRUE(Error(ErrorCode::kIo, "").is_transient());
  EXPECT_FALSE(Error(ErrorCode::kCorruptFile, "").is_transient());
}

}  // namespace
}  // namespace bitnet
