// A text that comes in pieces has the ids of the whole: every kind of vocabulary, texts made to be cut badly,
// a real text.
#include "bitnet/core/text/stream_encoder.hpp"

#include <algorithm>
#include <functional>
#include <nlohmann/json.hpp>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using Ids = std::vector<TokenId>;
using Json = nlohmann::json;
using TokenizerPtr = std::shared_ptr<const Tokenizer>;

struct Kind {
  std::string name;
  TokenizerPtr tokenizer;
  bool cuts;  ///< whether its rules are known to allow cuts
};

Json fixture(const std::string& name) {
  return Json::parse(read_file(testing::source_path("tests/data/tokenizers/" + name + ".json")));
}

TokenizerPtr edited(const std::string& name, const std::function<void(Json&)>& edit) {
  Json json = fixture(name);
  edit(json);
  return Tokenizer::from_json(json.dump());
}

Json added_token(int id, const std::string& text, bool lstrip, bool rstrip) {
  return {{"id", id},         {"content", text},     {"single_word", false}, {"lstrip", lstrip},
          {"rstrip", rstrip}, {"normalized", false}, {"special", false}};
}

TokenizerPtr with_added(const std::string& name) {
  return edited(name, [](Json& j) {
    const int n = static_cast<int>(j["model"]["vocab"].size() + j["added_tokens"].size());
    j["added_tokens"].push_back(added_token(n, "<keep>", false, false));
    j["added_tokens"].push_back(added_token(n + 1, "<lr>", true, true));
    j["added_tokens"].push_back(added_token(n + 2, ". T", false, false));
    j["added_tokens"].push_back(added_token(n + 3, "e ", false, false));
    j["added_tokens"].push_back(added_token(n + 4, "\n\n", false, false));
  });
}

/// With a token that is the result of a merge of two tokens that are there.
TokenizerPtr with_merge(const std::string& name, const std::string& left, const std::string& right) {
  return edited(name, [&](Json& j) {
    Json& vocab = j["model"]["vocab"];
    const auto next = [&] { return static_cast<int>(vocab.size()); };
    for (const std::string& part : {left, right, left + right})
      if (!vocab.contains(part)) vocab[part] = next();
    Json& merges = j["model"]["merges"];
    merges.insert(merges.begin(), Json::array({left, right}));
  });
}

const std::vector<Kind>& kinds() {
  static const std::vector<Kind> all = [] {
    const auto spm = [](const std::string& name) {
      return Tokenizer::load(testing::source_path("tests/data/tokenizers/" + name + ".model"));
    };
    const auto plain = [](const std::string& name) { return edited(name, [](Json&) {}); };
    const auto split = [](Json& j, const char* from, const char* to) {
      std::string pattern = j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"];
      const std::size_t at = pattern.find(from);
      EXPECT_NE(at, std::string::npos);
      j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] =
          pattern.replace(at, std::string(from).size(), to);
    };
    std::vector<Kind> kinds{
        {"llama3", plain("llama3"), true},
        {"llama3 with added tokens", with_added("llama3"), true},
        {"qwen2", edited("llama3", [&](Json& j) { split(j, "{1,3}", ""); }), true},
        {"another pattern", edited("llama3", [&](Json& j) { split(j, "{1,3}", "{1,2}"); }), false},
        {"llama3, merged",
         edited("llama3",
                [](Json& j) { j["pre_tokenizer"]["pretokenizers"][0]["behavior"] = "MergedWithNext"; }),
         false},
        {"gpt2", plain("gpt2"), true},
        {"gpt2 without prefix",
         edited("gpt2", [](Json& j) { j["pre_tokenizer"]["add_prefix_space"] = false; }), true},
        {"gpt2 without a splitter", edited("gpt2", [](Json& j) { j["pre_tokenizer"]["use_regex"] = false; }),
         false},
        {"llama2", plain("llama2"), true},
        {"llama2 with added tokens", with_added("llama2"), true},
        {"llama2, a token across a space and one across a line",
         edited("llama2",
                [](Json& j) {
                  Json& vocab = j["model"]["vocab"];
                  for (const char* token : {"e▁", "\n", "\na"})
                    if (!vocab.contains(token)) vocab[token] = static_cast<int>(vocab.size());
                  Json& merges = j["model"]["merges"];
                  merges.insert(merges.begin(), {Json::array({"e", "▁"}), Json::array({"\n", "a"})});
                }),
         false},
        {"llama2 with a token across a space", with_merge("llama2", "e", "▁"), true},  // at lines
        {"llama2 with runs of spaces", with_merge("llama2", "▁", "▁"), true},
        {"metaspace_first", plain("metaspace_first"), true},
        {"metaspace_always", plain("metaspace_always"), false},  // it fuses unknown characters
        {"metaspace_always, none fused",
         edited("metaspace_always", [](Json& j) { j["model"]["fuse_unk"] = false; }), true},
        {"metaspace_always, split",
         edited("metaspace_always",
                [](Json& j) {
                  j["model"]["fuse_unk"] = false;
                  j["pre_tokenizer"]["split"] = true;
                }),
         true},
        {"spm", spm("spm"), false},  // it makes runs of spaces one

        {"spm_no_prefix", spm("spm_no_prefix"), true},
        {"spm_raw", spm("spm_raw"), true},
    };
    for (const char* name :
         {"contiguous", "digit_runs", "digits", "inverted", "merged_next", "merged_previous", "removed"})
      kinds.push_back({name, plain(name), false});
    GgufMetadata metadata;
    kinds[0].tokenizer->to_gguf(metadata);
    kinds.push_back({"llama3 of GGUF", Tokenizer::from_gguf(metadata), true});
    return kinds;
  }();
  return all;
}

