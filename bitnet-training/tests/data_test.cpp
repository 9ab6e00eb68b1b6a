// Texts as tokens and the order in which a run sees them.
#include <gtest/gtest.h>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/text/bpe_trainer.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/data.hpp"
#include "sample_text.hpp"

namespace bitnet::training {
namespace {

TEST(Data, PiecesEncodeAsTheWhole) {
  testing::TempDir dir;
  std::string text = sample_text(3, 8000);  // several pieces
  ASSERT_GT(text.size(), 3u << 16);
  write_file(dir / "t.txt", text);
  BpeTrainer trainer(BpeTrainerOptions{320, {"<s>", "</s>"}, 2});
  trainer.feed(text);
  const auto tokenizer = Tokenizer::from_json(trainer.train());
  const ExecutionContext context;
  const auto tokens = tokenize_file(context, *tokenizer, dir / "t.txt");
  EXPECT_EQ(tokens, tokenizer->encode(text, {.add_bos = false}));
  EXPECT_EQ(tokenizer->decode(tokens), text);
  text[100000] = '\xFF';
  write_file(dir / "t.txt", text);
  BITNET_EXPECT_ERROR(tokenize_file(context, *tokenizer, dir / "t.txt"), ErrorCode::kInvalidArgument,
                      "t.txt");
  BITNET_EXPECT_ERROR(tokenize_file(context, *tokenizer, dir / "absent"), ErrorCode::kNotFound, "absent");
}

TEST(Data, EveryKindOfVocabularyEncodesATextAsTheWhole) {
  testing::TempDir dir;
  std::string text = "\nFirst.\n";
  for (int i = 0; i < 6; ++i)
    text += sample_text(4, 1600) + "\n\n\n  Indented \n\tby a tab\r\n\r\n(1234)\nx <keep>\n<lr>\n";
  ASSERT_GT(text.size(), 4u << 16);
  write_file(dir / "t.txt", text);
  const auto fixtures = testing::source_path("tests/data/tokenizers");
  const auto edited = [&](const char* name, const std::string& from, const std::string& to) {
    std::string json = read_file(fixtures / name);
    const std::size_t at = json.find(from);
    EXPECT_NE(at, std::string::npos);
    return Tokenizer::from_json(json.replace(at, from.size(), to));
  };
  const struct {
    const char* name;
    std::shared_ptr<const Tokenizer> tokenizer;
    bool splits;
  } cases[] = {
      {"llama3", Tokenizer::load(fixtures / "llama3.json"), true},
      {"llama3 without its digits in threes", edited("llama3.json", R"(\\p{N}{1,3})", R"(\\p{N})"), false},
      {"llama3 with a line end in an added token",
       edited("llama3.json", R"("added_tokens":[)",
              R"("added_tokens":[{"id":420,"content":".\nT","special":false},)"),
       false},
      {"gpt2", Tokenizer::load(fixtures / "gpt2.json"), false},
      {"gpt2 without prefix",
       edited("gpt2.json", R"("add_prefix_space":true)", R"("add_prefix_space":false)"), false},
      {"merged_next", Tokenizer::load(fixtures / "merged_next.json"), false},
      {"llama2", Tokenizer::load(fixtures / "llama2.json"), false},
      {"metaspace_first", Tokenizer::load(fixtures / "metaspace_first.json"), false},
      {"spm", Tokenizer::load(fixtures / "spm.model"), false},
  };
  const ExecutionContext context;
  for (const auto& c : cases) {
    EXPECT_EQ(c.tokenizer->splits_at_lines(), c.splits) << c.name;
    EXPECT_TRUE(tokenize_file(context, *c.tokenizer, dir / "t.txt") ==
                c.tokenizer->encode(text, {.add_bos = false}))
        << c.name;
  }
}

TEST(BatchSampler, DealsEveryWindowOnceAnEpochAndResumes) {
  std::vector<TokenId> tokens(103);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<TokenId>(i);
  BatchSampler sampler(tokens, 10, -1, 5);
  Batch b;
  std::vector<bool> seen(103);
  std::size_t dealt = 0;
  for (; sampler.state().epoch == 0; ++dealt) {
    sampler.next(1, b);
    if (sampler.state().epoch != 0) break;
    for (int i = 0; i < 10; ++i) {
      const auto t = static_cast<std::size_t>(b.inputs[static_cast<std::size_t>(i)]);
      EXPECT_FALSE(seen[t]);
      seen[t] = true;
      EXPECT_EQ(b.targets[static_cast<std::size_t>(i)], b.inputs[static_cast<std::size_t>(i)] + 1);
    }
  }
  EXPECT_GE(dealt, 9u);
  const auto state = sampler.state();
  Batch next, again;
  sampler.next(25, next);
  BatchSampler other(tokens, 10, -1, 99);
  other.set_state(state);
  other.next(25, again);
  EXPECT_EQ(next.inputs, again.inputs);
  BITNET_EXPECT_ERROR(other.set_state({state.epoch_rng, 1000, 0}), ErrorCode::kInvalidArgument, "1000");
  BITNET_EXPECT_ERROR(BatchSampler(tokens, 60, -1, 1), ErrorCode::kInvalidArgument, "121");
}

TEST(BatchSampler, AWindowStartsWithBos) {
  const std::vector<TokenId> tokens = {10, 11, 12, 13, 14};
  Batch b;
  append_window(tokens, 1, 3, 0, b);
  EXPECT_THAT(b.inputs, ::testing::ElementsAre(0, 11, 12));
  EXPECT_THAT(b.targets, ::testing::ElementsAre(11, 12, 13));
}

}  // namespace
}  // namespace bitnet::training
