// `bitnet train` end to end with a tiny model.
#include "cli_fixture.hpp"

namespace bitnet::cli {
namespace {

namespace fs = std::filesystem;

class TrainTest : public CliTest {
 protected:
  void SetUp() override {
    if (call({"--version"}).out.find(", training") == std::string::npos)
      GTEST_SKIP() << "built without training";
  }
  /// A run of a few steps on a text that is easy to learn.
  std::string config(const std::string& more = {}, int hidden = 128) {
    std::string text;
    for (int i = 0; i < 300; ++i) text += "The cat sat on the mat and looked at the dog.\n";
    file("text.txt", text);
    const std::string size = std::to_string(hidden);
    return file(
        "train.yaml",
        "model: {vocab_size: 300, hidden_size: " + size + ", intermediate_size: " + size +
            ", layers: 1, heads: 2, kv_heads: 1, context: 64}\n"
            "data: {train: " +
            file("text.txt") + ", validation: " + file("text.txt") + ", held_out: " + file("text.txt") +
            "}\n"
            "training: {steps: 4, warmup: 1, learning_rate: 1.0e-3, length: 32, batch: 2, micro_batch: 1}\n"
            "output: {directory: " +
            file("out") + ", log_every: 1, evaluate_every: 2}\n" + more);
  }
};

TEST_F(TrainTest, TrainsAndWritesAModelThatRuns) {
  const auto o = call({"train", config()});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.out, HasSubstr("validation perplexity "));
  EXPECT_THAT(o.out, HasSubstr("\nheld-out perplexity "));
  EXPECT_THAT(o.err, HasSubstr("step 1/4"));
  EXPECT_THAT(o.err, HasSubstr("loss "));
  EXPECT_TRUE(fs::exists(file("out") + "/log.jsonl"));
  for (const std::string name : {"/model", "/model.gguf"})
    EXPECT_EQ(call({"run", "-m", file("out") + name, "-p", "The cat", "-n", "2"}).code, kOk) << name;
  EXPECT_FAILS(call({"train", config()}), kFailure, "resume");
}

TEST_F(TrainTest, CtrlCKeepsACheckpointAndResumeContinues) {
  std::atomic<bool> cancelled{true};
  const auto stopped = call({"train", config()}, {.cancelled = &cancelled});
  EXPECT_EQ(stopped.code, kInterrupted) << stopped.err;
  EXPECT_THAT(stopped.err, HasSubstr("--resume"));
  const auto o = call({"train", config(), "--resume"});
  EXPECT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("step 4/4"));
}

TEST_F(TrainTest, ADryRunSaysWhatARunTakesAndWritesNothing) {
  const auto o = call({"train", config(), "--dry-run"});
  ASSERT_EQ(o.code, kOk) << o.err;
  for (const char* line :
       {"parameters\t", "\nvocabulary\t", "\nepoch\t", "\nstep\t", "\nrun\t4 steps, ", "\nmemory\t",
        "\ncheckpoint\t", "\nresult\tmodel/ and model.gguf\n", "\nprocess\t"})
    EXPECT_THAT(o.out, HasSubstr(line));
  EXPECT_FALSE(fs::exists(file("out")));
  std::string binary = config();
  file("text.txt", std::string("a\0b", 3));
  EXPECT_FAILS(call({"train", binary, "--dry-run"}), kFailure, "is no text");
}

TEST_F(TrainTest, SamplesOfTextGoToTheTerminalAndTheLog) {
  for (const std::string quantization : {"ternary", "none"}) {
    std::string text = read_file(config());
    text.replace(text.find("layers: 1"), 9, "quantization: " + quantization + ", layers: 1");
    text.replace(text.find("log_every: 1"), 12,
                 "log_every: 1, sample_every: 2, sample_prompt: The cat, sample_tokens: 6");
    const std::string out = file("out-" + quantization);
    text.replace(text.find(file("out")), file("out").size(), out);
    const auto o = call({"train", file(quantization + ".yaml", text)});
    ASSERT_EQ(o.code, kOk) << o.err;
    EXPECT_THAT(o.err, HasSubstr("step 2 writes: \"The cat"));
    EXPECT_THAT(o.err, HasSubstr("step 4 writes: \"The cat"));
    EXPECT_THAT(o.err, Not(HasSubstr("no sample")));
    EXPECT_THAT(read_file(out + "/log.jsonl"),
                HasSubstr(R"({"type":"sample","step":4,"prompt":"The cat","text":")"));
    EXPECT_FALSE(fs::exists(out + "/sample-model"));
    if (quantization == "none") continue;
    // What the last one says is what the model that was exported says.
    const auto run = call({"run", "-m", out + "/model.gguf", "-p", "The cat", "-n", "6", "--temp", "0"});
    ASSERT_EQ(run.code, kOk) << run.err;
    std::string continued = run.out;
    while (continued.ends_with('\n')) continued.pop_back();
    EXPECT_THAT(o.err, HasSubstr("step 4 writes: \"The cat" + continued.substr(0, continued.find('\n'))));
  }
}

TEST_F(TrainTest, SamplesChangeNoBit) {
  std::string text = read_file(config());
  ASSERT_EQ(call({"train", file("plain.yaml", text)}).code, kOk);
  const std::string expected = read_file(file("out") + "/model.gguf");
  text.replace(text.find("log_every: 1"), 12,
               "log_every: 1, sample_every: 1, sample_prompt: The, sample_tokens: 3");
  text.replace(text.find(file("out")), file("out").size(), file("sampled"));
  ASSERT_EQ(call({"train", file("sampled.yaml", text)}).code, kOk);
  EXPECT_TRUE(read_file(file("sampled") + "/model.gguf") == expected);
}

TEST_F(TrainTest, AnAdapterIsSampledOnItsBase) {
  ASSERT_EQ(call({"train", config()}).code, kOk);
  const std::string yaml =
      file("lora.yaml",
           "lora: {base: " + file("out") + "/model.gguf, rank: 2}\ndata: {train: " + file("text.txt") +
               ", validation: " + file("text.txt") +
               "}\ntraining: {steps: 2, learning_rate: 1.0e-3, length: 32, batch: 2}\noutput: {directory: " +
               file("adapter") + ", sample_every: 1, sample_prompt: The cat, sample_tokens: 4}\n");
  const auto o = call({"train", yaml});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("step 2 writes: \"The cat"));
  EXPECT_FALSE(fs::exists(file("adapter") + "/sample-adapter"));
}

