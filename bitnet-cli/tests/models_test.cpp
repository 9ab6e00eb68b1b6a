// Commands about model files: synth, inspect, tokenize, convert, quantize.
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "bitnet/core/dtype.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/core/rng.hpp"
#include "calibrating.hpp"
#include "cli_fixture.hpp"
#include "synth_model.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

class ModelsTest : public CliTest {
 protected:
  /// What `perplexity --json` says.
  json scores_of(const std::string& path) {
    const std::string text = file("text.txt", std::string(400, 'a') + std::string(400, 'b'));
    const auto o = call({"perplexity", "-m", path, "-f", text, "-c", "64", "--json"});
    EXPECT_EQ(o.code, kOk) << o.err;
    return o.code == kOk ? json::parse(o.out) : json();
  }
  std::string nll_of(const std::string& path) { return scores_of(path)["nll"].dump(); }
  double perplexity_of(const std::string& path) {
    const json scores = scores_of(path);
    const double perplexity = std::exp(scores["nll"].get<double>() / scores["scored_tokens"].get<double>());
    EXPECT_DOUBLE_EQ(scores["perplexity"].get<double>(), perplexity);
    return perplexity;
  }
};

TEST_F(ModelsTest, PerplexityOfLinesIsThatOfEachLineAlone) {
  const auto scores = [&](const std::string& text) {
    const auto o = call({"perplexity", "-m", model(), "-f", file("lines.txt", text), "--lines", "--json"});
    EXPECT_EQ(o.code, kOk) << o.err;
    return json::parse(o.out);
  };
  double nll = 0;
  for (const char* line : {"one", "a second line", "x"}) nll += scores(line)["nll"].get<double>();
  const json all = scores("one\r\n\na second line\nx\n");  // blank lines are no texts
  EXPECT_NEAR(all["nll"].get<double>(), nll, 1e-9 * nll);
  EXPECT_EQ(all["chunks"], 3);
  EXPECT_EQ(all["scored_tokens"], 3 + 13 + 1);  // bytes; the first token is BOS
  EXPECT_EQ(all["lines"], true);
  EXPECT_FAILS(call({"perplexity", "-m", model(), "-f", file("empty.txt", "\n\n"), "--lines"}), kFailure,
               "none of 0 texts has two tokens");
}

TEST_F(ModelsTest, SynthIsDeterministic) {
  const std::string copy = file("tiny.gguf");  // the same name: it is in the file, too
  const auto again = call({"synth", "--config", at("tiny.json"), "-o", copy, "--threads", "1"});
  ASSERT_EQ(again.code, kOk) << again.err;
  EXPECT_THAT(again.err, HasSubstr("wrote '" + copy + "'"));
  EXPECT_TRUE(read_file(copy) == read_file(model()));
  ASSERT_EQ(call({"synth", "--config", at("tiny.json"), "-o", copy, "--seed", "1"}).code, kOk);
  EXPECT_FALSE(read_file(copy) == read_file(model()));
}

TEST_F(ModelsTest, WhatIsNoModelIsNamedOnce) {
  EXPECT_EQ(call({"inspect", "no/model"}).err, "bitnet inspect: there is no file or directory 'no/model'\n");
  const std::string empty = file("empty");
  std::filesystem::create_directory(empty);
  EXPECT_EQ(call({"inspect", empty}).err, "bitnet inspect: directory '" + empty + "' has no config.json\n");
}

TEST_F(ModelsTest, SynthRefusesWhatItCannotDo) {
  const std::string config = at("tiny.json");
  EXPECT_FAILS(call({"synth", "-o", file("x.gguf")}), kUsage, "missing option --config");
  EXPECT_FAILS(call({"synth", "--config", config}), kUsage, "missing option -o (--output)");
  EXPECT_FAILS(call({"synth", "--config", file("none.json"), "-o", file("x.gguf")}), kFailure, "none.json");
  EXPECT_THAT(call({"synth", "--config", file("cut.json", "{"), "-o", file("x.gguf")}).err,
              Not(HasSubstr("json.exception")));
  EXPECT_FAILS(call({"synth", "--config", file("cut.json", "{\"hidden_size\": "), "-o", file("x.gguf")}),
               kFailure, "cut.json");
  const std::string own = file("own.json", read_file(config));
  EXPECT_FAILS(call({"synth", "--config", own, "-o", own}), kFailure,
               "the model would replace the file of --config");
  EXPECT_EQ(read_file(own), read_file(config));
  EXPECT_FAILS(call({"synth", "--config", config, "-o", file("no/x.gguf")}), kFailure,
               "there is no directory");
  EXPECT_FAILS(call({"synth", "--config", config, "-o", dir_.path().string()}), kFailure, "is a directory");
  EXPECT_FAILS(call({"synth", "--config", config, "-o", "/dev/null"}), kFailure, "is no ordinary file");
  EXPECT_FAILS(call({"synth", "--config", config, "--type", "hf", "-o", file("x.gguf")}), kFailure,
               "writes a directory");
  EXPECT_FALSE(fs::exists(file("x.gguf")));
}

TEST(Synth, AVocabularyThatNoTokenizerCanHoldGetsNone) {
  EXPECT_EQ(byte_tokenizer(260), nullptr);
  EXPECT_NE(byte_tokenizer(261), nullptr);
  // At once: a list of so many tokens would take gigabytes.
  EXPECT_EQ(byte_tokenizer((1 << 24) + 1), nullptr);
  EXPECT_EQ(byte_tokenizer(std::numeric_limits<std::int64_t>::max()), nullptr);
}

TEST_F(ModelsTest, InspectSaysWhatIsThere) {
  const auto o = call({"inspect", model()});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.out, HasSubstr("ternary"));
  EXPECT_THAT(o.out, HasSubstr("I2_S"));
  EXPECT_THAT(o.out, HasSubstr("300"));
  EXPECT_THAT(o.out, HasSubstr("head when run     int8"));
  EXPECT_THAT(call({"inspect", dense_model()}).out,
              ::testing::AllOf(HasSubstr("dense"), HasSubstr("head when run     stored")));
  const auto j = json::parse(call({"inspect", "--json", model()}).out);
  EXPECT_EQ(j["config"]["hidden_size"], 256);
  EXPECT_EQ(j["config"]["weights"], "ternary");
  EXPECT_EQ(j["tensors"].size(), 2u + 2u * 11u);
  EXPECT_EQ(j["file_bytes"], fs::file_size(model()));
}

