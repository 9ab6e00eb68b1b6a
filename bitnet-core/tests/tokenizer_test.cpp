// Tokenizers against ids that Hugging Face's tokenizers and Google's sentencepiece gave
// (tests/data/tokenizers, made by make_fixtures.py there), round trips between the formats, streaming,
// refusals. Real vocabularies are in tokenizer_data_test.cpp, damaged files in tokenizer_damage_test.cpp.
#include "bitnet/core/text/tokenizer.hpp"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/core/text/chat_template.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using Json = nlohmann::json;
using TokenizerPtr = std::shared_ptr<const Tokenizer>;
using Ids = std::vector<TokenId>;

std::filesystem::path fixture(const std::string& name) {
  return testing::source_path("tests/data/tokenizers/" + name);
}
std::string fixture_text(const std::string& name) { return read_file(fixture(name + ".json")); }
TokenizerPtr load(const std::string& name) { return Tokenizer::load(fixture(name + ".json")); }
TokenizerPtr via_gguf(const Tokenizer& t) {
  GgufMetadata metadata;
  t.to_gguf(metadata);
  return Tokenizer::from_gguf(metadata);
}

EncodeOptions plain(bool special = false) {
  EncodeOptions o;
  o.add_bos = false;
  o.parse_special = special;
  return o;
}

void expect_same_ids(const Tokenizer& a, const Tokenizer& b, const Json& cases) {
  for (const Json& c : cases.at("cases")) {
    const std::string text = c.at("text");
    for (const bool special : {false, true})
      EXPECT_EQ(a.encode(text, plain(special)), b.encode(text, plain(special))) << text;
    EXPECT_EQ(a.encode(text), b.encode(text)) << text;
    EXPECT_EQ(a.decode(a.encode(text)), b.decode(b.encode(text))) << text;
  }
  EXPECT_EQ(a.bos(), b.bos());
  EXPECT_EQ(a.adds_bos(), b.adds_bos());
}

class HuggingFace : public ::testing::TestWithParam<const char*> {};

TEST_P(HuggingFace, SameIdsAndText) {
  const auto t = load(GetParam());
  const Json cases = Json::parse(fixture_text(std::string(GetParam()) + ".cases"));
  EXPECT_EQ(t->adds_bos(), cases.at("adds_bos").get<bool>());
  ASSERT_GT(cases.at("cases").size(), 40u);
  for (const Json& c : cases.at("cases")) {
    const std::string text = c.at("text");
    EXPECT_EQ(t->encode(text, plain()), c.at("ids").get<Ids>()) << text;
    EXPECT_EQ(t->encode(text, plain(true)), c.at("special").get<Ids>()) << text;
    EXPECT_EQ(t->decode(c.at("ids").get<Ids>()), c.at("decoded").get<std::string>()) << text;
  }
}

TEST_P(HuggingFace, WrittenJsonReadsTheSame) {
  const auto t = load(GetParam());
  const std::string json = t->to_json();
  const auto again = Tokenizer::from_json(json, t->config_json());
  expect_same_ids(*t, *again, Json::parse(fixture_text(std::string(GetParam()) + ".cases")));
  EXPECT_EQ(again->to_json(), json);
  ASSERT_EQ(again->vocab_size(), t->vocab_size());
  for (TokenId id = 0; id < t->vocab_size(); ++id) {
    EXPECT_EQ(again->token(id), t->token(id));
    EXPECT_EQ(again->type(id), t->type(id));
  }
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, HuggingFace,
                         ::testing::Values("llama3", "gpt2", "llama2", "digits", "digit_runs", "merged_next",
                                           "merged_previous", "contiguous", "removed", "inverted",
                                           "metaspace_first", "metaspace_always"),
                         [](const auto& i) { return std::string(i.param); });

class SentencePiece : public ::testing::TestWithParam<const char*> {};

