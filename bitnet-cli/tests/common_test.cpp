// Texts for people, the UTF-8 check, and the progress line.
#include "common.hpp"
#include "bitnet/core/text/utf8.hpp"

#include <cmath>
#include <sstream>

#include "bitnet/testing/testing.hpp"

namespace bitnet::cli {
namespace {

using ::testing::HasSubstr;

TEST(Texts, NumbersForPeople) {
  EXPECT_EQ(grouped(0), "0");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(grouped(1234567), "1,234,567");
  EXPECT_EQ(grouped(-1000), "-1,000");
  EXPECT_EQ(human_bytes(1023), "1023 bytes");
  EXPECT_EQ(human_bytes(1536), "1.5 KiB");
  EXPECT_EQ(human_bytes(std::uint64_t{3} << 40), "3.0 TiB");
  EXPECT_EQ(human_time(0), "0:00");
  EXPECT_EQ(human_time(59.2), "1:00");
  EXPECT_EQ(human_time(3909), "1:05:09");
  EXPECT_EQ(quoted("a\"\n\x01\\é"), "\"a\\\"\\n\\x01\\\\é\"");
}

TEST(Texts, SmallNumbersKeepDigits) {
  EXPECT_EQ(significant(0.1234567, 4), "0.1235");
  EXPECT_EQ(significant(-12.5, 4), "-12.5000");
  EXPECT_EQ(significant(0.0012, 4), "0.0012");
  EXPECT_EQ(significant(0.00034567, 4), "0.000346");
  EXPECT_EQ(significant(-0.0000123456, 4), "-1.23e-05");
  EXPECT_EQ(significant(0, 4), "0.0000");
  EXPECT_EQ(significant(std::nan(""), 4), "nan");
}

TEST(Texts, AFailureThatIsABugHasItsPlace) {
  EXPECT_EQ(failure_text(Error(ErrorCode::kIo, "the disk is full", {"src/a.cpp", "f", 7})),
            "the disk is full");
  EXPECT_EQ(failure_text(Error(ErrorCode::kInternal, "a logit is not a number", {"src/a.cpp", "f", 7})),
            "a logit is not a number (internal error at a.cpp:7)");
}

TEST(Utf8, FindsTheFirstBadByte) {
  EXPECT_NO_THROW(text::require_utf8("plain, é, €, \xF0\x9F\x98\x80", "x"));
  const std::vector<std::pair<std::string, int>> bad{{"ab\xFF", 2},       {"\xC3", 0},
                                                     {"a\xC0\xAF", 1},    {"\xE0\x80\x80", 0},
                                                     {"\xED\xA0\x80", 0}, {"é\xF4\x90\x80\x80", 2},
                                                     {"\xF0\x9F\x98", 0}, {"x\x80", 1}};
  for (const auto& [text, offset] : bad)
    BITNET_EXPECT_ERROR(text::require_utf8(text, "the prompt"), ErrorCode::kInvalidArgument,
                        "the prompt: invalid UTF-8 at byte " + std::to_string(offset));
}

TEST(ProgressBar, IsDrawnOnATerminalOnly) {
  std::istringstream in;
  std::ostringstream out, err;
  Io io{.in = in, .out = out, .err = err};
  { ProgressBar(io, "items").update(1, 4); }
  EXPECT_EQ(err.str(), "");
  io.err_is_terminal = true;
  {
    ProgressBar bar(io, "items");
    bar.update(1, 4, "3 tokens/s");
  }
  EXPECT_THAT(err.str(), HasSubstr("[######..................] 1/4 items"));
  EXPECT_TRUE(err.str().ends_with("\r\x1b[K"));
}

TEST(ProgressBar, SaysHowLongItTakesAndFitsTheTerminal) {
  EXPECT_EQ(ProgressBar::line(30, 120, 60, "items", "", 200),
            "[######..................] 30/120 items, 3:00 to go");
  EXPECT_EQ(ProgressBar::line(0, 10, 1, "items", "", 200), "[........................] 0/10 items");
  EXPECT_LE(ProgressBar::line(5, 10, 1, "items", "many words", 40).size(), 39u);
}

}  // namespace
}  // namespace bitnet::cli