TEST_F(TrainTest, APromptThatLeavesNoRoomIsFoundBeforeTheWork) {
  std::string text = read_file(config());
  text.replace(
      text.find("log_every: 1"), 12,
      "log_every: 1, sample_every: 1, sample_tokens: 60, sample_prompt: zebras quiz vex jinx fop gym");
  EXPECT_FAILS(call({"train", file("long.yaml", text), "--dry-run"}), kFailure, "output.sample_prompt has ");
}

TEST_F(TrainTest, PlotKeepsAPageOfCurves) {
  const auto o = call({"train", config(), "--plot"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("curves: " + file("out") + "/curves.html"));
  const std::string page = read_file(file("out") + "/curves.html");
  EXPECT_THAT(page, HasSubstr("4 of 4"));
  EXPECT_THAT(page, HasSubstr("held-out perplexity"));
  EXPECT_THAT(page, Not(HasSubstr("http-equiv")));  // the run is over
  // A run that fails before it begins leaves none.
  std::string text = read_file(config());
  text.replace(text.find(file("out")), file("out").size(), file("none"));
  text.replace(text.find("held_out: "), 10, "held_out: /absent");
  EXPECT_EQ(call({"train", file("absent.yaml", text), "--plot"}).code, kFailure);
  EXPECT_FALSE(fs::exists(file("none") + "/curves.html"));
}

TEST_F(TrainTest, PerplexityTakesACheckpoint) {
  ASSERT_EQ(call({"train", config()}).code, kOk);
  const std::string out = file("out");
  const auto of = [&](const std::string& model) {
    return call({"perplexity", "-m", model, "-f", file("text.txt"), "-c", "32", "--json"});
  };
  const auto perplexity = [](const Outcome& o) {
    EXPECT_EQ(o.code, kOk) << o.err;
    return o.out.substr(0, o.out.find("\"seconds\""));
  };
  EXPECT_EQ(perplexity(of(out + "/checkpoint.safetensors")), perplexity(of(out + "/model.gguf")));
  EXPECT_EQ(of(out + "/checkpoint.safetensors").code, kOk);
  EXPECT_FAILS(call({"perplexity", "-m", out + "/checkpoint.safetensors", "-f", file("text.txt"),
                     "--quantize", "absmean"}),
               kUsage, "training checkpoint");
  fs::remove(out + "/tokenizer.json");
  EXPECT_FAILS(of(out + "/checkpoint.safetensors"), kFailure,
               "expected the tokenizer.json of its run beside it");
}

TEST_F(TrainTest, AModelInFullPrecisionIsNowhereTakenForLatentWeights) {
  std::string text = read_file(config());
  text.replace(text.find("layers: 1"), 9, "quantization: none, layers: 1");
  const auto trained = call({"train", file("none.yaml", text)});
  ASSERT_EQ(trained.code, kOk) << trained.err;
  std::string first;
  for (const std::string name : {"/checkpoint.safetensors", "/model", "/model.gguf"}) {
    const auto o = call({"perplexity", "-m", file("out") + name, "-f", file("text.txt"), "-c", "32"});
    ASSERT_EQ(o.code, kOk) << o.err;
    if (first.empty()) first = o.out;
    EXPECT_EQ(o.out, first) << name;
    EXPECT_THAT(o.err, Not(HasSubstr("ternar")));
  }
  // Its weights are rounded as the plan says, and not by absmean, which it was not trained with.
  for (const std::string name : {"/model", "/model.gguf"}) {
    const std::string ls = file("ls-" + name.substr(1)) + ".gguf";
    const auto o = call({"quantize", file("out") + name, ls, "--method", "ls", "--verbose"});
    ASSERT_EQ(o.code, kOk) << o.err;
    EXPECT_THAT(o.out + o.err, Not(HasSubstr("master weights")));
    EXPECT_EQ(call({"run", "-m", ls, "-p", "The", "-n", "2"}).code, kOk);
  }
  EXPECT_THAT(call({"quantize", file("out") + "/model", file("absmean.gguf")}).err,
              HasSubstr("was not trained for ternary weights"));
}

TEST_F(TrainTest, AModelWithOtherScalesRunsIsSampledAndScored) {
  for (const std::string scales : {"row", "group"}) {
    std::string text = read_file(config("", 256));
    text.replace(text.find("layers: 1"), 9, "scales: " + scales + ", layers: 1");
    text.replace(text.find("log_every: 1"), 12,
                 "log_every: 1, sample_every: 4, sample_prompt: The cat, sample_tokens: 3");
    const std::string out = file("out-" + scales);
    text.replace(text.find(file("out")), file("out").size(), out);
    const auto trained = call({"train", file(scales + ".yaml", text)});
    ASSERT_EQ(trained.code, kOk) << trained.err;
    EXPECT_THAT(trained.err, HasSubstr("the result will be model/, and no model.gguf"));
    EXPECT_THAT(trained.err, HasSubstr("step 4 writes: \"The cat"));
    EXPECT_FALSE(fs::exists(out + "/model.gguf"));
    EXPECT_EQ(call({"run", "-m", out + "/model", "-p", "The cat", "-n", "2"}).code, kOk);
    const auto score = [&](const std::string& model) {
      const auto o = call({"perplexity", "-m", model, "-f", file("text.txt"), "-c", "32", "--json"});
      EXPECT_EQ(o.code, kOk) << o.err;
      return o.out.substr(0, o.out.find("\"seconds\""));
    };
    EXPECT_EQ(score(out + "/checkpoint.safetensors"), score(out + "/model"));
  }
}

TEST_F(TrainTest, AQuantisedModelIsTrainedOnAndRuns) {
  std::string text = read_file(config());
  text.replace(text.find("layers: 1"), 9, "quantization: none, layers: 1");
  ASSERT_EQ(call({"train", file("float.yaml", text)}).code, kOk);
  const std::string original = file("out") + "/model";
  const std::string mixed =
      file("mixed.yaml",
           "scheme: mixed_precision\n"
           "weights: {method: ls, scales: row}\n"
           "layers: [{match: '*ffn_up', method: two-plane}, {match: '*attn_k', method: int8}]\n");
  const auto quantise = [&](const std::string& to, std::vector<std::string> more) {
    std::vector<std::string> all{"quantize", original, file(to)};
    all.insert(all.end(), more.begin(), more.end());
    const auto o = call(all);
    EXPECT_EQ(o.code, kOk) << o.err;
  };
  quantise("one.gguf", {"--method", "ls"});
  quantise("rows", {"--method", "ls", "--scales", "row", "--type", "extended"});
  quantise("mixed", {"--plan", mixed, "--type", "extended"});
  const auto train = [&](const std::string& name, const std::string& keys, std::vector<std::string> more) {
    std::string yaml = read_file(config());
    const std::size_t begin = yaml.find("model: {"), end = yaml.find('}', begin) + 1;
    yaml.replace(begin, end - begin, "model: {base: " + file(name) + keys + "}");
    yaml.replace(yaml.find(file("out") + ","), file("out").size(), file("next-" + name));
    std::vector<std::string> all{"train", file(name + ".yaml", yaml)};
    all.insert(all.end(), more.begin(), more.end());
    const auto o = call(all);
    EXPECT_EQ(o.code, kOk) << o.err;
    return o.err;
  };
  EXPECT_THAT(train("rows", "", {"--dry-run"}),
              HasSubstr("linears that are ternary and begin with their trits: 7; scales by row"));
  EXPECT_FALSE(fs::exists(file("next-rows")));
  train("rows", "", {});
  EXPECT_THAT(train("one.gguf", "", {}), HasSubstr("scales by tensor"));
  EXPECT_THAT(train("mixed", ", original: " + original, {}),
              ::testing::AllOf(HasSubstr("latent weights of all linears are those of '" + original),
                               HasSubstr("quantisation grows from none to whole within 1 steps")));
  for (const std::string name : {"rows", "one.gguf", "mixed"})
    EXPECT_EQ(call({"run", "-m", file("next-" + name) + "/model", "-p", "The cat", "-n", "2"}).code, kOk)
        << name;
}

TEST_F(TrainTest, ACheckpointOfAnotherModelIsAnError) {
  ASSERT_EQ(call({"train", config()}).code, kOk);
  EXPECT_FAILS(call({"train", config("", 256), "--resume"}), kFailure, "checkpoint");
}

TEST_F(TrainTest, MistakesInTheYamlNameTheLine) {
  EXPECT_FAILS(call({"train", config("trainign: {}\n")}), kFailure, "train.yaml:5");
  EXPECT_FAILS(call({"train", file("bad.yaml", "model: [\n")}), kFailure, "bad.yaml");
  EXPECT_FAILS(call({"train", file("none.yaml")}), kFailure, "none.yaml");
}

}  // namespace
}  // namespace bitnet::cli
