// Quantising in the forms that there are, and planning it: quantize, plan, and their models in convert and
// run.
#include <cmath>
#include <cstring>
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

TEST_F(QuantizeTest, PlansOfAnAdaptiveConfigurationStayAdaptive) {
  std::string story;
  for (int i = 0; i < 60; ++i) story += "the cat sat on mat " + std::to_string(i * i) + ", the end. ";
  const std::string text = file("story.txt", story), yaml = file("mixed.yaml");
  const std::string config =
      file("a.yaml",
           "scheme: adaptive\nweights: {method: ls, scales: row}\nactivations: {tolerance: 1}\n"
           "layers: [{match: '*ffn_down', activation_bits: 8}]\n");
  const auto planned = call({"plan", dense_model(), yaml, "--plan", config, "--calibrate", text, "--estimate",
                             "--calibration-tokens", "256", "--budget-size", "700KiB"});
  ASSERT_EQ(planned.code, kOk) << planned.err;
  EXPECT_THAT(read_file(yaml), HasSubstr("bits: auto"));
  const auto o = call({"quantize", dense_model(), file("q"), "--plan", yaml, "--type", "extended",
                       "--calibrate", text, "--calibration-tokens", "256"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("activations of 4 bits for 12 of 14 linears"));
}

TEST_F(QuantizeTest, ACalibrationOfAnotherModelIsRefused) {
  std::string story;
  for (int i = 0; i < 60; ++i) story += "the cat sat on mat " + std::to_string(i * i) + ", the end. ";
  const std::string text = file("story.txt", story), kept = file("c.safetensors"), other = file("other.gguf");
  ASSERT_EQ(call({"synth", "--config", at("llama.json"), "--type", "f16", "--seed", "77", "-o", other}).code,
            kOk);
  const auto quantize = [&](const std::string& in, std::vector<std::string> more) {
    std::vector<std::string> words{"quantize", in, file("q.gguf"), "--method", "ls+refit"};
    words.insert(words.end(), more.begin(), more.end());
    return call(words);
  };
  ASSERT_EQ(quantize(dense_model(), {"--calibrate", text, "--save-calibration", kept}).code, kOk);
  const auto own = quantize(dense_model(), {"--calibration", kept});
  ASSERT_EQ(own.code, kOk) << own.err;
  EXPECT_THAT(own.err, Not(HasSubstr("does not say")));
  EXPECT_FAILS(quantize(other, {"--calibration", kept}), kFailure,
               "made with another model of the same sizes (fingerprint ");
  EXPECT_FAILS(
      call({"plan", other, file("p.yaml"), "--budget-size", "2MiB", "--estimate", "--calibration", kept}),
      kFailure, "(--foreign-calibration)");
  const auto all_the_same = quantize(other, {"--calibration", kept, "--foreign-calibration"});
  EXPECT_EQ(all_the_same.code, kOk) << all_the_same.err;
  // A file as it was before it said so.
  std::string bytes = read_file(kept);
  const std::size_t from = bytes.find("\"fingerprint\""), to = bytes.find("\"format\"", from);
  ASSERT_NE(to, std::string::npos);
  std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(from),
            bytes.begin() + static_cast<std::ptrdiff_t>(to), ' ');
  const std::string version = "\"format_version\":\"2\"";
  bytes.replace(bytes.find(version), version.size(), "\"format_version\":\"1\"");
  write_file(kept, bytes);
  const auto older = quantize(dense_model(), {"--calibration", kept});
  EXPECT_EQ(older.code, kOk) << older.err;
  EXPECT_THAT(older.err, HasSubstr("an older file, which does not say what model it was made with"));
}

TEST_F(QuantizeTest, ALayerOfAnotherModelIsNotTakenFromWork) {
  // Two models in one place, one after the other, of the same size and with the same time stamp.
  const std::string in = file("m.gguf"), work = file("work");
  fs::copy(dense_model(), in);
  const auto when = fs::last_write_time(in);
  const auto quantize = [&] {
    return call({"quantize", in, file("q.gguf"), "--method", "ls", "--work", work});
  };
  ASSERT_EQ(quantize().code, kOk);
  EXPECT_THAT(quantize().err, HasSubstr("2 layers were done before"));
  ASSERT_EQ(call({"synth", "--config", at("llama.json"), "--type", "f16", "--seed", "78", "-o", in}).code,
            kOk);
  fs::last_write_time(in, when);
  const auto other = quantize();
  ASSERT_EQ(other.code, kOk) << other.err;
  EXPECT_THAT(other.err, Not(HasSubstr("were done before")));
}