TEST_P(SentencePiece, SameIdsAndTextFromEveryFormat) {
  const std::string name = GetParam();
  const auto t = Tokenizer::load(fixture(name + ".model"));
  const Json cases = Json::parse(fixture_text(name + ".cases"));
  EXPECT_TRUE(t->adds_bos());
  EXPECT_EQ(t->bos(), 1);
  EXPECT_THAT(t->eos(), ::testing::ElementsAre(2));
  for (const Json& c : cases.at("cases")) {
    const std::string text = c.at("text");
    EXPECT_EQ(t->encode(text, plain()), c.at("ids").get<Ids>()) << text;
    EXPECT_EQ(t->decode(c.at("ids").get<Ids>()), c.at("decoded").get<std::string>()) << text;
  }
  expect_same_ids(*t, *via_gguf(*t), cases);
  const auto json = Tokenizer::from_json(t->to_json(), t->config_json());
  expect_same_ids(*t, *json, cases);
  expect_same_ids(*t, *via_gguf(*json), cases);
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, SentencePiece, ::testing::Values("spm", "spm_raw", "spm_no_prefix"),
                         [](const auto& i) { return std::string(i.param); });

TEST(Tokenizer, GgufRoundTrips) {
  for (const char* name : {"llama3", "llama2"}) {
    const auto t = load(name);
    const auto g = via_gguf(*t);
    const Json cases = Json::parse(fixture_text(std::string(name) + ".cases"));
    expect_same_ids(*t, *g, cases);
    expect_same_ids(*t, *Tokenizer::from_json(g->to_json(), g->config_json()), cases);
  }
  GgufMetadata metadata;
  BITNET_EXPECT_ERROR(load("digits")->to_gguf(metadata), ErrorCode::kUnsupported, "tokenizer.ggml.pre");
  BITNET_EXPECT_ERROR(load("gpt2")->to_gguf(metadata), ErrorCode::kUnsupported, "lstrip");
  BITNET_EXPECT_ERROR(load("metaspace_first")->to_gguf(metadata), ErrorCode::kUnsupported, "GGUF");
}

// add_eos_token says what a whole text ends with; a prompt is only ended when asked for.
TEST(Tokenizer, AddsEosOnlyWhereTheFileSaysSoAndTheCallerAsks) {
  const std::string json = fixture_text("llama2");
  const auto t = Tokenizer::from_json(json, R"({"add_eos_token": true, "eos_token": "</s>"})");
  const auto plain_file = Tokenizer::from_json(json);
  EXPECT_TRUE(t->adds_eos());
  EXPECT_FALSE(plain_file->adds_eos());
  EncodeOptions ended;
  ended.add_eos = true;
  Ids expected = plain_file->encode("a b");
  EXPECT_EQ(plain_file->encode("a b", ended), expected);
  EXPECT_EQ(t->encode("a b"), expected);
  expected.push_back(*t->find("</s>"));
  EXPECT_EQ(t->encode("a b", ended), expected);
  EXPECT_EQ(via_gguf(*t)->encode("a b", ended), expected);
  EXPECT_EQ(Tokenizer::from_json(t->to_json(), t->config_json())->encode("a b", ended), expected);
}

// Merging as the papers define it: again and again the pair with the lowest rank, leftmost first.
TEST(Tokenizer, AgreesWithPlainMergingOnRandomPieces) {
  const auto t = load("removed");  // no ignore_merges; text without spaces is one piece
  const Json model = Json::parse(fixture_text("removed")).at("model");
  std::map<std::pair<std::string, std::string>, std::size_t> ranks;
  for (const Json& m : model.at("merges"))
    ranks.emplace(std::pair<std::string, std::string>(m[0], m[1]), ranks.size());
  Rng rng(7);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::string> symbols;
    std::string text;
    for (std::uint64_t n = rng.below(300) + 1; n > 0; --n) {
      text += "abeimopst,."[rng.below(11)];
      symbols.emplace_back(1, text.back());
    }
    while (true) {
      std::size_t best = ranks.size(), at = 0;
      for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
        const auto found = ranks.find({symbols[i], symbols[i + 1]});
        if (found != ranks.end() && found->second < best) best = found->second, at = i;
      }
      if (best == ranks.size()) break;
      symbols[at] += symbols[at + 1];
      symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
    Ids expected;
    for (const std::string& s : symbols) expected.push_back(model.at("vocab").at(s).get<TokenId>());
    EXPECT_EQ(t->encode(text, plain()), expected) << text;
  }
}

