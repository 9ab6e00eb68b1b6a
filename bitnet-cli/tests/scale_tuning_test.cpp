// Tuning of scales and norms: in `bitnet quantize` and by itself. Gradients and the loop are
// bitnet-training/tests/tuning_test.cpp.
#include <nlohmann/json.hpp>

#include "bitnet/quant/model_io.hpp"
#include "cli_fixture.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

class ScaleTuningTest : public CliTest {
 protected:
  void SetUp() override {
    if (call({"--version"}).out.find(", training") == std::string::npos)
      GTEST_SKIP() << "built without training";
    std::string story;
    for (int i = 0; i < 60; ++i)
      story += "the cat sat on mat " + std::to_string(i * i) + ", and then the rat. ";
    text_ = file("story.txt", story);
  }
  /// The dense model made ternary in `out`.
  void quantise(const std::string& out, std::vector<std::string> more) {
    std::vector<std::string> all{"quantize", dense_model(), out};
    all.insert(all.end(), more.begin(), more.end());
    const auto o = call(all);
    ASSERT_EQ(o.code, kOk) << o.err;
  }
  Outcome tune(const std::string& in, const std::string& out, std::vector<std::string> more = {}) {
    std::vector<std::string> all{"tune-scales", in,    out,       "--original", dense_model(),
                                 "-f",          text_, "--steps", "10"};
    all.insert(all.end(), more.begin(), more.end());
    return call(all);
  }
  /// Mean KL divergence of a model's predictions from the original's.
  double divergence(const std::string& model) {
    const auto o = call({"compare", dense_model(), model, "-f", text_, "--json", "--ctx-size", "128"});
    EXPECT_EQ(o.code, kOk) << o.err;
    return json::parse(o.out)["mean_kl"];
  }
  static std::vector<std::int8_t> trits_of(const std::string& path) {
    const auto reader = quant::ModelReader::open(path);
    std::vector<std::int8_t> all;
    const auto add = [&](const std::vector<std::int8_t>& some) {
      all.insert(all.end(), some.begin(), some.end());
    };
    for (const TensorId id : reader->tensors()) {
      if (!is_linear(id.role)) continue;
      const quant::LogicalTensor t = reader->read(id);
      if (t.ternary) add(t.weights.trits);
      if (t.int8) add(t.int8->values);
      if (t.planes) {
        add(t.planes->first.trits);
        add(t.planes->second.trits);
      }
    }
    return all;
  }
  std::string text_;
};

