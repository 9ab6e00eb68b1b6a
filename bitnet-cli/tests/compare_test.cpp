// `bitnet compare`: figures that others give, too, text and JSON, models that cannot be compared.
#include <cmath>
#include <nlohmann/json.hpp>

#include "cli_fixture.hpp"

namespace bitnet::cli {
namespace {

class CompareTest : public CliTest {
 protected:
  std::string text() {
    std::string t;
    for (int i = 0; i < 40; ++i)
      t += "Line " + std::to_string(i * 7919 % 1000) + ": the cat sat on the mat.\n";
    return file("text.txt", t);
  }
  /// The dense model by least squares.
  std::string quantised() {
    const auto o = call({"quantize", dense_model(), file("ls.gguf"), "--method", "ls"});
    EXPECT_EQ(o.code, kOk) << o.err;
    return file("ls.gguf");
  }
};

TEST_F(CompareTest, AModelWithItself) {
  const auto o = call({"compare", model(), model(), "-f", text(), "--json", "-c", "64"});
  ASSERT_EQ(o.code, kOk) << o.err;
  const auto j = nlohmann::json::parse(o.out);
  EXPECT_EQ(j["mean_kl"], 0.0);
  EXPECT_EQ(j["top1_agreement"], 1.0);
  EXPECT_EQ(j["models"][0]["perplexity"], j["models"][1]["perplexity"]);
  EXPECT_GT(j["positions"], 500);
  ASSERT_GT(j["tensors"].size(), 14u);
  for (const auto& t : j["tensors"]) {
    EXPECT_EQ(t["relative_difference"], 0.0);
    EXPECT_EQ(t["equal"], 1.0);
    const std::string name = t["name"];
    EXPECT_EQ(t["equal_trits"].is_null(),
              name.find("norm") != std::string::npos || name.starts_with("token_embd"))
        << name;
  }
  const auto shown = call({"compare", model(), model(), "-f", text()});
  ASSERT_EQ(shown.code, kOk) << shown.err;
  EXPECT_THAT(shown.out, HasSubstr("the same first choice for 100.00 %"));
  EXPECT_THAT(shown.out, HasSubstr("of them equal\n"));
}

TEST_F(CompareTest, AQuantisedModelWithWhatItCameFrom) {
  const std::string after = quantised();
  // quantize --evaluate reads the same windows.
  const std::string words = text();
  ASSERT_EQ(call({"quantize", dense_model(), file("again.gguf"), "--method", "ls", "--evaluate", words,
                  "--report", file("lost.json")})
                .code,
            kOk);
  const auto lost = nlohmann::json::parse(read_file(file("lost.json")));
  const auto o = call({"compare", dense_model(), after, "-f", words, "--json"});
  ASSERT_EQ(o.code, kOk) << o.err;
  const auto j = nlohmann::json::parse(o.out);
  EXPECT_EQ(j["mean_kl"], lost["logits"]["mean_kl"]);
  EXPECT_EQ(j["positions"], lost["logits"]["positions"]);
  EXPECT_EQ(j["models"][0]["perplexity"], lost["logits"]["perplexity_before"]);
  EXPECT_EQ(j["models"][1]["perplexity"], lost["logits"]["perplexity_after"]);
  EXPECT_GT(j["mean_kl"], 0.0);
  for (const auto& t : j["tensors"])
    if (t["name"] == "blk.1.ffn_up.weight") {
      // of uniform weights in ±1: scale 2/3, error² 1/9 of 1/3
      EXPECT_NEAR(t["relative_difference"].get<double>(), std::sqrt(1.0 / 9), 0.02);
      EXPECT_TRUE(t["equal_trits"].is_null());
    }
  const auto shown = call({"compare", dense_model(), after, "-f", words});
  EXPECT_THAT(shown.out, HasSubstr("those that differ the most:\n  blk."));
  EXPECT_THAT(shown.out, Not(HasSubstr("norm")));
  const auto all = call({"compare", dense_model(), after, "-f", words, "-v"});
  EXPECT_THAT(all.out, HasSubstr("output_norm.weight: equal"));
  EXPECT_EQ(call({"compare", dense_model(), after, "-f", words, "--threads", "1"}).out, shown.out);
}

TEST_F(CompareTest, ModelsOfOtherShapes) {
  std::string shape = tiny_llama_config();
  shape.replace(shape.find("\"num_hidden_layers\": 2"), 22, "\"num_hidden_layers\": 1");
  shape.replace(shape.find("\"intermediate_size\": 256"), 24, "\"intermediate_size\": 128");
  ASSERT_EQ(call({"synth", "--config", file("s.json", shape), "--type", "f16", "-o", file("s.gguf")}).code,
            kOk);
  const auto o = call({"compare", dense_model(), file("s.gguf"), "-f", text()});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.out, HasSubstr("blk.0.ffn_up.weight: shapes [256, 256] and [128, 256], not compared"));
  EXPECT_THAT(o.out, HasSubstr("blk.1.attn_q.weight: only in '" + dense_model() + "'"));
}

TEST_F(CompareTest, Refusals) {
  const std::string words = text();
  std::string shape = tiny_llama_config();
  shape.replace(shape.find("\"vocab_size\": 300"), 17, "\"vocab_size\": 400");
  ASSERT_EQ(call({"synth", "--config", file("v.json", shape), "--type", "f16", "-o", file("v.gguf")}).code,
            kOk);
  EXPECT_FAILS(call({"compare", dense_model(), file("v.gguf"), "-f", words}), kFailure,
               "different vocabularies, so that their predictions cannot be compared: 300 tokens in '");
  // As many tokens, one of them another.
  ASSERT_EQ(call({"convert", dense_model(), file("hf"), "--type", "hf"}).code, kOk);
  std::string tokens = read_file(file("hf/tokenizer.json"));
  const std::size_t at = tokens.find("<|unused_270|>");
  ASSERT_NE(at, std::string::npos);
  tokens.replace(at, 14, "<|unusedx270|>");
  write_file(file("hf/tokenizer.json"), tokens);
  EXPECT_FAILS(call({"compare", dense_model(), file("hf"), "-f", words}), kFailure,
               "token 270 is \"<|unused_270|>\" in '");
  std::filesystem::remove(file("hf/tokenizer.json"));
  const auto without = call({"compare", dense_model(), file("hf"), "-f", words});
  EXPECT_EQ(without.code, kOk) << without.err;
  EXPECT_THAT(without.err, HasSubstr("carries no tokenizer; the other's is taken for both"));
  EXPECT_FAILS(call({"compare", file("hf"), file("hf"), "-f", words}), kFailure,
               "neither model's files carry");
  EXPECT_FAILS(call({"compare", dense_model(), model()}), kUsage, "missing option -f (--file) FILE");
  EXPECT_FAILS(call({"compare", dense_model(), "-f", words}), kUsage, "MODEL_B");
  EXPECT_FAILS(call({"compare", dense_model(), file("none.gguf"), "-f", words}), kFailure, "none.gguf");
  EXPECT_FAILS(call({"compare", dense_model(), dense_model(), "-f", file("e.txt", "")}), kFailure,
               "1 tokens: expected two and more");
  EXPECT_FAILS(call({"compare", dense_model(), dense_model(), "-f", file("b.txt", "\xff\xfe")}), kFailure,
               "UTF-8");
  std::atomic<bool> cancelled{true};
  CallOptions options;
  options.cancelled = &cancelled;
  EXPECT_EQ(call({"compare", dense_model(), dense_model(), "-f", words}, options).code, kInterrupted);
}

}  // namespace
}  // namespace bitnet::cli
