// RFC 4180: every rule of its section 2, and what happens when a file breaks them.
#include "csv.hpp"

#include "bitnet/core/rng.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Csv, SplitsFieldsAndLines) {
  const auto rows = parse_csv("a,b\r\n1,2\n\n3,\n");
  ASSERT_EQ(rows.size(), 3u);
  EXPECT_THAT(rows[0].fields, ElementsAre("a", "b"));
  EXPECT_THAT(rows[1].fields, ElementsAre("1", "2"));
  EXPECT_THAT(rows[2].fields, ElementsAre("3", ""));
  EXPECT_EQ(rows[2].line, 4u);
}

TEST(Csv, QuotedFieldsHoldCommasQuotesAndLineBreaks) {
  const auto rows = parse_csv("\"a,b\",\"say \"\"hi\"\"\",\"two\r\nlines\"\nnext,\"\",x");
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_THAT(rows[0].fields, ElementsAre("a,b", "say \"hi\"", "two\r\nlines"));
  EXPECT_THAT(rows[1].fields, ElementsAre("next", "", "x"));
  EXPECT_EQ(rows[1].line, 3u);
}

TEST(Csv, SkipsAByteOrderMarkAndKeepsQuotesInsideUnquotedFields) {
  const auto rows = parse_csv("\xEF\xBB\xBFprompt\n5\" pipe\n");
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_THAT(rows[0].fields, ElementsAre("prompt"));
  EXPECT_THAT(rows[1].fields, ElementsAre("5\" pipe"));
}

TEST(Csv, ABrokenRecordIsOneErrorAndReadingGoesOn) {
  const auto rows = parse_csv("ok\n\"x\"y\nfine\n\"never closed\nlast\n");
  ASSERT_EQ(rows.size(), 5u);
  EXPECT_THAT(rows[1].error, HasSubstr("after the closing quote"));
  EXPECT_EQ(rows[1].line, 2u);
  EXPECT_THAT(rows[2].fields, ElementsAre("fine"));
  EXPECT_THAT(rows[3].error, HasSubstr("never closed"));
  EXPECT_THAT(rows[4].fields, ElementsAre("last"));
}

TEST(Csv, WhatIsWrittenIsReadBack) {
  Rng rng(7);
  const std::string letters = "ab,\"\n\r é";
  for (int round = 0; round < 2000; ++round) {
    std::vector<std::string> fields(1 + rng.below(4));
    for (auto& field : fields)
      for (std::uint64_t n = rng.below(6); n > 0; --n) field += letters[rng.below(letters.size())];
    if (fields.size() == 1 && fields[0].empty()) continue;  // an empty line is no record
    const auto rows = parse_csv(csv_line(fields));
    ASSERT_EQ(rows.size(), 1u) << csv_line(fields);
    EXPECT_EQ(rows[0].fields, fields);
  }
}

TEST(Csv, RandomBytesGiveRowsOrErrorsAndLinesAscend) {
  Rng rng(11);
  const std::string letters = "a,\"\n\r";
  for (int round = 0; round < 5000; ++round) {
    std::string text;
    for (std::uint64_t n = rng.below(30); n > 0; --n) text += letters[rng.below(letters.size())];
    std::size_t line = 0;
    for (const auto& row : parse_csv(text)) {
      EXPECT_GT(row.line, line) << text;
      line = row.line;
      EXPECT_EQ(row.error.empty(), !row.fields.empty()) << text;
    }
  }
}

}  // namespace
}  // namespace bitnet::cli