TEST_F(ModelsTest, BrokenModelsAreErrorsThatNameTheFile) {
  EXPECT_FAILS(call({"inspect", file("none.gguf")}), kFailure, "none.gguf");
  fs::create_directory(file("empty"));
  EXPECT_FAILS(call({"inspect", file("empty")}), kFailure, "empty");
  EXPECT_FAILS(call({"inspect", file("text.gguf", "this is no model")}), kFailure, "text.gguf");
  const std::string whole = read_file(model());
  for (const std::size_t size :
       {std::size_t{0}, std::size_t{10}, whole.size() / 100, whole.size() / 2, whole.size() - 1})
    EXPECT_FAILS(call({"run", "-m", file("cut.gguf", whole.substr(0, size)), "-p", "x"}), kFailure,
                 "cut.gguf");
}

TEST_F(ModelsTest, TokenizeAndBack) {
  const auto ids = call({"tokenize", "-m", model(), "-p", "héllo\n", "--ids"});
  ASSERT_EQ(ids.code, kOk) << ids.err;
  const auto lines = call({"tokenize", "-m", model(), "-p", "héllo\n"});
  EXPECT_EQ(std::count(lines.out.begin(), lines.out.end(), '\n'),
            std::count(ids.out.begin(), ids.out.end(), ' ') + 1);
  const auto text = call({"tokenize", "-m", model(), "--decode", "-p", ids.out});
  EXPECT_EQ(text.out, "héllo\n");
  EXPECT_EQ(call({"tokenize", "-m", model(), "--decode", "-f", "-"}, {.input = "[" + ids.out + "]"}).out,
            "héllo\n");
  const auto without = call({"tokenize", "-m", model(), "-p", "héllo\n", "--ids", "--no-bos"});
  EXPECT_LT(without.out.size(), ids.out.size());
}

TEST_F(ModelsTest, TokenizeParsesSpecialTokensOnlyWhenAsked) {
  const auto plain = call({"tokenize", "-m", model(), "-p", "<|eot_id|>", "--ids", "--no-bos"});
  EXPECT_EQ(std::count(plain.out.begin(), plain.out.end(), ' '), 9);
  const auto special =
      call({"tokenize", "-m", model(), "-p", "<|eot_id|>", "--ids", "--no-bos", "--special"});
  EXPECT_EQ(std::count(special.out.begin(), special.out.end(), ' '), 0);
  EXPECT_EQ(call({"tokenize", "-m", model(), "--decode", "-p", special.out}).out, "");
  EXPECT_EQ(call({"tokenize", "-m", model(), "--decode", "--special", "-p", special.out}).out, "<|eot_id|>");
}

