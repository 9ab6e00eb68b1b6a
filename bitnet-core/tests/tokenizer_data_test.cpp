// The three public vocabularies, exact on all 47 of llama.cpp's cases each, from every format that we read or
// write. Needs BITNET_TEST_DATA.
#include <cstdio>
#include <sstream>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using Ids = std::vector<TokenId>;
using TokenizerPtr = std::shared_ptr<const Tokenizer>;

struct Case {
  std::string text;
  Ids ids;
};

// Texts are separated by a line "__ggml_vocab_test__"; ids stand one case a line. The last text is empty and
// has no ids.
std::vector<Case> read_cases(const std::filesystem::path& data, const std::string& name) {
  const std::string separator = "\n__ggml_vocab_test__\n";
  const std::string texts = read_file(data / ("ggml-vocab-" + name + ".gguf.inp"));
  std::istringstream lines(read_file(data / ("ggml-vocab-" + name + ".gguf.out")));
  std::vector<Case> cases;
  for (std::size_t at = 0; at != std::string::npos;) {
    const std::size_t end = texts.find(separator, at);
    std::string line;
    if (!std::getline(lines, line)) {
      EXPECT_EQ(at, texts.size()) << "more texts than lines of ids";
    }
    std::istringstream numbers(line);
    Case c{texts.substr(at, end - at), {}};
    for (TokenId id; numbers >> id;) c.ids.push_back(id);
    cases.push_back(std::move(c));
    at = end == std::string::npos ? end : end + separator.size();
  }
  return cases;
}

std::string gunzip(const std::filesystem::path& path) {
  std::string out;
  FILE* pipe = popen(("gzip -dc '" + path.string() + "'").c_str(), "r");
  if (!pipe) return out;
  char buffer[1 << 16];
  for (std::size_t n; (n = std::fread(buffer, 1, sizeof buffer, pipe)) > 0;) out.append(buffer, n);
  EXPECT_EQ(pclose(pipe), 0);
  return out;
}

void expect_cases(const Tokenizer& t, const std::vector<Case>& cases) {
  EncodeOptions options;
  options.add_bos = false;
  ASSERT_EQ(cases.size(), 47u);
  for (const Case& c : cases) {
    EXPECT_EQ(t.encode(c.text, options), c.ids) << c.text;
    EXPECT_EQ(t.decode(c.ids), c.text);
  }
}

TokenizerPtr via_gguf(const Tokenizer& t) {
  GgufMetadata metadata;
  t.to_gguf(metadata);
  return Tokenizer::from_gguf(metadata);
}
TokenizerPtr via_json(const Tokenizer& t) { return Tokenizer::from_json(t.to_json(), t.config_json()); }

// A long text: the same ids from both.
void expect_same_on(const std::string& text, const Tokenizer& a, const Tokenizer& b) {
  EXPECT_TRUE(a.encode(text) == b.encode(text));
  EXPECT_EQ(a.decode(a.encode(text)), text);
}

TEST(PublicVocabularies, Llama3) {
  BITNET_REQUIRE_TEST_DATA(data);
  const auto cases = read_cases(data, "llama-bpe");
  const auto t = Tokenizer::from_json(gunzip(data / "llama3-tokenizer.json.gz"));
  EXPECT_EQ(t->vocab_size(), 128256);
  EXPECT_EQ(t->bos(), 128000);
  EXPECT_THAT(t->eos(), ::testing::IsSupersetOf({128001, 128009}));
  expect_cases(*t, cases);
  const auto gguf = via_gguf(*t);
  expect_cases(*gguf, cases);
  expect_cases(*via_json(*gguf), cases);
  for (const char* file : {"tinyshakespeare.txt", "wikitext2-raw-test.txt"})
    expect_same_on(read_file(data / file), *t, *gguf);
}

TEST(PublicVocabularies, Gpt2) {
  BITNET_REQUIRE_TEST_DATA(data);
  const auto cases = read_cases(data, "gpt-2");
  const auto t = Tokenizer::load(data / "ggml-vocab-gpt-2.gguf");
  EXPECT_FALSE(t->adds_bos());
  EXPECT_THAT(t->eos(), ::testing::ElementsAre(50256));
  expect_cases(*t, cases);
  expect_cases(*via_json(*t), cases);
  expect_cases(*via_gguf(*t), cases);
  expect_same_on(read_file(data / "wikitext2-raw-test.txt"), *t, *via_json(*t));
}

TEST(PublicVocabularies, Llama2) {
  BITNET_REQUIRE_TEST_DATA(data);
  const auto cases = read_cases(data, "llama-spm");
  const auto t = Tokenizer::load(data / "ggml-vocab-llama-spm.gguf");
  EXPECT_EQ(t->bos(), 1);
  EXPECT_TRUE(t->adds_bos());
  EXPECT_THAT(t->eos(), ::testing::ElementsAre(2));
  expect_cases(*t, cases);
  const auto json = via_json(*t);
  expect_cases(*json, cases);
  expect_cases(*via_gguf(*t), cases);
  const auto gguf = via_gguf(*json);
  expect_cases(*gguf, cases);
  // Runs of spaces have equal scores, which a list of merges has to put in some order.
  for (std::size_t n = 1; n < 200; ++n) {
    const std::string text = "a" + std::string(n, ' ') + "b" + std::string(n * 7 % 33, ' ');
    EXPECT_EQ(t->encode(text), json->encode(text)) << n;
    EXPECT_EQ(t->encode(text), gguf->encode(text)) << n;
  }
  expect_same_on(read_file(data / "tinyshakespeare.txt"), *t, *json);
}

// A Llama-style tokenizer.json with merges and no scores. (Its tokens are not those of the GGUF vocabulary
// above, whatever its name says.)
TEST(PublicVocabularies, MergesAndScoresGiveTheSameIds) {
  BITNET_REQUIRE_TEST_DATA(data);
  const auto t = Tokenizer::from_json(gunzip(data / "llama2-tokenizer.json.gz"));
  EXPECT_EQ(t->vocab_size(), 32000);
  EXPECT_TRUE(t->adds_bos());
  const auto gguf = via_gguf(*t);
  for (const Case& c : read_cases(data, "llama-spm")) {
    EXPECT_EQ(t->encode(c.text), gguf->encode(c.text));
    EXPECT_EQ(t->decode(t->encode(c.text)), c.text);
  }
  expect_same_on(read_file(data / "wikitext2-raw-test.txt"), *t, *gguf);
}

}  // namespace
}  // namespace bitnet
