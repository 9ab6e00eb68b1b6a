// Files of training text and the shards in which their tokens are kept.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/text/bpe_trainer.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/token_shard.hpp"
#include "bitnet/training/training_text.hpp"
#include "sample_text.hpp"

namespace bitnet::training {
namespace {

std::shared_ptr<const Tokenizer> tokenizer_of(std::uint64_t seed = 3, int vocabulary = 300) {
  BpeTrainer trainer(BpeTrainerOptions{vocabulary, {"<s>", "</s>"}, 2});
  trainer.feed(sample_text(seed, 300));
  return Tokenizer::from_json(trainer.train());
}

void expect_same(const DocumentsView& a, const DocumentsView& b) {
  EXPECT_TRUE(std::equal(a.tokens.begin(), a.tokens.end(), b.tokens.begin(), b.tokens.end()));
  EXPECT_TRUE(std::equal(a.ends.begin(), a.ends.end(), b.ends.begin(), b.ends.end()));
  EXPECT_TRUE(std::equal(a.learned.begin(), a.learned.end(), b.learned.begin(), b.learned.end()));
}

Documents small_documents() { return {{5, 6, 7, 8, 9}, {2, 5}, {0, 1, 0, 1, 1}}; }

std::size_t files_in(const std::filesystem::path& directory) {
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(directory), {}));
}

TEST(TokenShard, GivesBackWhatWasWritten) {
  const testing::TempDir dir;
  const auto tokenizer = tokenizer_of();
  Documents masked = small_documents(), unmasked = small_documents(), stream{{5, 6, 7}, {3}};
  unmasked.learned.clear();
  const std::pair<const Documents*, bool> cases[] = {{&masked, true}, {&unmasked, true}, {&stream, false}};
  for (const auto& [documents, packs] : cases) {
    write_token_shard(dir / "a.tokens", documents->view(), packs, *tokenizer);
    EXPECT_TRUE(is_token_shard(dir / "a.tokens"));
    const auto shard = TokenShard::open(dir / "a.tokens", *tokenizer);
    expect_same(shard->documents(), documents->view());
    EXPECT_EQ(shard->packs(), packs);
  }
  EXPECT_EQ(files_in(dir.path()), 1u);  // nothing is left beside it
  EXPECT_FALSE(is_token_shard(dir / "absent"));
  EXPECT_FALSE(is_token_shard(dir.path()));
}

TEST(TokenShard, ATruncatedOrDamagedOneIsRefused) {
  const testing::TempDir dir;
  const auto tokenizer = tokenizer_of();
  write_token_shard(dir / "a.tokens", small_documents().view(), true, *tokenizer);
  const std::string whole = read_file(dir / "a.tokens");
  ASSERT_EQ(whole.size(), 64u + 16 + 24 + 8);
  for (std::size_t n = 0; n < whole.size(); ++n) {
    write_file(dir / "b.tokens", whole.substr(0, n));
    BITNET_EXPECT_ERROR(TokenShard::open(dir / "b.tokens", *tokenizer), ErrorCode::kCorruptFile, "truncated");
  }
  write_file(dir / "b.tokens", whole + "x");
  BITNET_EXPECT_ERROR(TokenShard::open(dir / "b.tokens", *tokenizer), ErrorCode::kCorruptFile, "b.tokens");
  for (std::size_t n = 0; n < whole.size(); ++n) {
    std::string damaged = whole;
    damaged[n] = static_cast<char>(damaged[n] ^ 0x10);
    write_file(dir / "b.tokens", damaged);
    EXPECT_THROW(TokenShard::open(dir / "b.tokens", *tokenizer), Error) << n;
  }
  std::string damaged = whole;
  damaged[64 + 16] ^= 1;  // the first token
  write_file(dir / "b.tokens", damaged);
  BITNET_EXPECT_ERROR(TokenShard::open(dir / "b.tokens", *tokenizer), ErrorCode::kCorruptFile, "checksum");
}

