// Batch input files: every format, every kind of bad item, and files that cannot be read as a whole.
#include "batch_items.hpp"

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempDir;

class BatchItemsTest : public ::testing::Test {
 protected:
  BatchItems read(const std::string& name, const std::string& text) {
    write_file(dir_ / name, text);
    return read_batch_items(dir_ / name);
  }
  TempDir dir_;
};

TEST_F(BatchItemsTest, TxtHasAPromptALine) {
  const auto read_items = read("x.txt", "first\r\n\n  second \nlast");
  ASSERT_EQ(read_items.items.size(), 3u);
  EXPECT_EQ(read_items.items[0].prompt, "first");
  EXPECT_EQ(read_items.items[1].prompt, "  second ");
  EXPECT_EQ(read_items.items[1].id, (ItemId{"2", true}));
  EXPECT_EQ(read_items.items[2].line, 4u);
}

TEST_F(BatchItemsTest, JsonlTakesStringsPromptsAndMessages) {
  const auto items =
      read("x.jsonl",
           "\"plain\"\n"
           "{\"id\": \"a\", \"prompt\": \"p\", \"seed\": 7, \"temperature\": 0.5, \"stop\": [\"x\", \"y\"]}\n"
           "{\"id\": 12, \"messages\": [{\"role\": \"system\", \"content\": \"s\"},"
           " {\"role\": \"user\", \"content\": \"u\"}], \"max_tokens\": 3}\n")
          .items;
  ASSERT_EQ(items.size(), 3u);
  EXPECT_EQ(items[0].prompt, "plain");
  EXPECT_EQ(items[1].id, (ItemId{"a", false}));
  ASSERT_EQ(items[1].overrides.size(), 4u);
  EXPECT_EQ(items[2].id, (ItemId{"12", true}));
  ASSERT_EQ(items[2].messages.size(), 2u);
  EXPECT_EQ(items[2].prompt, "u");
  ASSERT_EQ(items[2].overrides.size(), 1u);
  EXPECT_EQ(items[2].overrides[0].first, &opt::kMaxTokens);
  EXPECT_EQ(items[2].overrides[0].second, "3");
}

TEST_F(BatchItemsTest, NothingHidesBehindANul) {
  const std::string line = std::string("{\"prompt\": \"a\"}\0 garbage", 24);
  const auto items = read("x.jsonl", "\"good\"\n" + line + "\n\"good\"\n").items;
  ASSERT_EQ(items.size(), 3u);
  EXPECT_EQ(items[0].error + items[2].error, "");
  EXPECT_EQ(items[1].error, "line 2: not JSON: byte 16 is a NUL");
  BITNET_EXPECT_ERROR(read("x.json", "[\"a\"]" + std::string(1, '\0')), ErrorCode::kInvalidArgument,
                      "byte 6 is a NUL");
}

TEST_F(BatchItemsTest, ABadItemIsAnErrorOfThatItemOnly) {
  const auto items = read("x.jsonl",
                          "{\"prompt\": \"good\"}\n"
                          "{\"prompt\": \n"
                          "[1]\n"
                          "{\"id\": 1}\n"
                          "{\"prompt\": 5}\n"
                          "{\"prompt\": \"a\", \"top_k\": \"many\"}\n"
                          "{\"prompt\": \"a\", \"top_p\": 2}\n"
                          "{\"messages\": []}\n"
                          "{\"messages\": [{\"role\": \"user\"}]}\n"
                          "{\"prompt\": \"a\", \"messages\": [{\"role\": \"user\", \"content\": \"\"}]}\n"
                          "{\"id\": [], \"prompt\": \"a\"}\n"
                          "{\"prompt\": \"good\"}\n")
                         .items;
  ASSERT_EQ(items.size(), 12u);
  EXPECT_EQ(items.front().error, "");
  EXPECT_EQ(items.back().error, "");
  EXPECT_EQ(items.back().id.text, "12");
  const std::vector<std::string> expected{"not JSON",
                                          "expected text or an object, got array",
                                          "neither 'prompt' nor 'messages'",
                                          "'prompt': expected text, got number",
                                          "'top_k': expected a whole number",
                                          "'top_p': expected a number from 0.001 to 1",
                                          "'messages': expected a list",
                                          "'messages', number 1",
                                          "both 'prompt' and 'messages'",
                                          "'id': expected"};
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_THAT(items[i + 1].error, HasSubstr(expected[i]));
    EXPECT_THAT(items[i + 1].error, HasSubstr("line " + std::to_string(i + 2)));
  }
}