TEST(Tokenizer, LongPiecesAreNotQuadratic) {
  const std::size_t n = 1'000'000;  // minutes if they were
  for (const char* name : {"llama3", "llama2"}) {
    const auto t = load(name);
    for (const char c : {'a', ' ', '\n', '1'}) {
      const std::string text(n, c);
      EXPECT_EQ(t->decode(t->encode(text, plain())), text);
    }
  }
}

TEST(Tokenizer, InvalidUtf8IsAnErrorWithItsPlace) {
  const auto t = load("llama3");
  for (const auto& [text, at] : {std::pair<std::string, int>{"ab\xff", 2},
                                 {"\xc3", 0},
                                 {"é\xed\xa0\x80", 2},
                                 {"x\xc0\x80", 1},
                                 {"\xf4\x90\x80\x80", 0},
                                 {"\xe2\x82", 0}})
    BITNET_EXPECT_ERROR(t->encode(text), ErrorCode::kInvalidArgument,
                        "invalid UTF-8 at byte " + std::to_string(at));
}

TEST(Tokenizer, DecodingRepairsWhatIsNoUtf8) {
  const auto t = load("llama3");
  const auto byte = [&](unsigned char b) {
    for (TokenId id = 0; id < t->vocab_size(); ++id)
      if (t->token_bytes(id) == std::string(1, static_cast<char>(b))) return id;
    return TokenId{-1};
  };
  EXPECT_EQ(t->decode(Ids{byte(0xF0), byte(0x9F), byte('a')}), "\uFFFDa");
  EXPECT_EQ(t->decode(Ids{byte(0xE2), byte(0x82)}), "\uFFFD");
  EXPECT_EQ(t->decode(Ids{byte(0x80), byte(0xFF)}), "\uFFFD\uFFFD");
  EXPECT_EQ(t->decode(Ids{0, byte('a'), 1}), "a");
  EXPECT_EQ(t->decode(Ids{0, byte('a'), 1}, true), "<|begin_of_text|>a<|end_of_text|>");
  BITNET_EXPECT_ERROR(t->decode(Ids{99999}), ErrorCode::kInvalidArgument, "99999");
  BITNET_EXPECT_ERROR(t->token(-1), ErrorCode::kInvalidArgument, "-1");
}

TEST(StreamDecoder, NeverEmitsHalfACharacterAndAddsUpToTheWhole) {
  Rng rng(11);
  for (const char* name : {"llama3", "llama2"}) {
    const auto t = load(name);
    for (int round = 0; round < 300; ++round) {
      Ids ids;
      for (std::uint64_t n = rng.below(40); n > 0; --n)
        ids.push_back(static_cast<TokenId>(rng.below(static_cast<std::uint64_t>(t->vocab_size()))));
      if (round % 2) ids = t->encode("🙂é世界 " + t->decode(ids) + "\U00010348", plain());
      StreamDecoder stream(t);
      std::string text;
      for (const TokenId id : ids) {
        const std::string part = stream.push(id);
        EXPECT_NO_THROW((void)t->encode(part, plain())) << "not whole characters";
        text += part;
      }
      EXPECT_EQ(text + stream.finish(), t->decode(ids));
    }
  }
}

TEST(StreamDecoder, KeepsTheLeadingSpaceOfAContinuation) {
  const auto t = load("llama2");
  const Ids ids = t->encode("the", plain());
  EXPECT_EQ(StreamDecoder(t).push(ids[0]), t->decode(Ids{ids[0]}));
  EXPECT_EQ(StreamDecoder(t, false, false).push(ids[0]), " " + t->decode(Ids{ids[0]}));
}

