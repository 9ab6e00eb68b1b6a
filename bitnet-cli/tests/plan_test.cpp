// Plans of mixed precision: plan, and what quantize makes of them.
#include <nlohmann/json.hpp>

#include "scored_models.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

class PlanTest : public ScoredModels {};

TEST_F(PlanTest, OfAnAdaptiveConfigurationStaysAdaptive) {
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

TEST_F(PlanTest, LittleTextIsWarnedOf) {
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

TEST_F(PlanTest, WithinASizeIsWhatQuantizeMakes) {
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

TEST_F(PlanTest, RefusesBeforeItWorks) {
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