TEST(TokenShard, AForeignOneIsRefusedWithTheReason) {
  const testing::TempDir dir;
  const auto tokenizer = tokenizer_of();
  write_token_shard(dir / "a.tokens", small_documents().view(), true, *tokenizer);
  BITNET_EXPECT_ERROR(TokenShard::open(dir / "a.tokens", *tokenizer_of(3, 290)), ErrorCode::kInvalidArgument,
                      "vocabulary of 300");
  const auto other = Tokenizer::from_json(tokenizer->to_json(), R"({"chat_template": "x"})");
  BITNET_EXPECT_ERROR(TokenShard::open(dir / "a.tokens", *other), ErrorCode::kInvalidArgument,
                      "another tokenizer");
  std::string newer = read_file(dir / "a.tokens");
  newer[8] = 2;
  write_file(dir / "b.tokens", newer);
  BITNET_EXPECT_ERROR(TokenShard::open(dir / "b.tokens", *tokenizer), ErrorCode::kUnsupported, "version 2");
  write_file(dir / "c.tokens", std::string(100, 'x'));
  BITNET_EXPECT_ERROR(TokenShard::open(dir / "c.tokens", *tokenizer), ErrorCode::kCorruptFile,
                      "not a token shard");
  BITNET_EXPECT_ERROR(TokenShard::open(dir / "absent", *tokenizer), ErrorCode::kNotFound, "absent");
}

TEST(TokenShard, DocumentsThatContradictThemselvesAreNotWritten) {
  const testing::TempDir dir;
  const auto tokenizer = tokenizer_of();
  const auto refuse = [&](const Documents& d, bool packs, const char* message) {
    BITNET_EXPECT_ERROR(write_token_shard(dir / "a.tokens", d.view(), packs, *tokenizer),
                        ErrorCode::kInvalidArgument, message);
  };
  refuse({{5, 300}, {2}}, true, "token 300 is outside the vocabulary of 300");
  refuse({{5, -1}, {2}}, true, "token -1 ");
  refuse({{5, 6}, {2, 1}}, true, "do not ascend");
  refuse({{5, 6}, {1}}, true, "end at token 1 of 2");
  refuse({{5, 6}, {2}, {1}}, true, "loss mask");
  refuse({{5, 6}, {1, 2}}, false, "several documents");
  EXPECT_EQ(files_in(dir.path()), 0u);
}

class TrainingTextTest : public ::testing::Test {
 protected:
  static TextOptions sixteen() {
    TextOptions options;
    options.length = 16;
    return options;
  }
  TrainingText load(const std::string& name) {
    return load_training_text(context_, *tokenizer_, dir_ / name, options_,
                              [this](const std::string& m) { messages_ += m + "\n"; });
  }
  testing::TempDir dir_;
  std::shared_ptr<const Tokenizer> tokenizer_ = tokenizer_of();
  ExecutionContext context_;
  TextOptions options_ = sixteen();
  std::string messages_;
};

TEST_F(TrainingTextTest, ReadsTextAsAStreamOrAsDocuments) {
  write_file(dir_ / "t.txt", "The cat saw.\n\nA dog loved.");
  const TrainingText stream = load("t.txt");
  EXPECT_FALSE(stream.packs);
  Documents expected;
  expected.tokens = tokenizer_->encode("The cat saw.\n\nA dog loved.", {.add_bos = false});
  expected.ends = {static_cast<std::int64_t>(expected.tokens.size())};
  expect_same(stream.documents, expected.view());
  options_.document_separator = "\n\n";
  const TrainingText documents = load("t.txt");
  EXPECT_TRUE(documents.packs);
  EXPECT_EQ(documents.documents.ends.size(), 2u);
}