TEST_F(ModelsTest, TokenizeTellsFiguresOfAText) {
  const auto o = call({"tokenize", "-m", model(), "-p", "aab\n\nb\n", "--no-bos", "--stats"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.out, HasSubstr("tokens\t7\nbytes\t7\nbytes a token\t1.000\ndistinct tokens\t3 of 300\n"));
  EXPECT_THAT(o.out, HasSubstr("lines\t2\ntokens a line\t1 … 3, mean 2.0"));
  const auto empty = call({"tokenize", "-m", model(), "-p", "", "--no-bos", "--stats"});
  EXPECT_EQ(empty.code, kOk) << empty.err;
}

TEST_F(ModelsTest, TokenizeSaysWhatIsWrong) {
  EXPECT_FAILS(call({"tokenize", "-m", model(), "-p", "ab\xFF"}), kFailure, "byte 2");
  EXPECT_FAILS(call({"tokenize", "-m", model(), "-p", "1 x", "--decode"}), kFailure, "id number 2");
  EXPECT_FAILS(call({"tokenize", "-m", model(), "-p", "300", "--decode"}), kFailure,
               "from 0 to 299, got '300'");
  EXPECT_FAILS(call({"tokenize", "-m", model()}), kUsage, "missing --prompt or --file");
  EXPECT_FAILS(call({"tokenize", "-m", model(), "-p", "a", "-f", "b"}), kUsage, "not both");
  EXPECT_FAILS(call({"tokenize", "-m", model(), "-f", file("bad.txt", "ab\xFF")}), kFailure,
               "bad.txt': invalid UTF-8 at byte 2");
  EXPECT_FAILS(call({"tokenize", "-m", model(), "-f", file("none.txt")}), kFailure, "none.txt");
  EXPECT_FAILS(call({"tokenize", "-m", model(), "-f", dir_.path().string()}), kFailure, "directory");
}

TEST_F(ModelsTest, TokenizeReadsVocabularyOnlyFiles) {
  BITNET_REQUIRE_TEST_DATA(data);
  const auto o =
      call({"tokenize", "-m", (data / "ggml-vocab-gpt-2.gguf").string(), "-p", "Hello world", "--ids"});
  EXPECT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(o.out, "15496 995\n");
}

TEST_F(ModelsTest, ConvertKeepsTheWeightsAndTheTokenizer) {
  const std::string expected = nll_of(model());
  const auto to_hf = call({"convert", model(), file("hf")});
  ASSERT_EQ(to_hf.code, kOk) << to_hf.err;
  EXPECT_EQ(nll_of(file("hf")), expected);
  ASSERT_EQ(call({"convert", file("hf"), file("back.gguf"), "--type", "i2_s"}).code, kOk);
  EXPECT_EQ(nll_of(file("back.gguf")), expected);
  const auto ids = call({"tokenize", "-m", model(), "-p", "a b", "--ids"}).out;
  EXPECT_EQ(call({"tokenize", "-m", file("hf"), "-p", "a b", "--ids"}).out, ids);
  EXPECT_EQ(call({"tokenize", "-m", file("back.gguf"), "-p", "a b", "--ids"}).out, ids);
  for (const std::string type : {"tq1_0", "tq2_0"}) {
    ASSERT_EQ(call({"convert", model(), file(type + ".gguf"), "--type", type}).code, kOk);
    // Their scales are f16, and 400 tokens do not average that out.
    EXPECT_NEAR(perplexity_of(file(type + ".gguf")) / perplexity_of(model()), 1.0, 2e-3);
  }
  EXPECT_THAT(call({"inspect", file("tq2_0.gguf")}).out, HasSubstr("TQ2_0"));
}

TEST_F(ModelsTest, TheShippedModelLosesLessThanAThousandthOfItsPerplexityAsTq) {
  BITNET_REQUIRE_TEST_DATA(data);
  const std::string shipped = testing::source_path("models/bitnet-demo-i2_s.gguf").string();
  const auto measure = [&](const std::string& path) {
    const auto o = call({"perplexity", "-m", path, "-f", (data / "tinyshakespeare.txt").string(), "-c", "128",
                         "--chunks", "100", "--json"});
    EXPECT_EQ(o.code, kOk) << o.err;
    const json scores = json::parse(o.out);
    EXPECT_GT(scores["scored_tokens"], 6000);  // fewer would not average the rounding out
    return std::exp(scores["nll"].get<double>() / scores["scored_tokens"].get<double>());
  };
  const double expected = measure(shipped);
  for (const std::string type : {"tq1_0", "tq2_0"}) {
    ASSERT_EQ(call({"convert", shipped, file(type + ".gguf"), "--type", type}).code, kOk);
    EXPECT_NEAR(measure(file(type + ".gguf")) / expected, 1.0, 1e-3) << type;
  }
}

TEST_F(ModelsTest, ConvertNeverChangesWeightsSilently) {
  EXPECT_FAILS(call({"convert", dense_model(), file("x.gguf"), "--type", "i2_s"}), kFailure,
               "types that can: hf, f16");
  EXPECT_FAILS(call({"convert", model(), file("x.gguf"), "--type", "f16"}), kFailure,
               "hf, i2_s, tq1_0, tq2_0");
  EXPECT_FAILS(call({"convert", model(), model()}), kFailure, "input and output are the same");
  EXPECT_FAILS(call({"convert", file("none"), file("x.gguf")}), kFailure, "none");
  // 192 columns fit neither a block of 128 nor one of 256.
  const std::string odd = file("odd.json", tiny_config("", 192));
  EXPECT_FAILS(call({"synth", "--config", odd, "--type", "i2_s", "-o", file("odd.gguf")}), kFailure, "hf");
  ASSERT_EQ(call({"synth", "--config", odd, "--type", "hf", "-o", file("odd")}).code, kOk);
  EXPECT_FAILS(call({"convert", file("odd"), file("x.gguf"), "--type", "tq2_0"}), kFailure, "hf");
  const std::string part = file("odd") + "/model.safetensors", link = file("link.gguf");
  const std::string bytes = read_file(part);
  fs::create_symlink(part, link);
  for (const std::string& out : {part, link})
    EXPECT_FAILS(call({"convert", file("odd"), out, "--type", "i2_s"}), kFailure, "is a file of the input");
  EXPECT_EQ(read_file(part), bytes);
  EXPECT_FALSE(fs::exists(file("x.gguf")));
}

TEST_F(ModelsTest, ConvertKeepsDenseModelsDense) {
  const std::string expected = nll_of(dense_model());
  ASSERT_EQ(call({"convert", dense_model(), file("hf")}).code, kOk);
  EXPECT_EQ(nll_of(file("hf")), expected);
  ASSERT_EQ(call({"convert", file("hf"), file("back.gguf")}).code, kOk);
  EXPECT_EQ(nll_of(file("back.gguf")), expected);
}

/// The GGUF `from` with the embedding, or all linears, in another type, of random bytes below 64: such halves
/// are small numbers.
void retyped(const fs::path& from, const fs::path& to, GgmlType type, bool linears = false) {
  const auto file = GgufFile::open(from);
  std::vector<GgufTensorInfo> infos(file->tensors().begin(), file->tensors().end());
  const auto chosen = [&](const GgufTensorInfo& info) {
    const TensorId id = tensor_from_gguf_name(info.name).value();
    return linears ? is_linear(id.role) : id.role == TensorRole::kTokenEmbedding;
  };
  for (GgufTensorInfo& info : infos)
    if (chosen(info)) info.type = type;
  GgufWriter writer(to, file->metadata(), infos);
  Rng rng(1);
  for (const GgufTensorInfo& info : infos) {
    const auto kept = file->data(*file->find(info.name));
    std::vector<std::byte> bytes(kept.begin(), kept.end());
    if (chosen(info)) {
      bytes.resize(ggml_bytes(type, info.dims));
      for (std::byte& b : bytes) b = static_cast<std::byte>(rng.below(64));
    }
    writer.write(info.name, bytes);
  }
  writer.finish();
}

TEST_F(ModelsTest, ConvertRoundsFloatsOnlyWhenAskedTo) {
  const std::string f32 = file("f32.gguf");
  ASSERT_EQ(call({"synth", "--config", at("llama.json"), "--type", "f32", "-o", f32}).code, kOk);
  for (const std::string& source : {f32, model()}) {
    for (const GgmlType type : {GgmlType::kF16, GgmlType::kBF16, GgmlType::kQ8_0, GgmlType::kQ6_K}) {
      SCOPED_TRACE(source + " " + bitnet::to_string(type));
      const std::string in = file("in.gguf"), hf = file("hf"), back = file("back.gguf");
      retyped(source, in, type);
      const std::string expected = nll_of(in);
      const auto o = call({"convert", in, hf});
      ASSERT_EQ(o.code, kOk) << o.err;
      const bool grows = type == GgmlType::kQ8_0 || type == GgmlType::kQ6_K;
      EXPECT_EQ(o.err.find("become f32, which keeps their values") != std::string::npos, grows) << o.err;
      EXPECT_EQ(o.err.find("rounds the values of"), std::string::npos) << o.err;
      EXPECT_EQ(nll_of(hf), expected);
      ASSERT_EQ(call({"convert", hf, back}).code, kOk);
      EXPECT_EQ(nll_of(back), expected);
    }
  }
  EXPECT_THAT(call({"convert", f32, file("x"), "--dense-type", "f16"}).err,
              HasSubstr("note: f16 rounds the values of 16 tensors that are stored in another type"));
  EXPECT_THAT(call({"convert", f32, file("x.gguf"), "--type", "bf16"}).err, HasSubstr("note: bf16 rounds"));
}

/// As llama.cpp's quantiser leaves a BitNet whose linears were floats.
TEST_F(ModelsTest, QuantizeTakesBlocksOfFloatsForFloats) {
  retyped(model(), file("q8.gguf"), GgmlType::kQ8_0, true);
  const auto o = call({"quantize", file("q8.gguf"), file("t.gguf"), "--type", "i2_s"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(nll_of(file("t.gguf")), nll_of(file("q8.gguf")));
}

TEST_F(ModelsTest, QuantizeMakesADenseModelTernaryAndWarns) {
  const auto o = call({"quantize", dense_model(), file("t.gguf"), "--method", "absmean", "--type", "i2_s"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("was not trained for ternary weights: rounding it destroys it"));
  const auto j = json::parse(call({"inspect", "--json", file("t.gguf")}).out);
  EXPECT_EQ(j["tensors"][2]["type"], "I2_S");
  EXPECT_EQ(call({"run", "-m", file("t.gguf"), "-p", "x", "-n", "2"}).code, kOk);
  EXPECT_FAILS(call({"quantize", model(), file("u.gguf")}), kFailure, "ternary already");
  EXPECT_FAILS(call({"quantize", dense_model(), file("u.gguf"), "--type", "f16"}), kUsage, "--type");
}

TEST_F(ModelsTest, QuantizeWithCalibrationLosesLessAndSaysWhat) {
  std::string story;
  for (int i = 0; i < 200; ++i)
    story += "the cat sat on mat " + std::to_string(i * i) + ", and then the rat. ";
  const std::string text = file("story.txt", story);
  const auto run = [&](std::vector<std::string> more) {
    std::vector<std::string> all{"quantize", dense_model(), file("q.gguf")};
    all.insert(all.end(), more.begin(), more.end());
    const auto o = call(all);
    EXPECT_EQ(o.code, kOk) << o.err;
    return o;
  };
  const auto report = [&] { return json::parse(read_file(file("lost.json"))); };
  run({"--method", "absmean", "--calibrate", text, "--report", file("lost.json")});
  const double absmean = report()["total"]["output_error"];
  run({"--method", "ls", "--calibrate", text, "--report", file("lost.json")});
  const double ls = report()["total"]["output_error"];
  run({"--method", "ls+refit", "--calibrate", text, "--report", file("lost.json")});
  const double refit = report()["total"]["output_error"];
  const auto o = run({"--method", "gptq", "--calibrate", text, "--report", file("lost.json"), "--evaluate",
                      text, "--save-calibration", file("c.safetensors"), "-v"});
  const json lost = report();
  const double gptq = lost["total"]["output_error"];
  EXPECT_LT(ls, absmean);
  EXPECT_LT(refit, ls);
  EXPECT_LT(gptq, refit);
  EXPECT_EQ(lost["linears"][0]["method"], "gptq");
  EXPECT_GT(lost["logits"]["positions"], 1000);
  EXPECT_GT(lost["logits"]["mean_kl"], 0);
  EXPECT_THAT(o.err, HasSubstr("perplexity "));
  EXPECT_THAT(o.err, HasSubstr("blk.0.attn_q.weight: gptq, tensor, relative error"));
  const std::string first = read_file(file("q.gguf"));
  run({"--method", "gptq", "--calibration", file("c.safetensors"), "--threads", "1"});
  EXPECT_EQ(read_file(file("q.gguf")), first);  // from what was saved, and on one thread
  run({"--plan", file("p.yaml", "weights: {method: gptq}\n"), "--calibrate", text});
  EXPECT_EQ(read_file(file("q.gguf")), first);
  for (int i = 0; i < 2; ++i) {
    const auto kept = run({"--method", "gptq", "--calibrate", text, "--work", file("work")});
    EXPECT_EQ(kept.err.find("layers were done before") != std::string::npos, i == 1) << kept.err;
    EXPECT_EQ(read_file(file("q.gguf")), first);
  }
  run({"--method", "gptq", "--calibrate", text, "--through-quantised"});
  EXPECT_NE(read_file(file("q.gguf")), first);
}

TEST_F(ModelsTest, QuantizeInSeveralWaysAndRun) {
  const std::string plan = file("p.yaml",
                                "scheme: mixed_precision\n"
                                "weights: {method: ls, scales: group32}\n"
                                "layers:\n"
                                "  - {match: '*ffn_up', method: two-plane}\n"
                                "  - {match: '*attn_k', method: int8}\n"
                                "keep: ['*attn_output']\n");
  const auto o = call({"quantize", dense_model(), file("mixed"), "--plan", plan, "--type", "extended"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(call({"run", "-m", file("mixed"), "-p", "x", "-n", "2"}).code, kOk);
  EXPECT_GT(perplexity_of(file("mixed")), 1);
  EXPECT_FAILS(call({"convert", file("mixed"), file("m.gguf"), "--type", "i2_s"}), kFailure,
               "this model's linears are of several kinds (tensor 'blk.0.attn_k.weight' is I8)");
  // One plane with one scale is an ordinary ternary model.
  ASSERT_EQ(call({"quantize", dense_model(), file("plain"), "--method", "ls", "--type", "extended"}).code,
            kOk);
  ASSERT_EQ(call({"convert", file("plain"), file("a.gguf"), "--type", "i2_s"}).code, kOk);
  ASSERT_EQ(call({"quantize", dense_model(), file("b.gguf"), "--method", "ls"}).code, kOk);
  EXPECT_EQ(nll_of(file("a.gguf")), nll_of(file("b.gguf")));
  EXPECT_FAILS(call({"quantize", dense_model(), file("m.gguf"), "--plan", plan}), kFailure,
               "i2_s cannot hold the plan of blk.0.attn_q: scales by group32; types that would do: extended");
}

TEST_F(ModelsTest, InspectSaysWhatAnExtendedModelIs) {
  const std::string plan = file("p.yaml",
                                "scheme: mixed_precision\n"
                                "weights: {method: ls, scales: group32}\n"
                                "layers:\n"
                                "  - {match: '*ffn_up', method: two-plane, scales: row}\n"
                                "  - {match: '*ffn_down', method: ls, scales: tensor, activation_bits: 4}\n"
                                "  - {match: '*attn_k', method: int8}\n"
                                "keep: ['*attn_output']\n");
  ASSERT_EQ(call({"quantize", dense_model(), file("m"), "--plan", plan, "--type", "extended"}).code, kOk);
  const auto o = call({"inspect", file("m")});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.out,
              HasSubstr("extended: 6 ternary with scales by groups of 32 columns, 2 in full precision, "
                        "2 int8 with scales by row, 2 of two planes with scales by row, "
                        "2 ternary with one scale and 4-bit activations\n"));
  EXPECT_THAT(o.out, Not(HasSubstr("dense (float")));
  const auto j = json::parse(call({"inspect", "--json", file("m")}).out);
  EXPECT_EQ(j["config"]["weights"], "extended");
  EXPECT_EQ(j["linears"][0]["kind"], "ternary with scales by groups of 32 columns");
  EXPECT_EQ(j["linears"][0]["count"], 6);
  EXPECT_FALSE(json::parse(call({"inspect", "--json", dense_model()}).out).contains("linears"));
}

TEST_F(ModelsTest, ScalesByRowTravelBetweenTheTypesThatHoldThem) {
  ASSERT_EQ(call({"quantize", dense_model(), file("tq.gguf"), "--method", "ls", "--scales", "row", "--type",
                  "tq2_0"})
                .code,
            kOk);
  for (const char* type : {"i2_s", "hf"})
    EXPECT_FAILS(
        call({"convert", file("tq.gguf"), file(type == std::string("hf") ? "x" : "x.gguf"), "--type", type}),
        kFailure, "types that would do: tq1_0, tq2_0, extended");
  ASSERT_EQ(call({"convert", file("tq.gguf"), file("extended"), "--type", "extended"}).code, kOk);
  EXPECT_EQ(nll_of(file("extended")), nll_of(file("tq.gguf")));
  EXPECT_THAT(call({"inspect", file("extended")}).out, HasSubstr("extended: 14 ternary with scales by row"));
  // Without --type it stays what it is, and goes back.
  ASSERT_EQ(call({"convert", file("extended"), file("again")}).code, kOk);
  EXPECT_EQ(nll_of(file("again")), nll_of(file("tq.gguf")));
  ASSERT_EQ(call({"convert", file("extended"), file("back.gguf"), "--type", "tq1_0"}).code, kOk);
  EXPECT_EQ(nll_of(file("back.gguf")), nll_of(file("tq.gguf")));
}

/// The logits of a model at every position of a few windows.
std::vector<float> logits_of(const std::string& model) {
  std::vector<std::vector<TokenId>> windows(3);
  Rng rng(1);
  for (auto& window : windows)
    for (int i = 0; i < 32; ++i) window.push_back(static_cast<TokenId>(rng.below(256)));
  ModelLogits source(model, quant::FloatLinears::kAsConfigured, std::make_shared<const ExecutionContext>(),
                     windows);
  std::vector<float> all, rows;
  for (std::vector<std::int32_t> targets; source.next(rows, targets);)
    all.insert(all.end(), rows.begin(), rows.end());
  return all;
}

TEST_F(ModelsTest, ScalesByGroupsOf256TravelBetweenTheTypesThatHoldThem) {
  std::string config = tiny_llama_config();
  for (const char* key : {"\"hidden_size\": ", "\"intermediate_size\": "})
    config.replace(config.find(key) + std::strlen(key), 3, "512");
  const std::string in = file("wide.gguf");
  ASSERT_EQ(call({"synth", "--config", file("wide.json", config), "--type", "f16", "-o", in}).code, kOk);
  for (const char* directory : {"a", "b", "c"}) fs::create_directory(file(directory));  // names are in files
  const auto quantize = [&](const std::string& out, const std::string& scales, const std::string& type) {
    const auto o = call({"quantize", in, out, "--method", "ls", "--scales", scales, "--type", type});
    EXPECT_EQ(o.code, kOk) << o.err;
  };
  const std::string tq2 = file("a/m.gguf"), exact = file("exact"), rounded = file("rounded");
  quantize(tq2, "group256", "tq2_0");
  quantize(file("b/m.gguf"), "group256", "tq1_0");
  quantize(exact, "group256", "extended");
  EXPECT_EQ(nll_of(tq2), nll_of(file("b/m.gguf")));
  // The same weights in the extended form give the same bits.
  ASSERT_EQ(call({"convert", tq2, rounded, "--type", "extended"}).code, kOk);
  EXPECT_THAT(call({"inspect", rounded}).out,
              HasSubstr("extended: 14 ternary with scales by groups of 256 columns"));
  const std::vector<float> logits = logits_of(tq2);
  EXPECT_TRUE(logits == logits_of(rounded));
  ASSERT_EQ(call({"convert", rounded, file("c/m.gguf"), "--type", "tq2_0"}).code, kOk);
  EXPECT_TRUE(read_file(file("c/m.gguf")) == read_file(tq2));
  ASSERT_EQ(call({"convert", exact, file("c/m.gguf"), "--type", "tq2_0"}).code, kOk);
  EXPECT_TRUE(read_file(file("c/m.gguf")) == read_file(tq2));
  // The rounding of the scales is all that lies between: rounded here, they give the same bits, and do not
  // unrounded.
  EXPECT_FALSE(logits == logits_of(exact));
  const auto reader = quant::ModelReader::open(exact);
  quant::WriteOptions options;
  options.type = quant::LinearType::kExtended;
  const auto halves = [&](TensorId id) {
    quant::LogicalTensor t = reader->read(id);
    for (float& scale : t.weights.scales) scale = f16_to_f32(f32_to_f16(scale));
    return t;
  };
  quant::write_model(file("by-hand"), reader->config(), reader->tokenizer().get(), halves, options);
  EXPECT_TRUE(logits == logits_of(file("by-hand")));
  for (const char* type : {"i2_s", "hf"})
    EXPECT_FAILS(call({"convert", tq2, file(type == std::string("hf") ? "x" : "x.gguf"), "--type", type}),
                 kFailure, "types that would do: tq1_0, tq2_0, extended");
  quantize(file("fine"), "group128", "extended");
  EXPECT_FAILS(call({"convert", file("fine"), file("x.gguf"), "--type", "tq2_0"}), kFailure,
               "tq2_0 holds no scales of groups of 128 columns; types that would do: extended");
  EXPECT_FALSE(fs::exists(file("x.gguf")));
}

TEST_F(ModelsTest, ShardSizeMakesSeveralFiles) {
  const auto shards = [&](const std::string& directory) {
    EXPECT_TRUE(fs::exists(fs::path(directory) / "model.safetensors.index.json")) << directory;
    return std::count_if(fs::directory_iterator(directory), fs::directory_iterator(),
                         [](const auto& entry) { return entry.path().extension() == ".safetensors"; });
  };
  ASSERT_EQ(call({"quantize", dense_model(), file("one"), "--method", "ls", "--type", "hf"}).code, kOk);
  const auto o = call(
      {"quantize", dense_model(), file("hf"), "--method", "ls", "--type", "hf", "--shard-size", "200KiB"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_GE(shards(file("hf")), 3);
  EXPECT_EQ(nll_of(file("hf")), nll_of(file("one")));
  ASSERT_EQ(call({"convert", dense_model(), file("floats"), "--shard-size", "500000"}).code, kOk);
  EXPECT_GE(shards(file("floats")), 3);
  EXPECT_EQ(nll_of(file("floats")), nll_of(dense_model()));
  for (const char* type : {"i2_s", "extended"})
    EXPECT_FAILS(call({"quantize", dense_model(), file("y"), "--type", type, "--shard-size", "1MiB"}), kUsage,
                 "--shard-size is for --type hf");
  EXPECT_FAILS(call({"convert", dense_model(), file("y"), "--shard-size", "small"}), kUsage,
               "--shard-size: expected a number of bytes");
  EXPECT_FAILS(call({"convert", dense_model(), file("hf"), "--shard-size", "500000"}), kFailure,
               "another model");
}

TEST_F(ModelsTest, QuantizeChoosesActivationBitsAndTheModelRunsThem) {
  std::string story;
  for (int i = 0; i < 60; ++i) story += "the cat sat on mat " + std::to_string(i * i) + ", the end. ";
  const std::string text = file("story.txt", story);
  const auto quantize = [&](const std::string& tolerance) {
    const std::string plan =
        file("a.yaml", "scheme: adaptive\nweights: {method: ls, scales: row}\nactivations: {tolerance: " +
                           tolerance + "}\nlayers: [{match: '*ffn_down', activation_bits: 8}]\n");
    const auto o = call({"quantize", dense_model(), file("m" + tolerance), "--plan", plan, "--type",
                         "extended", "--calibrate", text, "--calibration-tokens", "256"});
    EXPECT_EQ(o.code, kOk) << o.err;
    return o.err;
  };
  EXPECT_THAT(quantize("0"), Not(HasSubstr("activations of 4 bits")));
  EXPECT_THAT(quantize("1"), HasSubstr("activations of 4 bits for 12 of 14 linears"));
  EXPECT_EQ(call({"run", "-m", file("m1"), "-p", "x", "-n", "2"}).code, kOk);
  EXPECT_NE(nll_of(file("m1")), nll_of(file("m0")));
  const auto j = json::parse(call({"inspect", "--json", file("m1")}).out);
  EXPECT_THAT(j.dump(), HasSubstr("U8 packed, 4-bit activations"));
  EXPECT_FAILS(call({"convert", file("m1"), file("m.gguf"), "--type", "tq1_0"}), kFailure,
               "this model's linears are of several kinds");
  EXPECT_FAILS(call({"quantize", dense_model(), file("n"), "--plan", file("a.yaml"), "--type", "extended"}),
               kFailure, "the scheme adaptive needs calibration data");
}

TEST_F(ModelsTest, ADirectoryMayBeNamedWithASlash) {
  for (const char* type : {"hf", "extended"}) {
    const std::string out = file(std::string(type) + "/");
    const auto o = call({"quantize", dense_model(), out, "--method", "ls", "--type", type});
    ASSERT_EQ(o.code, kOk) << o.err;
    EXPECT_EQ(call({"run", "-m", out, "-p", "x", "-n", "2"}).code, kOk);
    EXPECT_FAILS(call({"quantize", dense_model(), file("none/m/"), "--type", type}), kFailure,
                 "there is no directory '");
  }
  const auto o = call({"convert", model(), file("converted/")});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_EQ(nll_of(file("converted/")), nll_of(model()));
  EXPECT_FAILS(call({"convert", model(), file("m.gguf/"), "--type", "hf"}), kFailure, "would mislead");
}

TEST_F(ModelsTest, QuantizeWarnsOfLittleTextOncePerInput) {
  const std::string text = file("little.txt", "only a few words, which are not enough of them");
  const auto o = call({"quantize", dense_model(), file("q.gguf"), "--method", "gptq", "--calibrate", text});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("warning: blk.0.attn_q.weight, blk.0.attn_k.weight, blk.0.attn_v.weight: "
                               "calibrated on "));
  std::size_t said = 0;
  for (std::size_t at = 0; (at = o.err.find(": calibrated on ", at)) != std::string::npos; ++at) ++said;
  EXPECT_EQ(said, 8u) << o.err;  // two layers of four inputs
}

TEST_F(ModelsTest, QuantizeWarnsOfALinearWithoutEffect) {
  const std::string zero = file("zero.gguf");
  fs::copy(dense_model(), zero);
  {
    std::fstream out(zero, std::ios::in | std::ios::out | std::ios::binary);
    const auto gguf = GgufFile::open(zero);
    const auto data = gguf->data(*gguf->find("blk.1.ffn_up.weight"));
    out.seekp(data.data() - gguf->file().bytes().data());
    const std::string zeros(data.size(), '\0');
    out.write(zeros.data(), static_cast<std::streamsize>(zeros.size()));
  }
  const auto o = call({"quantize", zero, file("q.gguf"), "--method", "ls"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("warning: blk.1.ffn_up.weight: every weight is 0: the linear has no effect"));
  EXPECT_EQ(o.err.find("kept as it is"), std::string::npos) << o.err;
}

TEST_F(ModelsTest, QuantizeRefusesBeforeItWorks) {
  const std::string text = file("t.txt", "some words"), out = file("q.gguf");
  const auto expect = [&](std::vector<std::string> more, int code, const char* message) {
    std::vector<std::string> all{"quantize", dense_model(), out};
    all.insert(all.end(), more.begin(), more.end());
    EXPECT_FAILS(call(all), code, message);
    EXPECT_FALSE(fs::exists(out));
  };
  expect({"--method", "gptq"}, kFailure, "the method gptq needs calibration data");
  expect({"--method", "ls", "--scales", "row"}, kFailure,
         "i2_s cannot hold the plan of blk.0.attn_q: scales by row");
  expect({"--plan", file("p.yaml", "weigths: {}\n")}, kFailure,
         "p.yaml:1: unknown key 'weigths', did you mean");
  expect({"--plan", file("p.yaml", "layers: [{match: blk.0.attn_w, method: ls}]\n")}, kFailure,
         "near ones are blk.0.attn_");
  expect({"--plan", file("p.yaml", ""), "--method", "ls"}, kUsage, "--method and --plan exclude each other");
  expect({"--through-quantised"}, kUsage, "need the text of --calibrate");
  expect({"--calibrate", text, "--calibration", text}, kUsage, "exclude each other");
  expect({"--calibrate", file("none.txt", "")}, kFailure, "1 tokens: expected two and more");
  expect({"--calibration", text}, kFailure, "t.txt");
  expect({"--report", dense_model()}, kUsage, "is a file of the input");
  expect({"--report", out}, kUsage, "is the output");
  expect({"--evaluate", file("missing.txt")}, kFailure, "missing.txt");
  expect({"--calibrate", "-", "--evaluate", "-"}, kUsage, "one can be standard input");
  expect({"--calibrate", "-", "--work", file("wk")}, kUsage, "--work: --calibrate needs a file");
  expect({"--report", file("none/r.html")}, kUsage, "there is no directory");
  expect({"--calibrate", text, "--save-calibration", file("none/c")}, kUsage, "there is no directory");
  EXPECT_FALSE(fs::exists(file("wk")));
  // Nothing is written over what is read.
  for (const char* option : {"--calibrate", "--evaluate"}) {
    expect({option, text, "--report", text}, kFailure, "would replace the file of --");
    EXPECT_FAILS(call({"quantize", dense_model(), text, option, text}), kFailure,
                 "would replace the file of");
  }
  expect({"--calibrate", text, "--save-calibration", text}, kFailure,
         "would replace the file of --calibrate");
  EXPECT_EQ(read_file(text), "some words");
  fs::create_directory(file("used"));
  file("used/a.txt", "something");
  EXPECT_FAILS(call({"quantize", dense_model(), file("used"), "--type", "extended"}), kFailure,
               "is not empty");
}

TEST_F(ModelsTest, QuantizeWritesAPageAndItsJson) {
  const auto o =
      call({"quantize", dense_model(), file("p.gguf"), "--method", "ls", "--report", file("p.html")});
  ASSERT_EQ(o.code, kOk) << o.err;
  const std::string html = read_file(file("p.html"));
  EXPECT_THAT(html, HasSubstr("Linears, the worst first"));
  EXPECT_THAT(html, HasSubstr("stored as 0"));
  const json lost = json::parse(read_file(file("p.json")));
  ASSERT_EQ(lost["linears"].size(), 14u);
  for (const auto& l : lost["linears"]) EXPECT_NEAR(l["threshold"].get<double>(), 0.5, 0.01);
  EXPECT_EQ(lost["layers"].size(), 2u);
  // Nothing but the page and the JSON is refused as a place for the other.
  const std::string page = file("dense.html");
  fs::copy(dense_model(), file("dense.json"));
  EXPECT_FAILS(call({"quantize", file("dense.json"), file("q.gguf"), "--report", page}), kUsage,
               "dense.json' is a file of the input");
}

TEST_F(ModelsTest, PlanWithinASizeIsWhatQuantizeMakes) {
  std::string story;
  for (int i = 0; i < 60; ++i)
    story += "the cat sat on mat " + std::to_string(i * i) + ", and then the rat. ";
  const std::string text = file("story.txt", story), yaml = file("mixed.yaml");
  const auto plan = [&](std::vector<std::string> more) {
    std::vector<std::string> all{"plan", dense_model(),          yaml, "--calibrate", text, "--method",
                                 "ls",   "--calibration-tokens", "256"};
    all.insert(all.end(), more.begin(), more.end());
    return call(all);
  };
  // All tensors beside linears in f16: two tables of 300 × 256, norms of f32.
  const std::int64_t beside = 2 * 2 * 300 * 256 + 5 * 4 * 256;
  const std::int64_t cells = 2 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 256 * 256);
  const std::int64_t budget = beside + cells / 2;
  const auto o = plan({"--budget-size", std::to_string(budget), "--sensitivity", file("s.json"), "-v"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("perplexity "));
  EXPECT_THAT(o.err, HasSubstr("blk.0.attn_q.weight: "));
  ASSERT_EQ(call({"quantize", dense_model(), file("mixed"), "--type", "extended", "--plan", yaml}).code, kOk);
  const auto index = json::parse(read_file(fs::path(file("mixed")) / "model.safetensors.index.json"));
  const std::int64_t size = index["metadata"]["total_size"];
  EXPECT_LE(size, budget);
  EXPECT_GT(size, budget - 256 * 256);  // a linear in two planes more would not have fitted
  std::string with_commas = std::to_string(size);
  for (auto i = static_cast<std::ptrdiff_t>(with_commas.size()) - 3; i > 0; i -= 3)
    with_commas.insert(static_cast<std::size_t>(i), ",");
  EXPECT_THAT(o.err, HasSubstr(": " + with_commas + " bytes of tensors"));
  EXPECT_EQ(call({"run", "-m", file("mixed"), "-p", "x", "-n", "2"}).code, kOk);
  // Another budget needs no measuring; a smaller model is worse.
  const std::string first = read_file(yaml);
  const auto cheap =
      plan({"--budget-size", std::to_string(beside + cells / 4 + 40000), "--sensitivity", file("s.json")});
  ASSERT_EQ(cheap.code, kOk) << cheap.err;
  EXPECT_THAT(cheap.err, HasSubstr("note: 14 linears were measured before"));
  EXPECT_NE(read_file(yaml), first);
  const auto again =
      plan({"--budget-size", std::to_string(budget), "--sensitivity", file("s.json"), "-t", "1"});
  ASSERT_EQ(again.code, kOk) << again.err;
  EXPECT_EQ(read_file(yaml), first);
  EXPECT_FAILS(plan({"--budget-size", std::to_string(budget), "--sensitivity", file("s.json"), "--candidates",
                     "int8"}),
               kFailure, "was measured of another model");
  // By the error of each linear's output alone.
  const auto estimate =
      plan({"--budget-size", std::to_string(budget), "--estimate", "--candidates", "ls:group32,int8"});
  ASSERT_EQ(estimate.code, kOk) << estimate.err;
  EXPECT_THAT(read_file(yaml), HasSubstr("scales: group32"));
  const auto loose = plan({"--budget-perplexity", "1.5", "--estimate"});
  ASSERT_EQ(loose.code, kOk) << loose.err;
  EXPECT_THAT(loose.err, HasSubstr(", all together"));
}

TEST_F(ModelsTest, PlanRefusesBeforeItWorks) {
  const std::string text = file("t.txt", "some words, and some more of them"), out = file("p.yaml");
  const auto expect = [&](std::vector<std::string> more, int code, const char* message) {
    std::vector<std::string> all{"plan", dense_model(), out};
    all.insert(all.end(), more.begin(), more.end());
    EXPECT_FAILS(call(all), code, message);
    EXPECT_FALSE(fs::exists(out));
  };
  expect({"--calibrate", text}, kUsage, "either --budget-size or --budget-perplexity");
  expect({"--calibrate", text, "--budget-size", "1MiB", "--budget-perplexity", "2"}, kUsage, "either");
  expect({"--budget-size", "1MiB"}, kUsage, "expected a text: --calibrate");
  expect({"--budget-size", "1MiB", "--calibrate", "-"}, kUsage, "expected a file");
  expect({"--budget-size", "1MiB", "--calibration", text}, kUsage, "--evaluate beside --calibration");
  expect({"--budget-size", "big", "--calibrate", text}, kUsage, "--budget-size: expected a number of bytes");
  expect({"--budget-size", "1KiB", "--calibrate", text}, kUsage,
         "tensors that are no linears take 312,320 bytes");
  expect({"--budget-size", "400KiB", "--calibrate", text, "--method", "ls", "--estimate"}, kFailure,
         "the linears' smallest candidates take");
  expect({"--budget-size", "1MiB", "--calibrate", text, "--candidates", "int9"}, kUsage,
         "--candidates: unknown method 'int9'");
  EXPECT_FAILS(call({"plan", model(), out, "--budget-size", "1MiB", "--calibrate", text}), kFailure,
               "ternary already: there is nothing to plan");
  EXPECT_FAILS(call({"plan", dense_model(), dense_model(), "--budget-size", "1MiB", "--calibrate", text}),
               kUsage, "is a file of the input");
  // Nothing is written over what is read, and places for files are there.
  const auto to = [&](const std::string& yaml, std::vector<std::string> more) {
    std::vector<std::string> all{"plan", dense_model(), yaml, "--budget-size", "1MiB", "--calibrate", text};
    all.insert(all.end(), more.begin(), more.end());
    return call(all);
  };
  EXPECT_FAILS(to(text, {}), kFailure, "the plan would replace the file of --calibrate");
  EXPECT_FAILS(to(out, {"--sensitivity", text}), kFailure, "would replace the file of --calibrate");
  EXPECT_FAILS(to(out, {"--sensitivity", out}), kUsage, "is the output");
  EXPECT_FAILS(to(file("none/p.yaml"), {}), kUsage, "there is no directory");
  EXPECT_FAILS(to(out, {"--evaluate", file("missing.txt")}), kFailure, "missing.txt");
  EXPECT_EQ(read_file(text), "some words, and some more of them");
}

/// For its scope write() fails behind so many bytes of a file, as on a full disk, and needs no rights.
class SmallFiles {
 public:
  explicit SmallFiles(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit small{bytes, old_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  }
  ~SmallFiles() {
    setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, handler_);
  }
  SmallFiles(const SmallFiles&) = delete;
  SmallFiles& operator=(const SmallFiles&) = delete;

 private:
  void (*handler_)(int);
  rlimit old_{};
};

TEST_F(ModelsTest, AFullDiskLeavesTheOldFileWhole) {
  const std::string disk = file("disk");
  fs::create_directory(disk);
  write_file(fs::path(disk) / "m.gguf", "old");
  const auto o = [&] {
    const SmallFiles limit(64 << 10);
    return call({"convert", model(), disk + "/m.gguf", "--type", "tq2_0"});
  }();
  EXPECT_EQ(o.code, kFailure);
  EXPECT_THAT(o.err, HasSubstr("m.gguf': File too large"));
  EXPECT_EQ(read_file(fs::path(disk) / "m.gguf"), "old");
  EXPECT_EQ(std::distance(fs::directory_iterator(disk), fs::directory_iterator{}), 1);
}

TEST_F(ModelsTest, ShippedShapesAreRead) {
  for (const std::string name : {"bitnet-2b-4t", "1bitllm-large", "llama3-8b-1.58", "falcon3-1b"}) {
    // Gigabytes are not written in a test: Ctrl-C comes when the shape is read.
    std::atomic<bool> cancelled{true};
    CallOptions options;
    options.cancelled = &cancelled;
    const std::string config = testing::source_path("configs/synth/" + name + ".json").string();
    EXPECT_EQ(call({"synth", "--config", config, "-o", file("x.gguf")}, options).code, kInterrupted) << name;
  }
  EXPECT_FALSE(fs::exists(file("x.gguf")));
}

}  // namespace
}  // namespace bitnet::cli
