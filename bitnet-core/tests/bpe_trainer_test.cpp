// The BPE trainer against a plain trainer that counts everything anew for each merge.
#include "bitnet/core/text/bpe_trainer.hpp"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "bitnet/core/rng.hpp"
#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using Json = nlohmann::json;
using Pair = std::pair<std::string, std::string>;

// Pieces of words of letters, each with the space before it, as the Llama-3 pattern cuts them; "Ġ" is the
// space.
std::vector<Pair> plain_training(const std::vector<std::string>& words, std::size_t merges,
                                 std::int64_t minimum) {
  std::vector<std::vector<std::string>> split;
  for (std::size_t w = 0; w < words.size(); ++w) {
    split.emplace_back();
    if (w > 0) split.back().push_back("Ġ");
    for (const char c : words[w]) split.back().emplace_back(1, c);
  }
  std::vector<Pair> result;
  while (result.size() < merges) {
    std::map<Pair, std::int64_t> counts;
    for (const auto& word : split)
      for (std::size_t i = 0; i + 1 < word.size(); ++i) ++counts[{word[i], word[i + 1]}];
    const auto best = std::max_element(counts.begin(), counts.end(),
                                       [](const auto& a, const auto& b) { return a.second < b.second; });
    if (best == counts.end() || best->second < minimum) break;
    const Pair pair = best->first;
    result.push_back(pair);
    for (auto& word : split)
      for (std::size_t i = 0; i + 1 < word.size(); ++i)
        if (word[i] == pair.first && word[i + 1] == pair.second) {
          word[i] += word[i + 1];
          word.erase(word.begin() + static_cast<std::ptrdiff_t>(i) + 1);
        }
  }
  return result;
}

TEST(BpeTrainer, LearnsTheMergesOfThePlainDefinition) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed) {
    Rng rng(seed);
    std::vector<std::string> words;
    std::string text;
    for (std::uint64_t n = 60 + rng.below(200); n > 0; --n) {
      std::string word;
      for (std::uint64_t l = 1 + rng.below(9); l > 0; --l)
        word += static_cast<char>('a' + rng.below(seed % 4 + 1));
      text += (text.empty() ? "" : " ") + word;
      words.push_back(word);
    }
    BpeTrainerOptions options;
    options.vocab_size = 258 + 40;
    BpeTrainer trainer(options);
    trainer.feed(text);
    const Json model = Json::parse(trainer.train()).at("model");
    std::vector<Pair> learnt;
    for (const Json& m : model.at("merges")) {
      const std::string merge = m;
      const std::size_t space = merge.find(' ');
      learnt.emplace_back(merge.substr(0, space), merge.substr(space + 1));
    }
    EXPECT_EQ(learnt, plain_training(words, learnt.size(), 2)) << text;
    EXPECT_LE(model.at("vocab").size(), 298u);
    if (learnt.size() < 40) {
      EXPECT_EQ(plain_training(words, 1000, 2).size(), learnt.size());  // no pair was left
    }
  }
}

TEST(BpeTrainer, WritesATokenizerThatLoadsAndRoundTrips) {
  BpeTrainerOptions options;
  options.vocab_size = 300;
  options.special_tokens = {"<s>", "</s>", "<|eot_id|>"};
  const std::string text =
      "the cat sat on the mat, the café — 世界 12345\n\n  the end 🙂 the cat sat on the mat";
  const auto train = [&](bool reversed) {
    BpeTrainer trainer(options);
    trainer.feed(reversed ? "zebra zebra" : text);
    trainer.feed(reversed ? text : "zebra zebra");
    return trainer.train();
  };
  const std::string json = train(false);
  EXPECT_EQ(json, train(true)) << "the order of texts must not matter";
  const auto t = Tokenizer::from_json(json);
  EXPECT_EQ(t->bos(), 0);
  EXPECT_EQ(t->eos().front(), 1);
  EXPECT_TRUE(t->adds_bos());
  EXPECT_LE(t->vocab_size(), 300);
  EXPECT_GT(t->vocab_size(), 270);
  EXPECT_EQ(t->token(0), "<s>");
  EXPECT_EQ(t->type(2), TokenType::kControl);
  const auto ids = t->encode(text);
  EXPECT_EQ(ids.front(), 0);
  EXPECT_EQ(t->decode(ids), text);
  EXPECT_LT(ids.size(), text.size());
  EXPECT_EQ(t->encode("<s>").size(), 1 + t->encode("<s>", {false, false}).size()) << "plain text stays text";
}

TEST(BpeTrainer, EmptyTextAndLimits) {
  BpeTrainer nothing;
  EXPECT_EQ(Tokenizer::from_json(nothing.train())->vocab_size(), 258);
  BpeTrainerOptions options;
  options.vocab_size = 257;
  BpeTrainer small(options);
  BITNET_EXPECT_ERROR(small.train(), ErrorCode::kInvalidArgument, "vocab_size 257");
  BpeTrainer trainer;
  BITNET_EXPECT_ERROR(trainer.feed("ab\x80"), ErrorCode::kInvalidArgument, "byte 2");
  options.special_tokens = {"<s>", "<s>"};
  BITNET_EXPECT_ERROR(BpeTrainer{options}, ErrorCode::kInvalidArgument, "<s>");
}

}  // namespace
}  // namespace bitnet