TEST(Tokenizer, ConfigGivesBosEosAndTemplate) {
  const std::string json = fixture_text("llama3");
  const auto bare = Tokenizer::from_json(json);
  EXPECT_EQ(bare->bos(), 0);
  EXPECT_THAT(bare->eos(), ::testing::ElementsAre(1, 4));  // end of text, end of turn
  const auto t = Tokenizer::from_json(
      json,
      R"({"bos_token": {"content": "<|end_of_text|>"}, "eos_token": "<|eot_id|>", "add_bos_token": false,
                "chat_template": "T"})");
  EXPECT_EQ(t->bos(), 1);
  EXPECT_EQ(t->eos().front(), 4);
  EXPECT_FALSE(t->adds_bos());
  EXPECT_EQ(t->chat_template(), "T");
  EXPECT_EQ(t->encode("a"), t->encode("a", plain()));
  BITNET_EXPECT_ERROR(Tokenizer::from_json(json, R"({"bos_token": "<nowhere>"})"), ErrorCode::kCorruptFile,
                      "bos_token");
}

// A change to a fixture, and what the error has to say.
struct Refusal {
  const char* pointer;
  const char* value;
  ErrorCode code;
  const char* text;
};

TEST(Tokenizer, WhatIsNotKnownIsRefusedByName) {
  const auto unsupported = ErrorCode::kUnsupported, corrupt = ErrorCode::kCorruptFile;
  const std::vector<Refusal> refusals = {
      {"/model/type", R"("Unigram")", unsupported, "Unigram"},
      {"/model/dropout", "0.1", unsupported, "dropout"},
      {"/model/end_of_word_suffix", R"("</w>")", unsupported, "end_of_word_suffix"},
      {"/model/vocab/a", "-1", corrupt, "vocab"},
      {"/model/vocab/a", "9000000", corrupt, "far beyond"},
      {"/model/vocab/a", "1", corrupt, "taken by"},
      {"/model/merges/3", R"("abc")", corrupt, "merges[3]"},
      {"/model/merges/3", R"(["a"])", corrupt, "merges[3]"},
      {"/model/merges/3", R"("zz qq")", corrupt, "not in the vocabulary"},
      {"/model/merges/3", R"("! !")", corrupt, "merge 3"},
      {"/normalizer", R"({"type": "NFC"})", unsupported, "NFC"},
      {"/pre_tokenizer", R"({"type": "BertPreTokenizer"})", unsupported, "BertPreTokenizer"},
      {"/pre_tokenizer/pretokenizers/0/behavior", R"("Sideways")", unsupported, "Sideways"},
      {"/pre_tokenizer/pretokenizers/0/pattern", R"({"Regex": "\\w+"})", unsupported, "'\\w'"},
      {"/pre_tokenizer/pretokenizers/0/pattern", R"({"Regex": "(a"})", unsupported, "(a"},
      {"/pre_tokenizer/pretokenizers/0/pattern", R"({"Regex": "^a"})", unsupported, "anchor"},
      {"/pre_tokenizer/pretokenizers/0/pattern", R"({"Regex": "\\p{Nonsense}"})", unsupported, "Nonsense"},
      {"/decoder", R"({"type": "WordPiece"})", unsupported, "WordPiece"},
      {"/decoder", "null", unsupported, "decoder"},
      {"/post_processor", R"({"type": "BertProcessing"})", unsupported, "BertProcessing"},
      {"/added_tokens/0/single_word", "true", unsupported, "single_word"},
      {"/added_tokens/0/id", "77", corrupt, "another id"},
      {"/added_tokens", "{}", corrupt, "expected an array"},
  };
  for (const Refusal& r : refusals) {
    Json json = Json::parse(fixture_text("llama3"));
    json[Json::json_pointer(r.pointer)] = Json::parse(r.value);
    SCOPED_TRACE(r.pointer);
    BITNET_EXPECT_ERROR(Tokenizer::from_json(json.dump()), r.code, r.text);
  }
  BITNET_EXPECT_ERROR(Tokenizer::from_json("{"), corrupt, "tokenizer.json");
  BITNET_EXPECT_ERROR(Tokenizer::load(fixture("spm_unigram.model")), unsupported, "only BPE");
  BITNET_EXPECT_ERROR(Tokenizer::load(fixture("spm_user_defined.model")), unsupported, "user-defined pieces");
  BITNET_EXPECT_ERROR(Tokenizer::load(fixture("nowhere")), ErrorCode::kNotFound, "nowhere");
  BITNET_EXPECT_ERROR(Tokenizer::load(fixture("make_fixtures.py")), unsupported, "expected a directory");
}

TEST(Tokenizer, SpecialTokensMayBeMarkedNormalizedWhereThatChangesNothing) {
  Json json = Json::parse(fixture_text("llama2"));
  for (Json& token : json["added_tokens"]) token["normalized"] = true;
  const auto marked = Tokenizer::from_json(json.dump()), plain = Tokenizer::from_json(fixture_text("llama2"));
  for (const std::string text : {"<s>a b</s><s> c </s>", "  the <s> fox", "<unk>", ""})
    for (const bool special : {false, true})
      EXPECT_EQ(marked->encode(text, {.parse_special = special}),
                plain->encode(text, {.parse_special = special}))
          << text;
  const auto refused = [&](const char* key, const Json& value) {
    Json other = json;
    other["added_tokens"][1][key] = value;
    if (value.is_string()) {  // the content is in the vocabulary too
      other["model"]["vocab"].erase("<s>");
      other["model"]["vocab"][value.get<std::string>()] = 1;
      other["post_processor"] = nullptr;
    }
    SCOPED_TRACE(other["added_tokens"][1].dump());
    BITNET_EXPECT_ERROR(Tokenizer::from_json(other.dump()), ErrorCode::kUnsupported, "normalized text");
    other["added_tokens"][1]["normalized"] = false;
    EXPECT_NO_THROW(Tokenizer::from_json(other.dump()));
  };
  refused("special", false);
  refused("content", "<s >");
  refused("content", "<\u2581s>");
}

TEST(Tokenizer, ACostlyPatternIsAnErrorAndNotAHang) {
  Json json = Json::parse(fixture_text("llama3"));
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"Regex", "(?:a|a|b)*[cd]"}};
  const auto t = Tokenizer::from_json(json.dump());
  BITNET_EXPECT_ERROR(t->encode(std::string(60, 'a')), ErrorCode::kUnsupported, "too costly");
  // No place of the text is costly by itself, but there are many.
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"Regex", "a*a*[cd]"}};
  const auto quadratic = Tokenizer::from_json(json.dump());
  BITNET_EXPECT_ERROR(quadratic->encode(std::string(3000, 'a')), ErrorCode::kUnsupported, "too costly");
  // The same text is found to be one match where it is followed by what it needs.
  EXPECT_EQ(quadratic->decode(quadratic->encode(std::string(3000, 'a') + "c")), std::string(3000, 'a') + "c");
  // Few steps for each byte, and memory for each step.
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {{"Regex", "(?:a|b)*[cd]"}};
  const auto deep = Tokenizer::from_json(json.dump());
  BITNET_EXPECT_ERROR(deep->encode(std::string(4 << 20, 'a') + "c"), ErrorCode::kUnsupported, "too costly");
}

