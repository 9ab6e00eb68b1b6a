// Texts as tokens and the order in which a run sees them.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

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

TEST(WindowSampler, DealsEveryWindowOnceAnEpochAndResumes) {
  std::vector<TokenId> tokens(103);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<TokenId>(i);
  WindowSampler sampler(tokens, 10, -1, 5);
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
  WindowSampler other(tokens, 10, -1, 99);
  other.set_state(state);
  other.next(25, again);
  EXPECT_EQ(next.inputs, again.inputs);
  BITNET_EXPECT_ERROR(other.set_state({state.epoch_rng, 1000, 0}), ErrorCode::kInvalidArgument, "1000");
  BITNET_EXPECT_ERROR(WindowSampler(tokens, 60, -1, 1), ErrorCode::kInvalidArgument, "121");
}

TEST(WindowSampler, AWindowStartsWithBos) {
  const std::vector<TokenId> tokens = {10, 11, 12, 13, 14};
  Batch b;
  append_window(tokens, 1, 3, 0, b);
  EXPECT_THAT(b.inputs, ::testing::ElementsAre(0, 11, 12));
  EXPECT_THAT(b.targets, ::testing::ElementsAre(11, 12, 13));
}

TEST(Documents, AreWhatLiesBetweenSeparatorsEachWithItsEnd) {
  testing::TempDir dir;
  BpeTrainer trainer(BpeTrainerOptions{320, {"<s>", "</s>"}, 2});
  trainer.feed(sample_text(3, 200));
  const auto tokenizer = Tokenizer::from_json(trainer.train());
  const ExecutionContext context;
  write_file(dir / "t.txt", "the first\n\nthe second one\n\n\n\nthe");
  const Documents documents = tokenize_documents(context, *tokenizer, dir / "t.txt", "\n\n");
  ASSERT_EQ(documents.ends.size(), 3u);
  std::size_t begin = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    auto expected =
        tokenizer->encode(std::array{"the first", "the second one", "the"}[i], {.add_bos = false});
    if (!tokenizer->eos().empty()) expected.push_back(tokenizer->eos()[0]);
    const auto end = static_cast<std::size_t>(documents.ends[i]);
    EXPECT_EQ(std::vector<TokenId>(documents.tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                                   documents.tokens.begin() + static_cast<std::ptrdiff_t>(end)),
              expected);
    begin = end;
  }
  BITNET_EXPECT_ERROR(tokenize_documents(context, *tokenizer, dir / "t.txt", ""), ErrorCode::kInvalidArgument,
                      "separator");
}

/// Documents of these lengths; token i of all is i, from 1 on.
Documents documents_of(const std::vector<std::int64_t>& lengths) {
  Documents d;
  for (const std::int64_t n : lengths) {
    for (std::int64_t i = 0; i < n; ++i) d.tokens.push_back(static_cast<TokenId>(d.tokens.size()) + 1);
    d.ends.push_back(static_cast<std::int64_t>(d.tokens.size()));
  }
  return d;
}

TEST(PackedRows, AreThoseOfPackWithBosAndTheNextTokenAsTarget) {
  const Documents d = documents_of({3, 5, 2, 8, 1});
  const PackedRows rows(d.view(), 8, 0);
  // The same with core's packing of whole sequences.
  std::vector<std::vector<TokenId>> inputs, targets;
  std::int64_t begin = 0;
  for (const std::int64_t end : d.ends) {
    targets.emplace_back(d.tokens.begin() + begin, d.tokens.begin() + end);
    inputs.push_back(targets.back());
    inputs.back().insert(inputs.back().begin(), 0);
    inputs.back().pop_back();
    begin = end;
  }
  const PackedBatch in = pack(inputs, 8, 0), out = pack(targets, 8, -1);
  ASSERT_EQ(rows.size(), in.rows);
  Batch b;
  for (std::int64_t r = 0; r < rows.size(); ++r) rows.append(r, b);
  EXPECT_EQ(b.inputs, in.ids);
  EXPECT_EQ(b.targets, out.ids);
  for (std::size_t i = 0; i < in.ids.size(); ++i)
    EXPECT_EQ(b.positions[i], in.sequence[i] < 0 ? -1 : in.position[i]);
}

TEST(PackedRows, LongDocumentsAreCutAndWithoutBosTheFirstTokenIsNoTarget) {
  const Documents d = documents_of({9, 1, 3});
  const PackedRows rows(d.view(), 4, -1);  // 8 positions of the first, none of the second, 2 of the third
  ASSERT_EQ(rows.size(), 3);
  Batch b;
  for (std::int64_t r = 0; r < 3; ++r) rows.append(r, b);
  EXPECT_THAT(b.inputs, ::testing::ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 0, 0));
  EXPECT_THAT(b.targets, ::testing::ElementsAre(2, 3, 4, 5, 6, 7, 8, 9, 12, 13, -1, -1));
  EXPECT_THAT(b.positions, ::testing::ElementsAre(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, -1, -1));
}

TEST(PackedRows, TokensThatAreNotLearnedAreReadButNoTargets) {
  Documents d = documents_of({3, 9, 2});
  d.learned = {0, 1, 1, /**/ 0, 0, 0, 0, 0, 0, 1, 0, 1, /**/ 0, 0};
  const PackedRows with_bos(d.view(), 4, 0);
  Batch b;
  for (std::int64_t r = 0; r < with_bos.size(); ++r) with_bos.append(r, b);
  // Of the second document the first four have no target and are left out, of the third all.
  EXPECT_THAT(b.inputs, ::testing::ElementsAre(0, 8, 9, 10, 0, 1, 2, 0));
  EXPECT_THAT(b.targets, ::testing::ElementsAre(-1, -1, 10, -1, -1, 2, 3, 12));
  b.clear();
  const PackedRows without(d.view(), 4, -1);
  for (std::int64_t r = 0; r < without.size(); ++r) without.append(r, b);
  EXPECT_THAT(b.inputs, ::testing::ElementsAre(8, 9, 10, 11, 1, 2, 0, 0));
  EXPECT_THAT(b.targets, ::testing::ElementsAre(-1, 10, -1, 12, 2, 3, -1, -1));
}

TEST(PackedSampler, DealsEveryTokenOnceAnEpochInAnotherOrderAndResumes) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t i = 0; i < 60; ++i) lengths.push_back(1 + i * 7 % 23);
  const Documents d = documents_of(lengths);
  PackedSampler sampler(d.view(), 10, 0, 5);
  std::vector<std::vector<std::int32_t>> epochs(2);
  Batch b;
  while (true) {
    sampler.next(1, b);
    const std::uint64_t epoch = sampler.state().epoch;
    if (epoch > 1) break;
    for (const std::int32_t t : b.targets)
      if (t >= 0) epochs[epoch].push_back(t);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  for (auto& targets : epochs) {
    std::sort(targets.begin(), targets.end());
    EXPECT_EQ(targets, d.tokens);
  }
  const SamplerState state = sampler.state();
  Batch next, again;
  sampler.next(30, next);
  PackedSampler other(d.view(), 10, 0, 99);
  other.set_state(state);
  other.next(30, again);
  EXPECT_EQ(next.inputs, again.inputs);
  EXPECT_EQ(next.positions, again.positions);
  BITNET_EXPECT_ERROR(PackedSampler(documents_of({1, 1}).view(), 10, -1, 1), ErrorCode::kInvalidArgument,
                      "two tokens");
}

}  // namespace
}  // namespace bitnet::training
