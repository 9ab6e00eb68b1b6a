// `bitnet train` end to end with a tiny model, and `--device` with whatever OpenCL devices there are.
#include "bitnet/testing/opencl.hpp"
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
  for (const char* line : {"parameters\t", "\nvocabulary\t", "\nepoch\t", "\nstep\t", "\nrun\t4 steps, ",
                           "\nmemory\t", "\ncheckpoint\t", "\nprocess\t"})
    EXPECT_THAT(o.out, HasSubstr(line));
  EXPECT_FALSE(fs::exists(file("out")));
  std::string binary = config();
  file("text.txt", std::string("a\0b", 3));
  EXPECT_FAILS(call({"train", binary, "--dry-run"}), kFailure, "is no text");
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

class DeviceTest : public CliTest {
 protected:
  static bool has_opencl() { return call({"devices"}).out.find("\nopencl:0:0\t") != std::string::npos; }
};

TEST_F(DeviceTest, TheLinearLayersRunOnTheDeviceAndTheRestIsNamed) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_opencl());
  const std::vector<std::string> arguments{"run", "-m", model(), "-p", "hello", "-n", "8", "--seed", "1"};
  auto on_device = arguments;
  on_device.insert(on_device.end(), {"--device", "opencl:0:0"});
  const auto cpu = call(arguments), device = call(on_device);
  ASSERT_EQ(device.code, kOk) << device.err;
  EXPECT_EQ(device.out, cpu.out);
  EXPECT_THAT(device.err, HasSubstr("'opencl:0:0' lacks these operations, which run on the CPU: embed, "));
  on_device.push_back("--device-only");
  EXPECT_FAILS(call(on_device), kFailure, "embed");
}

TEST_F(DeviceTest, TheEnvironmentNamesTheDevice) {
  ASSERT_EQ(setenv("BITNET_DEVICE", "nosuch", 1), 0);
  const auto o = call({"run", "-m", model(), "-p", "x"});
  const auto overridden = call({"run", "-m", model(), "-p", "x", "-n", "1", "--device", "cpu"});
  unsetenv("BITNET_DEVICE");
  EXPECT_FAILS(o, kFailure, "there is no device 'nosuch'");
  EXPECT_EQ(overridden.code, kOk) << overridden.err;
}

}  // namespace
}  // namespace bitnet::cli