// The llama3 fixture with user-defined tokens; their ids begin where its own end.
TokenizerPtr with_tokens(const std::vector<std::string>& contents) {
  Json json = Json::parse(fixture_text("llama3"));
  const auto first = load("llama3")->vocab_size();
  for (std::size_t i = 0; i < contents.size(); ++i)
    json["added_tokens"].push_back({{"id", first + static_cast<std::int64_t>(i)},
                                    {"content", contents[i]},
                                    {"special", false},
                                    {"normalized", false}});
  return Tokenizer::from_json(json.dump());
}

TEST(AddedTokens, LeftmostAndLongestAsBySearchAtEveryPlace) {
  const auto base = load("llama3");
  Rng rng(11);
  const auto random_text = [&](std::uint64_t length) {
    std::string text;
    for (std::uint64_t i = 0; i < length; ++i) text += "ab "[rng.below(3)];
    return text;
  };
  for (int round = 0; round < 60; ++round) {
    std::vector<std::string> contents;
    while (contents.size() < 5) {
      const std::string content = random_text(2 + rng.below(5));
      if (std::find(contents.begin(), contents.end(), content) == contents.end() && !base->find(content))
        contents.push_back(content);
    }
    const auto t = with_tokens(contents);
    const std::string text = random_text(60);
    Ids expected;
    std::string between;
    const auto flush = [&] {
      const Ids ids = base->encode(between, plain());
      expected.insert(expected.end(), ids.begin(), ids.end());
      between.clear();
    };
    for (std::size_t pos = 0; pos < text.size();) {
      const std::string* best = nullptr;
      for (const std::string& content : contents)
        if (text.compare(pos, content.size(), content) == 0 && (!best || content.size() > best->size()))
          best = &content;
      if (best) {
        flush();
        expected.push_back(*t->find(*best));
      } else {
        between += text[pos];
      }
      pos += best ? best->size() : 1;
    }
    flush();
    EXPECT_EQ(t->encode(text, plain()), expected) << text;
  }
}

