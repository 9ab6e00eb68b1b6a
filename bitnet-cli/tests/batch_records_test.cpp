// Batch records: each format holds everything and is read back, and the journal survives a cut-off line.
#include "batch_records.hpp"

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::cli {
namespace {

using ::testing::HasSubstr;
using testing::TempDir;

std::vector<BatchRecord> samples() {
  BatchRecord done;
  done.id = {"1", true};
  done.prompt = "a, \"quoted\"\nprompt";
  done.text = "text with é";
  done.finish_reason = "length";
  done.prompt_tokens = 5;
  done.completion_tokens = 7;
  done.milliseconds = 12.5;
  done.seed = 42;
  BatchRecord chat = done;
  chat.id = {"chat", false};
  chat.messages = {{"user", "hello"}};
  chat.options = R"({"stop":["a,b"],"temperature":0.5})";
  chat.finish_reason = "stop";
  BatchRecord failed;
  failed.id = {"bad", false};
  failed.finish_reason = "error";
  failed.error = "no";
  return {done, chat, failed};
}

TEST(BatchRecords, EveryFormatIsReadBack) {
  for (const auto format : {RecordFormat::kJsonl, RecordFormat::kJson, RecordFormat::kCsv}) {
    const auto records = samples();
    const auto again = parse_records(format_records(records, format), format);
    ASSERT_EQ(again.size(), records.size());
    for (std::size_t i = 0; i < records.size(); ++i) {
      EXPECT_EQ(again[i].id.text, records[i].id.text);
      EXPECT_EQ(again[i].prompt, records[i].prompt);
      EXPECT_EQ(again[i].text, records[i].text);
      EXPECT_EQ(again[i].finish_reason, records[i].finish_reason);
      EXPECT_EQ(again[i].prompt_tokens, records[i].prompt_tokens);
      EXPECT_EQ(again[i].completion_tokens, records[i].completion_tokens);
      EXPECT_DOUBLE_EQ(again[i].milliseconds, records[i].milliseconds);
      EXPECT_EQ(again[i].seed, records[i].seed);
      EXPECT_EQ(again[i].error, records[i].error);
      EXPECT_EQ(again[i].is_complete(), i < 2);
      EXPECT_EQ(input_key(again[i]), input_key(records[i]));
      EXPECT_TRUE(format == RecordFormat::kCsv || again[i].id == records[i].id);
    }
  }
}

TEST(BatchRecords, JsonlKeepsTheKindOfTheIdAndReplacesBytesThatAreNoUtf8) {
  BatchRecord r = samples()[0];
  r.prompt = "a\xFFz";
  const std::string line = format_jsonl(r);
  EXPECT_THAT(line, HasSubstr("{\"id\":1,\"prompt\":\"a\xEF\xBF\xBDz\",\"text\":"));
  EXPECT_EQ(line.find('\n'), line.size() - 1);
}

TEST(BatchRecords, FormatsBySuffix) {
  EXPECT_EQ(record_format("x.jsonl"), RecordFormat::kJsonl);
  EXPECT_EQ(record_format("-"), RecordFormat::kJsonl);
  EXPECT_EQ(record_format("a/x.json"), RecordFormat::kJson);
  EXPECT_EQ(record_format("x.csv"), RecordFormat::kCsv);
  BITNET_EXPECT_ERROR(record_format("x.txt"), ErrorCode::kInvalidArgument, ".jsonl, .json or .csv");
}

TEST(BatchRecords, ForeignFilesAreErrors) {
  BITNET_EXPECT_ERROR(parse_records("{}\n", RecordFormat::kJsonl), ErrorCode::kCorruptFile, "line 1");
  BITNET_EXPECT_ERROR(parse_records("[3]", RecordFormat::kJson), ErrorCode::kCorruptFile,
                      "list of batch records");
  BITNET_EXPECT_ERROR(parse_records("a,b\n", RecordFormat::kCsv), ErrorCode::kCorruptFile, "column names");
  const std::string head = format_records({}, RecordFormat::kCsv);
  BITNET_EXPECT_ERROR(parse_records(head + "1,p\n", RecordFormat::kCsv), ErrorCode::kCorruptFile, "line 2");
  BITNET_EXPECT_ERROR(parse_records(head + "1,p,t,stop,x,1,1,,,,\n", RecordFormat::kCsv),
                      ErrorCode::kCorruptFile, "numbers");
  BITNET_EXPECT_ERROR(parse_records(head + "1,p,t,stop,1,1,1,,,{,\n", RecordFormat::kCsv),
                      ErrorCode::kCorruptFile, "expected JSON");
}

TEST(BatchRecords, DeepNestingIsAnErrorAndNoOverflowOfTheStack) {
  constexpr int kLevels = 1'000'000;
  const std::string deep = std::string(kLevels, '[') + std::string(kLevels, ']');
  const std::string rest = R"(,"prompt":"","text":"","finish_reason":"stop","prompt_tokens":1,)"
                           R"("completion_tokens":1,"milliseconds":1)";
  for (const std::string& bad :
       {R"({"id":)" + deep + rest + "}\n", R"({"id":"a")" + rest + R"(,"options":{"stop":)" + deep + "}}\n"})
    BITNET_EXPECT_ERROR(parse_records(bad, RecordFormat::kJsonl), ErrorCode::kCorruptFile, "line 1");
  BITNET_EXPECT_ERROR(
      parse_records(format_records({}, RecordFormat::kCsv) + "1,p,t,stop,1,1,1,,,," + deep + "\n",
                    RecordFormat::kCsv),
      ErrorCode::kCorruptFile, "line 2");
}

TEST(BatchRecords, NothingIsReadPastANul) {
  const std::string record = R"({"id":"a","prompt":"","text":"","finish_reason":"stop","prompt_tokens":1,)"
                             R"("completion_tokens":1,"milliseconds":1})";
  EXPECT_EQ(parse_records(record + "\n", RecordFormat::kJsonl).size(), 1u);
  BITNET_EXPECT_ERROR(parse_records(record + '\0' + "more\n", RecordFormat::kJsonl), ErrorCode::kCorruptFile,
                      "line 1");
}

TEST(BatchJournal, KeepsWhatWasAddedAndForgivesACutOffLine) {
  const TempDir dir;
  const auto output = dir / "out.csv";
  const auto path = BatchJournal::path_for(output);
  {
    BatchJournal journal(output);
    journal.add(samples()[0]);
    journal.add(samples()[1]);
  }
  const std::string whole = read_file(path);
  EXPECT_EQ(parse_records(whole, RecordFormat::kJsonl).size(), 2u);
  const std::string cut = whole.substr(0, whole.size() - 9);
  EXPECT_EQ(parse_records(cut, RecordFormat::kJsonl, true).size(), 1u);
  BITNET_EXPECT_ERROR(parse_records(cut, RecordFormat::kJsonl), ErrorCode::kCorruptFile, "line 2");
  BatchJournal::remove(output);
  EXPECT_FALSE(std::filesystem::exists(path));
}

TEST(BatchJournal, AFullDiskIsAnError) {
  const TempDir dir;
  std::filesystem::create_symlink("/dev/full", BatchJournal::path_for(dir / "out.jsonl"));
  BatchJournal journal(dir / "out.jsonl");
  BITNET_EXPECT_ERROR(journal.add(samples()[0]), ErrorCode::kIo, "out.jsonl.partial");
  BITNET_EXPECT_ERROR(BatchJournal(dir / "none/out.jsonl"), ErrorCode::kIo, "none/out.jsonl.partial");
}

}  // namespace
}  // namespace bitnet::cli
