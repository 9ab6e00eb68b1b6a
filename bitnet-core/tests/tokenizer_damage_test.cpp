// Damaged tokenizer files: cut off, with flipped bits, with parts exchanged. Nothing but an Error may come of
// it.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/testing/mutate.hpp"
#include "bitnet/testing/testing.hpp"
#include "tokenizer_reader.hpp"

namespace bitnet {
namespace {

using Json = nlohmann::json;

std::string fixture(const std::string& name) {
  return read_file(testing::source_path("tests/data/tokenizers/" + name));
}

TEST(DamagedTokenizers, CutOff) {
  for (const char* name : {"llama3.json", "spm.model"}) {
    const std::string whole = fixture(name);
    EXPECT_TRUE(fuzzing::read_tokenizer(whole));
    for (std::size_t n = 0; n < whole.size() - 2; n += 7) {
      const bool accepted = fuzzing::read_tokenizer(whole.substr(0, n));
      EXPECT_TRUE(!accepted || whole[0] != '{') << n;
    }
  }
}

TEST(DamagedTokenizers, MutatedBytes) {
  Rng rng(3);
  for (const char* name :
       {"llama3.json", "llama2.json", "metaspace_first.json", "spm.model", "spm_raw.model"}) {
    const std::string whole = fixture(name);
    for (int i = 0; i < 400; ++i) fuzzing::read_tokenizer(testing::mutate(whole, rng));
  }
}

// Replaces one value anywhere in the file by another kind of value.
TEST(DamagedTokenizers, ExchangedValues) {
  const std::vector<Json> values = {nullptr,
                                    true,
                                    -1,
                                    3,
                                    1e300,
                                    std::uint64_t{1} << 63,
                                    "",
                                    "x",
                                    " ",
                                    Json::array(),
                                    Json::object(),
                                    Json::array({1, "a"}),
                                    {{"type", "Sequence"}},
                                    {{"type", "ByteLevel"}},
                                    std::string(3, '\0')};
  Rng rng(5);
  for (const char* name : {"llama3.json", "llama2.json", "digits.json", "metaspace_always.json"}) {
    const Json whole = Json::parse(fixture(name));
    std::vector<std::string> places;
    const Json flat = whole.flatten();
    for (auto it = flat.begin(); it != flat.end(); ++it) {
      std::string place = it.key();
      if (place.rfind("/model/vocab/", 0) == 0 && rng.below(20) != 0) continue;
      if (place.rfind("/model/merges/", 0) == 0 && rng.below(20) != 0) continue;
      for (; !place.empty(); place.erase(place.rfind('/'))) places.push_back(place);
    }
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    for (const std::string& place : places) {
      for (int tries = 0; tries < 5; ++tries) {
        Json damaged = whole;
        damaged[Json::json_pointer(place)] = values[rng.below(values.size())];
        fuzzing::read_tokenizer(damaged.dump());
      }
    }
  }
}

TEST(DamagedTokenizers, GgufKeys) {
  Rng rng(9);
  for (const char* name : {"llama3.json", "llama2.json"}) {
    GgufMetadata good;
    Tokenizer::from_json(fixture(name))->to_gguf(good);
    for (int i = 0; i < 400; ++i) {
      GgufMetadata damaged;
      const std::size_t victim = rng.below(good.entries().size());
      for (std::size_t k = 0; k < good.entries().size(); ++k) {
        const auto& [key, value] = good.entries()[k];
        if (k == victim) {
          switch (rng.below(5)) {
            case 0:
              continue;  // missing
            case 1:
              damaged.set_string(key, "x");
              continue;
            case 2:
              damaged.set_i32(key, static_cast<std::int32_t>(rng.below(900)) - 100);
              continue;
            case 3:
              damaged.set_strings(key, {"a", "\xff", "a b", ""});
              continue;
            default:
              damaged.set_i32s(key, std::vector<std::int32_t>(rng.below(600), 3));
              continue;
          }
        }
        damaged.set(key, value);
      }
      try {
        fuzzing::use_tokenizer(*Tokenizer::from_gguf(damaged));
      } catch (const Error&) {
      }
    }
  }
}

TEST(DamagedTokenizers, NormalizersThatMultiplyTheText) {
  const Json replace = {
      {"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", std::string(1000, 'a')}};
  Json file = Json::parse(fixture("llama2.json"));
  file["normalizer"] = {{"type", "Sequence"}, {"normalizers", Json::array({replace})}};
  EXPECT_NO_THROW(Tokenizer::from_json(file.dump())->encode("a"));
  const std::string many(1000, 'a');
  BITNET_EXPECT_ERROR(Tokenizer::from_json(file.dump())->encode(many), ErrorCode::kUnsupported,
                      "step 1 of 1");
  for (int i = 0; i < 7; ++i) file["normalizer"]["normalizers"].push_back(replace);
  const auto t = Tokenizer::from_json(file.dump());
  EXPECT_NO_THROW(t->encode("b"));
  BITNET_EXPECT_ERROR(t->encode("a"), ErrorCode::kUnsupported, "step 2 of 8");
  // The limit is one for the whole text, not for each part between added tokens.
  file["normalizer"]["normalizers"] = Json::array({replace});
  file["added_tokens"].push_back({{"id", file["model"]["vocab"].size() + file["added_tokens"].size()},
                                  {"content", "|"},
                                  {"special", false},
                                  {"normalized", false}});
  std::string parts;
  for (int i = 0; i < 1000; ++i) parts += "a|";
  BITNET_EXPECT_ERROR(Tokenizer::from_json(file.dump())->encode(parts), ErrorCode::kUnsupported,
                      "step 1 of 1");
}

TEST(DamagedTokenizers, DeepNesting) {
  const std::string deep = std::string(300000, '[') + std::string(300000, ']');
  for (const std::string type : {"Digits", "Punctuation"}) {
    Json file = Json::parse(fixture("llama3.json"));
    file["pre_tokenizer"] = {{"type", type}, {"x", "here"}};
    std::string text = file.dump();
    text.replace(text.find("\"here\""), 6, deep);
    BITNET_EXPECT_ERROR(Tokenizer::from_json(text), ErrorCode::kCorruptFile, "tokenizer.json: JSON");
  }
  const std::string config = "{\"chat_template\":" + deep + "}";
  BITNET_EXPECT_ERROR(Tokenizer::from_json(fixture("llama3.json"), config), ErrorCode::kCorruptFile,
                      "tokenizer_config.json: JSON");
}

TEST(DamagedTokenizers, KeysTwice) {
  std::string text = fixture("llama3.json");
  const std::size_t vocab = text.find('{', text.find("\"vocab\""));
  text.insert(vocab + 1, "\"a\": 3, ");
  BITNET_EXPECT_ERROR(Tokenizer::from_json(text), ErrorCode::kCorruptFile, "key 'a' occurs twice");
}

TEST(DamagedTokenizers, NulBytes) {
  const std::string good = fixture("llama3.json");
  BITNET_EXPECT_ERROR(Tokenizer::from_json(good + std::string("\n\0 no JSON", 10)), ErrorCode::kCorruptFile,
                      "a NUL byte");
  BITNET_EXPECT_ERROR(Tokenizer::from_json(good, std::string("{}\n \0", 5)), ErrorCode::kCorruptFile,
                      "tokenizer_config.json: JSON: parse error at line 2, column 2: a NUL byte");
}

// Holes cost no disk, but would cost memory.
TEST(DamagedTokenizers, HugeFiles) {
  const testing::TempDir dir;
  write_file(dir / "tokenizer.json", fixture("llama3.json"));
  EXPECT_NO_THROW(Tokenizer::load(dir.path()));
  std::filesystem::resize_file(dir / "tokenizer.json", (std::uintmax_t{256} << 20) + 1);
  BITNET_EXPECT_ERROR(Tokenizer::load(dir.path()), ErrorCode::kInvalidArgument, "tokenizer.json");
}

TEST(DamagedTokenizers, ClaimsBeyondTheFile) {
  // A piece that claims more bytes than there are, a number that does not end, an unknown wire type.
  for (const std::string& bytes :
       {std::string("\x0a\xff\xff\xff\xff\x0f"
                    "a"),
        std::string(11, '\xff'), std::string("\x0b\x01"), std::string("\x0a\x02\x0a\x7f"), std::string()})
    BITNET_EXPECT_ERROR(Tokenizer::from_sentencepiece(std::as_bytes(std::span(bytes))),
                        ErrorCode::kCorruptFile, "tokenizer.model");
  const std::string deep = "{\"model\":" + std::string(200000, '[');
  BITNET_EXPECT_ERROR(Tokenizer::from_json(deep), ErrorCode::kCorruptFile, "tokenizer.json");
}

}  // namespace
}  // namespace bitnet