// A search that begins anew at every place would take billions of steps here.
TEST(AddedTokens, LongOnesDoNotMakeATextCostly) {
  const std::size_t n = std::size_t{1} << 16;
  const std::string arrow = "\xE2\x86\x92";
  std::string run;
  for (std::size_t i = 0; i < n; ++i) run += arrow;
  const auto t = with_tokens({arrow, run + "!", "?" + run});
  Ids expected(n, *t->find(arrow));
  expected.push_back(*t->find(run + "!"));
  EXPECT_EQ(t->encode(run + run + "!", plain()), expected);
  expected.insert(expected.begin(), *t->find("?" + run));
  EXPECT_EQ(t->encode("?" + run + run + run + "!", plain()), expected);
}

TEST(Tokenizer, LoadFindsTheFilesOfADirectory) {
  const testing::TempDir dir;
  BITNET_EXPECT_ERROR(Tokenizer::load(dir.path()), ErrorCode::kNotFound, "neither");
  std::filesystem::copy(fixture("spm.model"), dir / "tokenizer.model");
  EXPECT_EQ(Tokenizer::load(dir.path())->vocab_size(), 420);
  write_file(dir / "tokenizer_config.json", R"({"add_bos_token": false, "chat_template": "T"})");
  EXPECT_FALSE(Tokenizer::load(dir.path())->adds_bos());
  EXPECT_EQ(Tokenizer::load(dir.path())->chat_template(), "T");
  const auto t = load("llama3");
  write_file(dir / "tokenizer.json", t->to_json());
  write_file(dir / "tokenizer_config.json", t->config_json());
  EXPECT_EQ(Tokenizer::load(dir.path())->encode("the age"), t->encode("the age"));
  GgufMetadata metadata;
  t->to_gguf(metadata);
  GgufWriter(dir / "vocab.gguf", metadata, {}).finish();
  EXPECT_EQ(Tokenizer::load(dir / "vocab.gguf")->encode("the age"), t->encode("the age"));
  write_file(dir / "tokenizer.json", "[]");
  BITNET_EXPECT_ERROR(Tokenizer::load(dir.path()), ErrorCode::kCorruptFile,
                      (dir / "tokenizer.json").string());
}