Ids streamed(const TokenizerPtr& tokenizer, std::string_view text, const EncodeOptions& options,
             const StreamLimits& limits, Rng* rng = nullptr) {
  StreamEncoder encoder(tokenizer, options, limits);
  Ids ids;
  while (!text.empty()) {
    const std::size_t n = rng == nullptr ? text.size() : rng->below(2 * limits.piece) + 1;
    encoder.push(text.substr(0, n), ids);
    text.remove_prefix(std::min(n, text.size()));
  }
  encoder.finish(ids);
  return ids;
}

/// Words, white space of all kinds, characters of one to four bytes, tokens that are looked for in texts.
std::string random_text(Rng& rng) {
  static const char* const parts[] = {"the",
                                      "cat",
                                      "e",
                                      "a",
                                      "I'll",
                                      "'s",
                                      "'",
                                      "12",
                                      "1234567",
                                      ".",
                                      "...",
                                      "!\n",
                                      "\n",
                                      "\n\n",
                                      "\r\n",
                                      " ",
                                      " ",
                                      " ",
                                      "  ",
                                      "   \n ",
                                      "\t",
                                      "\u00a0",
                                      "\u3000",
                                      "\u2028",
                                      "\u180e",
                                      "é",
                                      "世界",
                                      "。\n",
                                      "🙂",
                                      "\u2581",
                                      "\u2581\u2581",
                                      "a\u2581",
                                      "<keep>",
                                      "<lr>",
                                      " <lr> ",
                                      ". T",
                                      "e ",
                                      "</s>",
                                      "<s>",
                                      "<|eot_id|>",
                                      "<|endoftext|>",
                                      "\u0301",
                                      "\ufeff",
                                      "_",
                                      "\x01"};
  std::string text;
  for (std::uint64_t n = rng.below(60); n > 0; --n) text += parts[rng.below(std::size(parts))];
  return text;
}

TEST(StreamEncoder, GivesTheIdsOfTheWholeForEveryVocabulary) {
  Rng rng(3);
  for (const Kind& kind : kinds()) {
    SCOPED_TRACE(kind.name);
    for (int round = 0; round < 1500; ++round) {
      const std::string text = random_text(rng);
      const EncodeOptions options{
          .add_bos = rng.below(2) == 0, .parse_special = rng.below(2) == 0, .add_eos = rng.below(2) == 0};
      const StreamLimits limits{.piece = rng.below(24) + 1};
      ASSERT_EQ(streamed(kind.tokenizer, text, options, limits, &rng), kind.tokenizer->encode(text, options))
          << kind.name << ", pieces of " << limits.piece << ": " << ::testing::PrintToString(text);
    }
  }
}

