// Quantising in the forms that there are: quantize, and its models in convert and run. What it refuses before
// it works is quantize_checks_test.cpp.
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "bitnet/core/dtype.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "bitnet/core/rng.hpp"
#include "calibrating.hpp"
#include "scored_models.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

class QuantizeTest : public ScoredModels {};

TEST_F(QuantizeTest, MakesADenseModelTernaryAndWarns) {
  const auto o = call({"quantize", dense_model(), file("t.gguf"), "--method", "absmean", "--type", "i2_s"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("was not trained for ternary weights: rounding it destroys it"));
  const auto j = json::parse(call({"inspect", "--json", file("t.gguf")}).out);
  EXPECT_EQ(j["tensors"][2]["type"], "I2_S");
  EXPECT_EQ(call({"run", "-m", file("t.gguf"), "-p", "x", "-n", "2"}).code, kOk);
  EXPECT_FAILS(call({"quantize", model(), file("u.gguf")}), kFailure, "ternary already");
  EXPECT_FAILS(call({"quantize", dense_model(), file("u.gguf"), "--type", "f16"}), kUsage, "--type");
}

TEST_F(QuantizeTest, WithCalibrationLosesLessAndSaysWhat) {
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
  // The inputs: in the report, on the terminal, and in what was saved, without the model.
  ASSERT_EQ(lost["inputs"].size(), 8u);
  EXPECT_EQ(lost["inputs"][7]["name"], "blk.1.ffn_down");
  EXPECT_THAT(o.err, HasSubstr("columns that stand out\nblk.0.attn_q "));
  const auto saved = call({"inspect", file("c.safetensors")});
  ASSERT_EQ(saved.code, kOk) << saved.err;
  EXPECT_THAT(o.err, HasSubstr(saved.out));
  EXPECT_EQ(json::parse(call({"inspect", "--json", file("c.safetensors")}).out), lost["inputs"]);
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

TEST_F(QuantizeTest, InSeveralWaysAndRun) {
  const std::string plan = file("p.yaml",
                                "scheme: mixed_precision\n"
                                "weights: {method: ls, scales: group32}\n"
                                "layers:\n"
                                "  - {match: '*ffn_up', method: two-plane}\n"
                                "  - {match: '*attn_k', method: int8}\n"
                                "keep: ['*attn_output']\n");
  // A call that was killed left its half in a directory that was empty; that is no model.
  fs::create_directories(file("mixed/.new.4711.0.partial"));
  file("mixed/.new.4711.0.partial/config.json", "{");
  const auto o = call({"quantize", dense_model(), file("mixed"), "--plan", plan, "--type", "extended"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_FALSE(fs::exists(file("mixed/.new.4711.0.partial")));
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

TEST_F(QuantizeTest, WithoutATypeTheModelGoesWhereItsLinearsFit) {
  const auto type_of = [&](const std::string& path) {
    return json::parse(call({"inspect", "--json", path}).out)["tensors"][2]["type"].get<std::string>();
  };
  const auto convert = [&](const char* in, const char* out) {
    const auto o = call({"convert", file(in), file(out)});
    EXPECT_EQ(o.code, kOk) << o.err;
    EXPECT_EQ(nll_of(file(out)), nll_of(file(in)));
  };
  // One plane with one scale is what a GGUF holds, however it is stored.
  ASSERT_EQ(call({"quantize", dense_model(), file("plain"), "--method", "ls", "--type", "extended"}).code,
            kOk);
  convert("plain", "plain.gguf");
  EXPECT_EQ(type_of(file("plain.gguf")), "I2_S");
  // Scales by row in a directory.
  ASSERT_EQ(call({"quantize", dense_model(), file("rows.gguf"), "--method", "ls", "--scales", "row", "--type",
                  "tq1_0"})
                .code,
            kOk);
  convert("rows.gguf", "rows");
  convert("rows.gguf", "again.gguf");
  EXPECT_EQ(type_of(file("again.gguf")), "TQ1_0");
  EXPECT_FAILS(call({"convert", file("rows"), file("m.gguf")}), kFailure,
               "--type, for a name that ends in .gguf: tensor 'blk.0.attn_q.weight': i2_s holds one scale a "
               "matrix, got 256; types that would do: tq1_0, tq2_0, extended");
  EXPECT_FALSE(fs::exists(file("m.gguf")));
}

TEST_F(QuantizeTest, ScalesByRowTravelBetweenTheTypesThatHoldThem) {
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

TEST_F(QuantizeTest, ScalesByGroupsOf256TravelBetweenTheTypesThatHoldThem) {
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

TEST_F(QuantizeTest, ShardSizeMakesSeveralFiles) {
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

TEST_F(QuantizeTest, ChoosesActivationBitsAndTheModelRunsThem) {
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

TEST_F(QuantizeTest, WarnsOfLittleTextOncePerInput) {
  const std::string text = file("little.txt", "only a few words, which are not enough of them");
  const auto o = call({"quantize", dense_model(), file("q.gguf"), "--method", "gptq", "--calibrate", text});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("warning: blk.0.attn_q.weight, blk.0.attn_k.weight, blk.0.attn_v.weight: "
                               "calibrated on "));
  std::size_t said = 0;
  for (std::size_t at = 0; (at = o.err.find(": calibrated on ", at)) != std::string::npos; ++at) ++said;
  EXPECT_EQ(said, 8u) << o.err;  // two layers of four inputs
}

TEST_F(QuantizeTest, WarnsOfALinearWithoutEffect) {
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

/// Standard error that does something once when some words pass.
class Tripwire : public std::stringbuf {
 public:
  Tripwire(std::string words, std::function<void()> act) : words_(std::move(words)), act_(std::move(act)) {}

 protected:
  std::streamsize xsputn(const char* text, std::streamsize n) override {
    const std::streamsize written = std::stringbuf::xsputn(text, n);
    if (act_ && str().find(words_) != std::string::npos) std::exchange(act_, nullptr)();
    return written;
  }

 private:
  std::string words_;
  std::function<void()> act_;
};

TEST_F(QuantizeTest, AnEvaluationThatFailsLeavesTheReport) {
  std::string story;
  for (int i = 0; i < 60; ++i) story += "the cat sat on mat " + std::to_string(i * i) + ". ";
  const std::string text = file("story.txt", story), out = file("q.gguf");
  // The model is gone between its writing and the evaluation.
  Tripwire wire("wrote '", [&] { fs::remove(out); });
  std::ostream err(&wire);
  const auto o = call(
      {"quantize", dense_model(), out, "--method", "ls", "--evaluate", text, "--report", file("lost.html")},
      {.err = &err});
  EXPECT_EQ(o.code, kFailure) << wire.str();
  EXPECT_THAT(wire.str(), HasSubstr("q.gguf"));
  const json lost = json::parse(read_file(file("lost.json")));
  EXPECT_EQ(lost["linears"].size(), 14u);
  EXPECT_TRUE(lost["logits"].is_null());
  EXPECT_THAT(read_file(file("lost.html")), HasSubstr("Linears, the worst first"));
}

TEST_F(QuantizeTest, BitsAWeightAreThoseOfTheFile) {
  for (const auto& [type, bits] : {std::pair{"tq1_0", 1.6875}, {"tq2_0", 2.0625}}) {
    const auto o = call({"quantize", dense_model(), file("q.gguf"), "--method", "ls", "--type", type,
                         "--report", file("lost.json")});
    ASSERT_EQ(o.code, kOk) << o.err;
    EXPECT_EQ(json::parse(read_file(file("lost.json")))["total"]["bits_per_weight"], bits);
    const auto tensors = json::parse(call({"inspect", "--json", file("q.gguf")}).out)["tensors"];
    for (const json& t : tensors)
      if (t["name"] == "blk.0.ffn_up.weight") {
        EXPECT_EQ(t["bytes"].get<double>(), 256 * 256 * bits / 8);
      }
  }
}

TEST_F(QuantizeTest, WritesAPageAndItsJson) {
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

}  // namespace
}  // namespace bitnet::cli