// The published template of 2B-4T, as newer transformers save it: in a file of its own.
TEST(Tokenizer, LoadReadsTheTemplateFile) {
  const std::string chat =
      "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = message['role'] "
      "| "
      "capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content "
      "= bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
      "{{ 'Assistant: ' }}{% endif %}";
  for (const auto& [from, to] :
       {std::pair{"llama3.json", "tokenizer.json"}, {"spm.model", "tokenizer.model"}}) {
    const testing::TempDir dir;
    std::filesystem::copy(fixture(from), dir / to);
    EXPECT_EQ(Tokenizer::load(dir.path())->chat_template(), "");
    write_file(dir / "chat_template.jinja", chat);
    EXPECT_EQ(Tokenizer::load(dir.path())->chat_template(), chat);
    // It comes before an older one.
    write_file(dir / "tokenizer_config.json", R"({"add_bos_token": false, "chat_template": "T"})");
    const auto t = Tokenizer::load(dir / to);
    EXPECT_EQ(t->chat_template(), chat);
    EXPECT_FALSE(t->adds_bos());
    EXPECT_EQ(ChatTemplate::for_model(*t, "BitNetForCausalLM")->name(), "bitnet");
    GgufMetadata metadata;
    t->to_gguf(metadata);
    EXPECT_EQ(metadata.string("tokenizer.chat_template"), chat);
    write_file(dir / "chat_template.jinja", "x\xff");
    BITNET_EXPECT_ERROR(Tokenizer::load(dir.path()), ErrorCode::kCorruptFile,
                        "chat_template.jinja: invalid UTF-8 at byte 1");
  }
}

TEST(Tokenizer, GgufPreIsNeverGuessed) {
  GgufMetadata good;
  load("llama3")->to_gguf(good);
  const auto without = [&](std::string_view key) {
    GgufMetadata m;
    for (const auto& [k, v] : good.entries())
      if (k != key) m.set(k, v);
    return m;
  };
  BITNET_EXPECT_ERROR(Tokenizer::from_gguf(without("tokenizer.ggml.pre")), ErrorCode::kUnsupported,
                      "pre is missing");
  GgufMetadata bad = good;
  bad.set_string("tokenizer.ggml.pre", "mystery");
  BITNET_EXPECT_ERROR(Tokenizer::from_gguf(bad), ErrorCode::kUnsupported, "mystery");
  bad = good;
  bad.set_string("tokenizer.ggml.model", "bert");
  BITNET_EXPECT_ERROR(Tokenizer::from_gguf(bad), ErrorCode::kUnsupported, "bert");
  bad = good;
  bad.set_u32("tokenizer.ggml.eos_token_id", 100000);
  BITNET_EXPECT_ERROR(Tokenizer::from_gguf(bad), ErrorCode::kCorruptFile, "eos_token_id");
  BITNET_EXPECT_ERROR(Tokenizer::from_gguf(without("tokenizer.ggml.tokens")), ErrorCode::kCorruptFile,
                      "tokens");
  BITNET_EXPECT_ERROR(Tokenizer::from_gguf(without("tokenizer.ggml.merges")), ErrorCode::kCorruptFile,
                      "merges");
  BITNET_EXPECT_ERROR(Tokenizer::from_gguf(GgufMetadata()), ErrorCode::kNotFound, "no vocabulary");
}

// The official 2B-4T file has no `pre`: architecture bitnet* with 128256 tokens means Llama 3's.
TEST(Tokenizer, MissingPreOfTheOfficialFile) {
  GgufMetadata m;
  load("llama3")->to_gguf(m);
  auto tokens = *m.strings("tokenizer.ggml.tokens");
  auto types = *m.integers("tokenizer.ggml.token_type");
  while (tokens.size() < 128256)
    tokens.push_back("filler" + std::to_string(tokens.size())), types.push_back(3);
  GgufMetadata official;
  official.set_string("general.architecture", "bitnet-b1.58");
  official.set_string("tokenizer.ggml.model", "gpt2");
  official.set_strings("tokenizer.ggml.merges", *m.strings("tokenizer.ggml.merges"));
  official.set_strings("tokenizer.ggml.tokens", tokens);
  official.set_i32s("tokenizer.ggml.token_type", std::vector<std::int32_t>(types.begin(), types.end()));
  const auto t = Tokenizer::from_gguf(official);
  EXPECT_EQ(t->encode("the age of 12345"), load("llama3")->encode("the age of 12345"));
  official.set_string("general.architecture", "llama");
  BITNET_EXPECT_ERROR(Tokenizer::from_gguf(official), ErrorCode::kUnsupported, "pre is missing");
}

}  // namespace
}  // namespace bitnet