TEST_F(QuantizeTest, PlanAndActivationBitsWarnOfLittleText) {
  const std::string text = file("little.txt", "only a few words, which are not enough of them");
  const auto plan = call({"plan", dense_model(), file("p.yaml"), "--method", "ls", "--candidates", "int8",
                          "--estimate", "--budget-size", "2MiB", "--calibrate", text});
  ASSERT_EQ(plan.code, kOk) << plan.err;
  EXPECT_THAT(plan.err, HasSubstr("warning: blk.0.attn_q.weight, blk.0.attn_k.weight, blk.0.attn_v.weight: "
                                  "calibrated on "));
  EXPECT_THAT(plan.err, HasSubstr("at least 256 are needed for estimates of output errors, better 1024"));
  const std::string adaptive =
      file("b.yaml", "scheme: adaptive\nweights: {method: ls}\nactivations: {tolerance: 1}\n");
  const auto four = call({"plan", dense_model(), file("four.yaml"), "--plan", adaptive, "--candidates",
                          "int8", "--estimate", "--budget-size", "2MiB", "--calibrate", text});
  ASSERT_EQ(four.code, kOk) << four.err;
  EXPECT_THAT(four.err, HasSubstr("at least 512 are needed for activation bits, better 2048"));
  const auto bits = call({"quantize", dense_model(), file("q"), "--type", "extended", "--calibrate", text,
                          "--plan", file("a.yaml", "scheme: adaptive\nweights: {method: ls}\n")});
  ASSERT_EQ(bits.code, kOk) << bits.err;
  EXPECT_THAT(bits.err, HasSubstr("at least 512 are needed for activation bits, better 2048"));
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

TEST_F(QuantizeTest, ATensorThatIsNotFiniteIsNamedOnce) {
  for (const char* name : {"blk.1.ffn_up.weight", "token_embd.weight"}) {
    const std::string bad = file("bad.gguf");
    fs::copy_file(dense_model(), bad, fs::copy_options::overwrite_existing);
    {
      std::fstream out(bad, std::ios::in | std::ios::out | std::ios::binary);
      const auto gguf = GgufFile::open(bad);
      out.seekp(gguf->data(*gguf->find(name)).data() - gguf->file().bytes().data());
      const std::uint16_t nan = f32_to_f16(std::nanf(""));
      out.write(reinterpret_cast<const char*>(&nan), sizeof nan);
    }
    for (const char* type : {"extended", "hf", "tq2_0"}) {
      const auto o =
          call({"quantize", bad, file(std::string("out-") + type + name), "--method", "ls", "--type", type});
      EXPECT_FAILS(o, kFailure, "row 0, column 0 is nan, not finite");
      const std::size_t first = o.err.find("tensor '");
      EXPECT_NE(first, std::string::npos) << o.err;
      EXPECT_EQ(o.err.find("tensor '", first + 1), std::string::npos) << o.err;
    }
  }
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

TEST_F(QuantizeTest, RefusesBeforeItWorks) {
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
         "p.yaml:1: the pattern 'blk.0.attn_w' names no linear");
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
  // Places that are found wrong only when something is to be written there.
  const fs::path here = fs::path(out).parent_path();
  expect({"--report", here.string()}, kUsage, "is a directory: expected the name of a file");
  expect({"--calibrate", text, "--save-calibration", here.string()}, kUsage, "is a directory");
  expect({"--calibrate", text, "--save-calibration", file("c.json")}, kUsage, "read as an index");
  expect({"--calibrate", text, "--save-calibration", out}, kUsage, "is the output, or a file of it");
  for (const char* report : {"r.html", "r.JSON"})
    expect({"--calibrate", text, "--save-calibration", file(report), "--report", file(report)}, kUsage,
           "is a file of --report");
  for (const char* type : {"i2_s", "hf", "extended"})
    for (const char* work : {"q", "q/layers"}) {
      EXPECT_FAILS(call({"quantize", dense_model(), file("q"), "--type", type, "--work", file(work)}), kUsage,
                   "is the output, or in it");
      EXPECT_FALSE(fs::exists(file("q")));
    }
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
  fs::create_directory(file("other"));
  file("other/model-00001-of-00002.safetensors", "");
  EXPECT_FAILS(
      call({"quantize", dense_model(), file("other"), "--type", "hf", "--calibrate", file("missing.txt")}),
      kFailure, "the directory holds another model's 'model-00001-of-00002.safetensors'");
}

TEST_F(QuantizeTest, NothingIsWrittenOverAPlanOrACalibration) {
  std::string story;
  for (int i = 0; i < 60; ++i) story += "the cat sat on mat " + std::to_string(i * i) + ". ";
  const std::string text = file("story.txt", story), calibration = file("c.safetensors"),
                    plan = file("p.yaml", "weights: {method: ls}\n");
  ASSERT_EQ(call({"quantize", dense_model(), file("q.gguf"), "--method", "ls", "--calibrate", text,
                  "--save-calibration", calibration})
                .code,
            kOk);
  const std::string saved = read_file(calibration);
  for (const auto& [option, path] : {std::pair{"--plan", plan}, {"--calibration", calibration}}) {
    const std::string message = std::string("would replace the file of ") + option;
    EXPECT_FAILS(call({"quantize", dense_model(), path, option, path}), kFailure, message);
    EXPECT_FAILS(call({"quantize", dense_model(), file("r.gguf"), option, path, "--report", path}), kFailure,
                 message);
    EXPECT_FALSE(fs::exists(file("r.gguf")));
  }
  EXPECT_FAILS(call({"quantize", dense_model(), file("r.gguf"), "--plan", plan, "--calibrate", text,
                     "--save-calibration", plan}),
               kFailure, "would replace the file of --plan");
  EXPECT_FAILS(call({"plan", dense_model(), calibration, "--calibration", calibration, "--evaluate", text,
                     "--budget-size", "1MiB"}),
               kFailure, "would replace the file of --calibration");
  EXPECT_FAILS(
      call({"plan", dense_model(), plan, "--plan", plan, "--calibrate", text, "--budget-size", "1MiB"}),
      kUsage, "is a file of the input");
  EXPECT_TRUE(read_file(calibration) == saved);
  EXPECT_EQ(read_file(plan), "weights: {method: ls}\n");
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

TEST_F(QuantizeTest, PlanWithinASizeIsWhatQuantizeMakes) {
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

TEST_F(QuantizeTest, PlanRefusesBeforeItWorks) {
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
  const std::string here = fs::path(out).parent_path().string();
  EXPECT_FAILS(to(here, {}), kUsage, "is a directory: expected the name of a file");
  EXPECT_FAILS(to(out, {"--sensitivity", here}), kUsage, "is a directory: expected the name of a file");
  EXPECT_FAILS(to(out, {"--evaluate", file("missing.txt")}), kFailure, "missing.txt");
  EXPECT_EQ(read_file(text), "some words, and some more of them");
}

}  // namespace
}  // namespace bitnet::cli
