// `--memory-limit` and BITNET_MEMORY_LIMIT: every command that has them keeps to them, and a limit that the
// model fits into is enough.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "cli_fixture.hpp"
#include "commands.hpp"

namespace bitnet::cli {
namespace {

class MemoryLimitTest : public CliTest {
 protected:
  Outcome run_model(const std::vector<std::string>& more) {
    std::vector<std::string> words{"run", "-m",     model(), "-p", "hello",  "-n",
                                   "8",   "--temp", "0",     "-v", "--seed", "1"};
    words.insert(words.end(), more.begin(), more.end());
    return call(words);
  }
  /// A call of each command that has the option.
  std::map<std::string_view, std::vector<std::string>> calls() {
    std::string lines;
    for (int i = 0; i < 300; ++i) lines += "The cat sat on the mat and looked at the dog.\n";
    const std::string text = file("text.txt", lines);
    const std::string train = file(
        "train.yaml",
        "model: {vocab_size: 300, hidden_size: 128, intermediate_size: 128, layers: 1, heads: 2, kv_heads: "
        "1, context: 64}\n"
        "data: {train: " +
            text + ", validation: " + text +
            "}\ntraining: {steps: 2, warmup: 1, learning_rate: 1.0e-3, length: 32, batch: 1, micro_batch: "
            "1}\n" +
            "output: {directory: " + file("out") + "}\n");
    const std::string quantised = file("quantised");
    EXPECT_EQ(call({"quantize", dense_model(), quantised, "--type", "hf", "--method", "ls"}).code, kOk);
    return {
        {"run", {"run", "-m", model(), "-p", "a", "-n", "2"}},
        {"chat", {"chat", "-m", model(), "--chat-template", "llama3"}},
        {"batch", {"batch", "-m", model(), "-i", text, "-o", "-", "-n", "2"}},
        {"perplexity", {"perplexity", "-m", model(), "-f", text, "-c", "64"}},
        {"bench", {"bench", "-m", model(), "-p", "8", "-n", "2", "-b", "1", "-r", "1"}},
        {"profile", {"profile", "memory", "-m", model(), "-p", "a", "-n", "2"}},
        {"quantize",
         {"quantize", dense_model(), file("limited"), "--type", "hf", "--method", "ls+refit", "--calibrate",
          text}},
        {"plan", {"plan", dense_model(), file("plan.yaml"), "--calibrate", text, "--budget-size", "2MiB"}},
        {"compare", {"compare", model(), model(), "-f", text, "--tokens", "64"}},
        {"tune-scales",
         {"tune-scales", quantised, file("tuned"), "--original", dense_model(), "-f", text, "--steps", "1"}},
        {"train", {"train", train}}};
  }
};

TEST_F(MemoryLimitTest, EveryCommandThatHasItKeepsToIt) {
  const bool trains = call({"--version"}).out.find(", training") != std::string::npos;
  const auto all = calls();
  for (const Command& command : commands()) {
    if (std::find(command.options.begin(), command.options.end(), &opt::kMemoryLimit) ==
        command.options.end())
      continue;
    SCOPED_TRACE(command.name);
    ASSERT_TRUE(all.contains(command.name)) << "has --memory-limit and no call here";
    if (command.name == "train" && !trains) continue;
    auto words = all.at(command.name);
    words.insert(words.end(), {"--memory-limit", "64KiB"});
    EXPECT_FAILS(call(words, {.input = "hello\n"}), kFailure, "limit 65536 bytes");
    words.back() = "lots";
    EXPECT_FAILS(call(words), kUsage, "--memory-limit: expected a number of bytes");
    words.resize(words.size() - 2);
    setenv("BITNET_MEMORY_LIMIT", "65KiB", 1);
    const Outcome limited = call(words, {.input = "hello\n"});
    unsetenv("BITNET_MEMORY_LIMIT");
    EXPECT_FAILS(limited, kFailure, "limit 66560 bytes");
  }
}

TEST_F(MemoryLimitTest, EveryCommandWithADeviceKeepsToThatOfTheDevice) {
  const bool has_device = call({"devices"}).out.find("opencl:0:0") != std::string::npos;
  auto all = calls();
  all["tune"] = {"tune", "-o", "-", "-r", "1"};
  for (const Command& command : commands()) {
    const auto has = [&](const Option& o) {
      return std::find(command.options.begin(), command.options.end(), &o) != command.options.end();
    };
    SCOPED_TRACE(command.name);
    EXPECT_EQ(has(opt::kDeviceMemoryLimit), has(opt::kDevice) || has(opt::kTuneDevice));
    if (!has(opt::kDeviceMemoryLimit) || !has_device) continue;
    ASSERT_TRUE(all.contains(command.name)) << "has --device-memory-limit and no call here";
    auto words = all.at(command.name);
    words.insert(words.end(), {"--device", "opencl:0:0", "--device-memory-limit", "64KiB"});
    if (command.name != "tune")  // which passes over candidates that have no room
      EXPECT_FAILS(call(words, {.input = "hello\n"}), kFailure, "limit 65536 bytes");
    words.back() = "lots";
    EXPECT_FAILS(call(words), kUsage, "--device-memory-limit: expected a number of bytes");
  }
}

TEST_F(MemoryLimitTest, OfADeviceDividesTheLayersAndSaysWhereItBoundsNothing) {
  const auto o = run_model({"--device-memory-limit", "1MiB"});
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr("note: --device-memory-limit bounds nothing: the model is on the CPU"));
  if (call({"devices"}).out.find("opencl:0:0") == std::string::npos) GTEST_SKIP() << "no OpenCL device";
  bool divided = false;
  for (int kib = 400; kib < 4000 && !divided; kib += 50) {  // the model is small
    const auto on_both = run_model({"--device", "opencl:0:0", "--gpu-layers", "auto", "-c", "128",
                                    "--device-memory-limit", std::to_string(kib) + "KiB"});
    ASSERT_EQ(on_both.code, kOk) << on_both.err;
    EXPECT_EQ(on_both.out, o.out) << kib;
    divided = on_both.err.find(" on cpu; layer") != std::string::npos;
  }
  EXPECT_TRUE(divided);
}

TEST_F(MemoryLimitTest, AModelRunsWithinLittleMoreThanItNeeds) {
  const auto free = run_model({});
  ASSERT_EQ(free.code, kOk) << free.err;
  for (const char* limit : {"12MiB", "16MiB", "1GiB"}) {
    const auto o = run_model({"--memory-limit", limit});
    ASSERT_EQ(o.code, kOk) << limit << o.err;
    EXPECT_EQ(o.out, free.out);
    EXPECT_THAT(o.err, Not(HasSubstr("of its limit"))) << limit;
  }
}

TEST_F(MemoryLimitTest, IsSaidWithThePressureItMakes) {
  const auto roomy = run_model({"--memory-limit", "1 GiB"});
  ASSERT_EQ(roomy.code, kOk) << roomy.err;
  EXPECT_THAT(roomy.err, HasSubstr("memory: pool 'host' holds "));
  EXPECT_THAT(roomy.err, HasSubstr(" of at most 1.0 GiB\n"));
  EXPECT_THAT(run_model({}).err, Not(HasSubstr("of at most")));
  double held = 0;
  const std::size_t says = roomy.err.find("holds ");
  ASSERT_EQ(std::sscanf(roomy.err.c_str() + says, "holds %lf MiB", &held), 1) << roomy.err;
  const std::string limit = std::to_string(1.08 * held);
  const auto tight = run_model({"--memory-limit", limit + "MiB"});
  ASSERT_EQ(tight.code, kOk) << tight.err;
  EXPECT_EQ(tight.out, roomy.out);
  EXPECT_THAT(tight.err, HasSubstr(" of at most "));
  EXPECT_THAT(tight.err, HasSubstr("memory: pressure was "));
  EXPECT_THAT(tight.err, HasSubstr("% of its limit\n"));
}

TEST_F(MemoryLimitTest, WhatIsNoLimitIsRefusedByName) {
  for (const char* bad : {"lots", "-1MiB", "0", "4 miles", "GiB", "1e30"})
    EXPECT_FAILS(run_model({"--memory-limit", bad}), kUsage,
                 "--memory-limit: expected a number of bytes, or one with KiB, MiB, GiB or TiB behind it");
  // The least that a pool takes, and no byte less.
  EXPECT_NO_THROW(HybridMemoryPool({.limit = 65536}));
  EXPECT_THROW(HybridMemoryPool({.limit = 65535}), Error);
  EXPECT_FAILS(run_model({"--memory-limit", "65536"}), kFailure, "limit 65536 bytes");
  for (const char* few : {"1", "1KiB", "65535"})
    EXPECT_FAILS(run_model({"--memory-limit", few}), kUsage,
                 "--memory-limit: expected at least 64 KiB, got '" + std::string(few) + "'");
}

}  // namespace
}  // namespace bitnet::cli