TEST_F(ScaleTuningTest, QuantizeTunesInTheSameCallAndSaysSo) {
  quantise(file("before.gguf"), {"--method", "ls"});
  quantise(file("q.gguf"), {"--method", "ls", "--calibrate", text_, "--tune-steps", "10", "--report",
                            file("lost.html"), "--evaluate", text_});
  EXPECT_EQ(trits_of(file("q.gguf")), trits_of(file("before.gguf")));
  EXPECT_LT(divergence(file("q.gguf")), divergence(file("before.gguf")));
  const json tuning = json::parse(read_file(file("lost.json")))["tuning"];
  EXPECT_EQ(tuning["steps"], 10);
  EXPECT_EQ(tuning["kept"], false);
  EXPECT_LT(tuning["loss_after"], tuning["loss_before"]);
  EXPECT_THAT(read_file(file("lost.html")), HasSubstr("loss after tuning"));
  // A directory that is not there yet, written with a slash.
  const auto slash = tune(file("before.gguf"), file("tuned/"), {"--type", "hf"});
  EXPECT_EQ(slash.code, kOk) << slash.err;
  // The same as in two calls, on any number of threads.
  const std::string first = read_file(file("q.gguf"));
  quantise(file("q.gguf"), {"--method", "ls", "--tune-text", text_, "--tune-steps", "10", "--threads", "1"});
  EXPECT_TRUE(read_file(file("q.gguf")) == first);
  const fs::path apart = file("apart");
  fs::create_directory(apart);
  const std::string q = (apart / "q.gguf").string();  // the same name: it is in the file, too
  const auto o = tune(file("before.gguf"), q, {"--threads", "3"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("tuned scales, norms for 10 steps"));
  EXPECT_TRUE(read_file(q) == first);
}

TEST_F(ScaleTuningTest, EveryKindOfLinearInEveryFormatThatHoldsIt) {
  const std::string plan = file("p.yaml",
                                "scheme: mixed_precision\n"
                                "weights: {method: ls, scales: group32}\n"
                                "layers:\n"
                                "  - {match: '*ffn_up', method: two-plane, scales: row}\n"
                                "  - {match: '*attn_k', method: int8}\n"
                                "  - {match: '*attn_v', method: ls, scales: tensor, activation_bits: 4}\n"
                                "keep: ['*attn_output']\n");
  quantise(file("mixed"), {"--plan", plan, "--type", "extended"});
  quantise(file("hf"), {"--method", "ls", "--type", "hf"});
  quantise(file("tq.gguf"), {"--method", "ls", "--scales", "row", "--type", "tq2_0"});
  for (const std::string name : {"mixed", "hf", "tq.gguf"}) {
    const std::string tuned = file("tuned-" + name);
    const auto o = tune(file(name), tuned);
    ASSERT_EQ(o.code, kOk) << name << ": " << o.err;
    EXPECT_EQ(trits_of(tuned), trits_of(file(name))) << name;
    EXPECT_LT(divergence(tuned), divergence(file(name))) << name;
    EXPECT_EQ(call({"run", "-m", tuned, "-p", "x", "-n", "2"}).code, kOk) << name;
    const auto a = quant::ModelReader::open(file(name)), b = quant::ModelReader::open(tuned);
    EXPECT_EQ(a->format(), b->format());
    for (const TensorId id : a->tensors()) EXPECT_EQ(a->stored_type(id), b->stored_type(id)) << name;
  }
}

TEST_F(ScaleTuningTest, WhatCannotBeTunedIsSaidBeforeAnythingIsWritten) {
  quantise(file("q.gguf"), {"--method", "ls"});
  const std::string in = file("q.gguf"), out = file("t.gguf");
  const auto expect = [&](const Outcome& o, int code, const std::string& message) {
    EXPECT_FAILS(o, code, message);
    EXPECT_FALSE(fs::exists(out));
  };
  expect(call({"tune-scales", in, out, "-f", text_}), kUsage, "missing option --original");
  expect(call({"tune-scales", in, out, "--original", dense_model()}), kUsage, "missing option -f (--file)");
  expect(tune(in, out, {"--original", file("none")}), kFailure, "none");
  expect(tune(dense_model(), out), kFailure, "every linear of the model is in full precision");
  const std::string little = file("little.txt", "only a few words, which are not enough of them");
  expect(call({"tune-scales", in, out, "--original", dense_model(), "-f", little}), kFailure,
         "a step takes 4 windows of");
  expect(tune(in, out, {"--rate", "2"}), kUsage, "--rate");
  EXPECT_FAILS(tune(in, text_, {"--type", "i2_s"}), kFailure, "would replace the file of --file");
  fs::create_directory(file("used"));
  file("used/a.txt", "something");
  EXPECT_FAILS(tune(in, file("used"), {"--type", "extended"}), kFailure, "is not empty");
  EXPECT_FAILS(tune(in, in), kFailure, "input and output are the same");
  EXPECT_FAILS(tune(in, dense_model()), kFailure, "input and output are the same");
  // What the output cannot hold, before the text is read.
  const std::string rows = file("rows.gguf"), missing = file("missing.txt");
  quantise(rows, {"--method", "ls", "--scales", "row", "--type", "tq2_0"});
  for (const char* type : {"i2_s", "hf"})
    expect(call({"tune-scales", rows, type == std::string("hf") ? file("hf") : out, "--original",
                 dense_model(), "-f", missing, "--type", type}),
           kFailure, "holds one scale a matrix, got 256; types that would do: tq1_0, tq2_0, extended");
  fs::create_directory(file("other"));
  file("other/model.safetensors.index.json", "{}");
  EXPECT_FAILS(
      call({"tune-scales", in, file("other"), "--original", dense_model(), "-f", missing, "--type", "hf"}),
      kFailure, "the directory holds another model's");
  // Nothing is written into the original.
  ASSERT_EQ(call({"convert", dense_model(), file("original")}).code, kOk);
  EXPECT_FAILS(call({"tune-scales", in, file("original/model.safetensors"), "--original", file("original"),
                     "-f", text_, "--type", "i2_s"}),
               kFailure, "is a file of the input, which it would replace");
  // An original whose ids stand for other words, and one of another size.
  std::string other = tiny_llama_config();
  other.replace(other.find("\"vocab_size\": 300"), 17, "\"vocab_size\": 340");
  const std::string larger = file("larger.gguf");
  ASSERT_EQ(call({"synth", "--config", file("other.json", other), "--type", "f16", "-o", larger}).code, kOk);
  expect(tune(in, out, {"--original", larger}), kFailure, "has another vocabulary: token ");
  std::atomic<bool> cancelled{true};
  const auto stopped =
      call({"tune-scales", in, out, "--original", dense_model(), "-f", text_}, {.cancelled = &cancelled});
  EXPECT_EQ(stopped.code, kInterrupted) << stopped.err;
  EXPECT_FALSE(fs::exists(out));
  const auto quantize = [&](std::vector<std::string> more) {
    std::vector<std::string> all{"quantize", dense_model(), out, "--method", "ls"};
    all.insert(all.end(), more.begin(), more.end());
    return call(all);
  };
  expect(quantize({"--tune-steps", "5"}), kUsage, "--tune-steps needs a text");
  expect(quantize({"--tune-text", text_}), kUsage, "--tune-text needs --tune-steps");
  expect(quantize({"--calibrate", "-", "--tune-steps", "5"}), kUsage, "--tune-text names a file");
  expect(quantize({"--tune-text", little, "--tune-steps", "5"}), kFailure, "a step takes 4 windows of");
}

TEST_F(ScaleTuningTest, ARateThatHelpsNothingLeavesTheModelAsItWas) {
  quantise(file("q.gguf"), {"--method", "ls"});
  const auto o = call({"tune-scales", file("q.gguf"), file("t.gguf"), "--original", file("q.gguf"), "-f",
                       text_, "--steps", "2", "--rate", "0.5"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("warning: 2 steps did not lower the loss"));
  EXPECT_EQ(divergence(file("t.gguf")), divergence(file("q.gguf")));
}

}  // namespace
}  // namespace bitnet::cli