TEST_F(TrainingTextTest, ReadsJsonlByItsNameOrByTheFormat) {
  write_file(dir_ / "t.jsonl", "{\"text\": \"The cat\"}\n{\"prompt\": \"A\", \"response\": \" dog\"}\n");
  const TrainingText text = load("t.jsonl");
  EXPECT_TRUE(text.packs);
  ASSERT_EQ(text.documents.ends.size(), 2u);
  ASSERT_EQ(text.documents.learned.size(), text.documents.tokens.size());
  const auto at = static_cast<std::size_t>(text.documents.ends[0]);
  EXPECT_TRUE(std::all_of(text.documents.learned.begin(),
                          text.documents.learned.begin() + static_cast<std::ptrdiff_t>(at),
                          [](std::uint8_t l) { return l == 1; }));
  EXPECT_EQ(text.documents.learned[at], 0);
  write_file(dir_ / "t.txt", "{\"text\": \"The cat\"}\n");
  EXPECT_FALSE(load("t.txt").packs);
  options_.format = TextFormat::kJsonl;
  EXPECT_TRUE(load("t.txt").packs);
  EXPECT_TRUE(load("t.txt").documents.learned.empty());  // all of it is
  options_.format = TextFormat::kText;
  EXPECT_FALSE(load("t.jsonl").packs);
}

TEST_F(TrainingTextTest, EmptyAndBinaryFilesAreErrors) {
  const std::pair<std::string, const char*> cases[] = {{"", "is empty"},
                                                       {" \n\t\r\n", "nothing but blanks"},
                                                       {std::string("abc\0def", 7), "byte 3 is a NUL"},
                                                       {"one\ntwo\xFF", "invalid UTF-8 at byte 7, line 2"}};
  for (const char* name : {"t.txt", "t.jsonl"})
    for (const auto& [text, message] : cases) {
      write_file(dir_ / name, text);
      BITNET_EXPECT_ERROR(load(name), ErrorCode::kInvalidArgument, message);
    }
  BITNET_EXPECT_ERROR(load("absent"), ErrorCode::kNotFound, "absent");
  write_file(dir_ / "t.jsonl", "{\"text\": \"a\"}\n{\"text\": }\n");
  BITNET_EXPECT_ERROR(load("t.jsonl"), ErrorCode::kInvalidArgument, "t.jsonl': line 2: not JSON");
}

TEST_F(TrainingTextTest, RecordsLongerThanASequenceAreRefusedCutOrSkipped) {
  std::string answer;
  for (int i = 0; i < 40; ++i) answer += " xyz";
  write_file(
      dir_ / "t.jsonl",
      "{\"prompt\": \"A\", \"response\": \" dog\"}\n{\"prompt\": \"A\", \"response\": \"" + answer + "\"}\n");
  BITNET_EXPECT_ERROR(load("t.jsonl"), ErrorCode::kInvalidArgument, "line 2: ");
  BITNET_EXPECT_ERROR(load("t.jsonl"), ErrorCode::kInvalidArgument, "a sequence has 16");
  options_.long_records = LongRecords::kCut;
  EXPECT_EQ(load("t.jsonl").documents.ends.size(), 2u);
  EXPECT_EQ(messages_, "");
  options_.long_records = LongRecords::kSkip;
  EXPECT_EQ(load("t.jsonl").documents.ends.size(), 1u);
  EXPECT_THAT(messages_, ::testing::HasSubstr("1 of 2 records"));
  write_file(dir_ / "t.jsonl", "{\"prompt\": \"A\", \"response\": \"" + answer + "\"}\n");
  BITNET_EXPECT_ERROR(load("t.jsonl"), ErrorCode::kInvalidArgument, "each of its 1 records");
  options_.long_records = LongRecords::kRefuse;
  write_file(dir_ / "t.jsonl", "{\"text\": \"" + answer + "\"}\n");  // a text is cut in any case
  EXPECT_EQ(load("t.jsonl").documents.ends.size(), 1u);
}

TEST_F(TrainingTextTest, AChatNeedsATemplate) {
  write_file(dir_ / "t.jsonl", R"({"messages": [{"role": "assistant", "content": "a"}]})");
  BITNET_EXPECT_ERROR(load("t.jsonl"), ErrorCode::kInvalidArgument, "line 1: a chat");
  options_.chat_template = "llama3";
  BITNET_EXPECT_ERROR(load("t.jsonl"), ErrorCode::kUnsupported, "line 1: chat template 'llama3'");
}