TEST(StreamEncoder, GivesTheIdsOfARealText) {
  const std::string page = read_file(testing::source_path("tests/data/text/northanger_abbey.txt"));
  std::string text;
  for (int i = 0; i < 70; ++i)
    text += page + std::string(static_cast<std::size_t>(i % 5), i % 2 ? ' ' : '\n');
  ASSERT_GT(text.size(), 2 * StreamLimits{}.piece);
  for (const Kind& kind : kinds()) {
    SCOPED_TRACE(kind.name);
    const Ids whole = kind.tokenizer->encode(text);
    EXPECT_TRUE(streamed(kind.tokenizer, text, {}, {}) == whole);
    if (kind.cuts) {
      EXPECT_TRUE(streamed(kind.tokenizer, text, {}, {.piece = 700, .most = 70'000}) == whole);
    }
  }
}

TEST(StreamEncoder, CutsWhereTheRulesAreKnownAndNowhereElse) {
  std::string words;
  for (int i = 0; i < 500; ++i) words += i % 7 == 6 ? "the age,\n" : "the cat and the ";
  for (const Kind& kind : kinds()) {
    SCOPED_TRACE(kind.name);
    const StreamLimits limits{.piece = 64, .most = 512};
    if (kind.cuts) {
      EXPECT_NO_THROW(EXPECT_EQ(streamed(kind.tokenizer, words, {}, limits), kind.tokenizer->encode(words)));
    } else {
      BITNET_EXPECT_ERROR(streamed(kind.tokenizer, words, {}, limits), ErrorCode::kUnsupported,
                          "the 512 bytes from byte 0 on have no place");
    }
  }
}

TEST(StreamEncoder, ATextWithoutAPlaceToCutIsTakenUpToTheLimit) {
  const TokenizerPtr tokenizer = kinds()[0].tokenizer;
  const StreamLimits limits{.piece = 64, .most = 1000};
  const std::string most(999, 'a');
  EXPECT_EQ(streamed(tokenizer, most, {}, limits), tokenizer->encode(most));
  BITNET_EXPECT_ERROR(streamed(tokenizer, "b b " + most + "aa", {}, limits), ErrorCode::kUnsupported,
                      "the 1000 bytes from byte 3 on have no place");
  const std::string less(990, 'a'), longer = less + " " + less + "\n" + less;
  EXPECT_EQ(streamed(tokenizer, longer, {}, limits), tokenizer->encode(longer));
  for (const StreamLimits bad : {StreamLimits{.piece = 0}, StreamLimits{.piece = 11, .most = 10}})
    BITNET_EXPECT_ERROR(StreamEncoder(tokenizer, {}, bad), ErrorCode::kInvalidArgument,
                        "expected pieces of 1");
}

TEST(StreamEncoder, SaysWhereTheWholeTextIsNoUtf8) {
  const TokenizerPtr tokenizer = kinds()[0].tokenizer;
  const std::string good = "the é and 世界 ";
  std::string text;
  while (text.size() < 5000) text += good;
  for (const std::size_t at : {std::size_t{0}, good.size() * 3, good.size() * 200}) {
    std::string bad = text;
    bad[at] = '\xFF';
    Rng rng(at);
    BITNET_EXPECT_ERROR(streamed(tokenizer, bad, {}, {.piece = 100}, &rng), ErrorCode::kInvalidArgument,
                        "invalid UTF-8 at byte " + std::to_string(at));
  }
  BITNET_EXPECT_ERROR(streamed(tokenizer, text + "\xE4\xB8", {}, {.piece = 100}), ErrorCode::kInvalidArgument,
                      "invalid UTF-8 at byte " + std::to_string(text.size()));
}

/// Another tokenizer than ours has no known places.
class Bytes final : public Tokenizer {
 public:
  std::vector<TokenId> encode(std::string_view text, const EncodeOptions&) const override {
    return {text.begin(), text.end()};
  }
  std::int64_t vocab_size() const noexcept override { return 128; }
  std::string_view token(TokenId) const override { return {}; }
  TokenType type(TokenId) const override { return TokenType::kNormal; }
  std::string token_bytes(TokenId id, bool) const override { return {static_cast<char>(id)}; }
  std::optional<TokenId> find(std::string_view) const override { return {}; }
  bool splits_at_lines() const noexcept override { return false; }
  bool strips_leading_space() const noexcept override { return false; }
  std::shared_ptr<const Tokenizer> with_chat_template(std::string) const override { return nullptr; }
  std::string to_json() const override { return {}; }
  void to_gguf(GgufMetadata&) const override {}
};

TEST(StreamEncoder, TakesATokenizerOfOthersWhole) {
  const auto tokenizer = std::make_shared<const Bytes>();
  EXPECT_EQ(streamed(tokenizer, "a b c", {}, {.piece = 1, .most = 6}), tokenizer->encode("a b c", {}));
  BITNET_EXPECT_ERROR(streamed(tokenizer, "a b c d", {}, {.piece = 1, .most = 6}), ErrorCode::kUnsupported,
                      "6 bytes");
}

}  // namespace
}  // namespace bitnet