TEST_F(BatchItemsTest, AnItemThatFailsKeepsItsPromptForTheRecord) {
  const auto items = read("x.jsonl",
                          "{\"id\": [], \"prompt\": \"keep\"}\n"
                          "{\"prompt\": \"keep\", \"messages\": 3}\n"
                          "{\"messages\": [{\"role\": 1, \"content\": \"keep\"}]}\n"
                          "{\"prompt\": \"keep\", \"stop\": \"\"}\n"
                          "{\"prompt\": \"keep\", \"stop\": [\"a\", \"\"]}\n")
                         .items;
  ASSERT_EQ(items.size(), 5u);
  for (std::size_t i = 0; i < items.size(); ++i) {
    EXPECT_EQ(items[i].prompt, "keep");
    EXPECT_THAT(items[i].error, HasSubstr("line " + std::to_string(i + 1)));
  }
  EXPECT_THAT(items[4].error, HasSubstr("'stop': expected text that is not empty"));
  const auto rows = read("x.csv", "seed,prompt,id\nx,keep,a\n1,keep\n").items;
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].prompt, "keep");
  EXPECT_EQ(rows[0].id.text, "a");
  EXPECT_EQ(rows[1].prompt, "keep");
  for (const BatchItem& row : rows) EXPECT_NE(row.error, "");
}

TEST_F(BatchItemsTest, TheParsersPlaceIsTheColumnInTheLine) {
  const auto items = read("x.jsonl", "\"a\"\n{\"prompt\": 1 2}\n").items;
  EXPECT_THAT(items[1].error, ::testing::StartsWith("line 2: not JSON: parse error at column 14: "));
}

TEST_F(BatchItemsTest, UnusedKeysAreNoted) {
  const auto result = read("x.json", "[{\"prompt\": \"a\", \"temprature\": 1, \"label\": 3}]");
  EXPECT_EQ(result.items[0].error, "");
  ASSERT_EQ(result.notes.size(), 2u);
  EXPECT_THAT(result.notes[0], HasSubstr("'label' is not used"));
  EXPECT_THAT(result.notes[1], HasSubstr("did you mean 'temperature'?"));
}

TEST_F(BatchItemsTest, JsonIsAList) {
  const auto items = read("x.json", "[\"a\", {\"prompt\": \"b\"}, 3]").items;
  ASSERT_EQ(items.size(), 3u);
  EXPECT_EQ(items[1].prompt, "b");
  EXPECT_THAT(items[2].error, HasSubstr("item 3"));
  BITNET_EXPECT_ERROR(read("y.json", "{}"), ErrorCode::kInvalidArgument,
                      "y.json': expected a list of prompts");
  BITNET_EXPECT_ERROR(read("z.json", "[\"a\","), ErrorCode::kInvalidArgument, "not JSON");
  const std::string deep(200000, '[');
  BITNET_EXPECT_ERROR(read("deep.json", deep), ErrorCode::kInvalidArgument, "not JSON");
}

TEST_F(BatchItemsTest, CsvFindsItsColumnsByName) {
  const auto result = read("x.csv", "id,prompt,seed,other\nq,\"two\nlines\",5,z\n,b,,\nc\n,d,-1,\n");
  const auto& items = result.items;
  ASSERT_EQ(items.size(), 4u);
  EXPECT_EQ(items[0].prompt, "two\nlines");
  EXPECT_EQ(items[0].id.text, "q");
  ASSERT_EQ(items[0].overrides.size(), 1u);
  EXPECT_EQ(items[1].id.text, "2");
  EXPECT_TRUE(items[1].overrides.empty());
  EXPECT_THAT(items[2].error, HasSubstr("line 5: expected 4 fields"));
  EXPECT_THAT(items[3].error, HasSubstr("'seed': expected a whole number of at least 0"));
  EXPECT_THAT(result.notes, ElementsAre(HasSubstr("'other' is not used")));
  BITNET_EXPECT_ERROR(read("y.csv", "text,id\na,b\n"), ErrorCode::kInvalidArgument,
                      "expected a column 'prompt', found 'text', 'id'");
  BITNET_EXPECT_ERROR(read("e.csv", ""), ErrorCode::kInvalidArgument, "empty file");
  BITNET_EXPECT_ERROR(read("d.csv", "prompt,prompt\n"), ErrorCode::kInvalidArgument, "given twice");
}

TEST_F(BatchItemsTest, FilesThatAreNotThere) {
  BITNET_EXPECT_ERROR(read_batch_items(dir_ / "none.txt"), ErrorCode::kNotFound, "none.txt");
  BITNET_EXPECT_ERROR(read_batch_items(dir_ / "x.md"), ErrorCode::kInvalidArgument,
                      ".txt, .json, .jsonl or .csv");
}

}  // namespace
}  // namespace bitnet::cli