TEST_F(TrainingTextTest, AShardIsMadeOnceAndAgainForAnotherText) {
  write_file(dir_ / "t.jsonl", "{\"prompt\": \"The cat\", \"response\": \" saw\"}\n");
  const TrainingText memory = load("t.jsonl");
  options_.shards = dir_ / "shards/deep";
  const TrainingText first = load("t.jsonl");
  EXPECT_THAT(messages_, ::testing::HasSubstr("are kept as"));
  messages_.clear();
  const TrainingText second = load("t.jsonl");
  EXPECT_EQ(messages_, "");
  expect_same(first.documents, memory.documents);
  expect_same(second.documents, memory.documents);
  EXPECT_TRUE(second.packs);
  EXPECT_EQ(files_in(options_.shards), 1u);
  options_.length = 17;  // records that are too long are refused at another length
  load("t.jsonl");
  EXPECT_EQ(files_in(options_.shards), 2u);
  write_file(dir_ / "t.jsonl", "{\"prompt\": \"The cat\", \"response\": \" loved\"}\n");
  load("t.jsonl");
  tokenizer_ = tokenizer_of(3, 290);
  load("t.jsonl");
  EXPECT_EQ(files_in(options_.shards), 4u);
}

TEST_F(TrainingTextTest, ADamagedShardIsRefusedAndAShardCanBeNamed) {
  write_file(dir_ / "t.txt", sample_text(1, 50));
  options_.shards = dir_ / "shards";
  const TrainingText text = load("t.txt");
  const std::filesystem::path shard = std::filesystem::directory_iterator(options_.shards)->path();
  EXPECT_EQ(shard.extension(), ".tokens");
  std::filesystem::copy_file(shard, dir_ / "named.tokens");
  const TrainingText named = load("named.tokens");
  expect_same(named.documents, text.documents);
  EXPECT_FALSE(named.packs);
  const std::string whole = read_file(shard);
  std::filesystem::remove(shard);  // the mapping above keeps its pages
  write_file(shard, whole.substr(0, whole.size() - 8));
  BITNET_EXPECT_ERROR(load("t.txt"), ErrorCode::kCorruptFile, "truncated");
  options_.format = TextFormat::kText;
  BITNET_EXPECT_ERROR(load("named.tokens"), ErrorCode::kInvalidArgument, "is no text");
}

TEST_F(TrainingTextTest, VocabulariesAreLearntFromEveryTextOfAFile) {
  write_file(dir_ / "t.jsonl",
             "{\"text\": \"a\"}\n{\"prompt\": \"b\", \"response\": \"c\"}\n"
             R"({"messages": [{"role": "user", "content": "d"}, {"role": "assistant", "content": "e"}]})");
  std::string all;
  for_each_text(dir_ / "t.jsonl", options_, [&](std::string_view text) { all += text; });
  EXPECT_EQ(all, "abcde");
  write_token_shard(dir_ / "t.tokens", small_documents().view(), true, *tokenizer_);
  BITNET_EXPECT_ERROR(for_each_text(dir_ / "t.tokens", options_, [](std::string_view) {}),
                      ErrorCode::kInvalidArgument, "data.tokenizer");
}

TEST(TrainingText, NamesOfItsOptions) {
  for (const auto f : {TextFormat::kAuto, TextFormat::kText, TextFormat::kJsonl})
    EXPECT_EQ(text_format_from_string(to_string(f)), f);
  for (const auto w : {LongRecords::kRefuse, LongRecords::kCut, LongRecords::kSkip})
    EXPECT_EQ(long_records_from_string(to_string(w)), w);
  BITNET_EXPECT_ERROR(text_format_from_string("csv"), ErrorCode::kInvalidArgument, "auto, text or jsonl");
  BITNET_EXPECT_ERROR(long_records_from_string("drop"), ErrorCode::kInvalidArgument, "refuse, cut or skip");
}

}  // namespace
}  // namespace bitnet::training
