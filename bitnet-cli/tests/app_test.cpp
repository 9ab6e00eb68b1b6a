// The frame around the commands: help, version, unknown words, and output that cannot be written.
#include <fstream>
#include <nlohmann/json.hpp>

#include "bitnet/core/isa.hpp"
#include "cli_fixture.hpp"
#include "commands.hpp"
#include "loading.hpp"

namespace bitnet::cli {
namespace {

TEST(App, HelpAndVersionGoToStandardOutput) {
  for (const std::string word : {"--help", "-h", "help"}) {
    const auto o = call({word});
    EXPECT_EQ(o.code, kOk);
    EXPECT_THAT(o.out, HasSubstr("Commands:"));
    EXPECT_EQ(o.err, "");
  }
  EXPECT_THAT(call({"--version"}).out, HasSubstr("bitnet 0."));
  EXPECT_EQ(call({"help", "run"}).out, call({"run", "--help"}).out);
}

TEST(App, EveryCommandHelpsEvenWhenSomethingIsMissing) {
  for (const Command& command : commands()) {
    const auto o = call({std::string(command.name), "--help"});
    EXPECT_EQ(o.code, kOk) << command.name;
    EXPECT_EQ(o.out, command_help(command));
  }
}

TEST(App, WrongUsageIsExitCode2) {
  EXPECT_EQ(call({}).code, kUsage);
  EXPECT_THAT(call({}).err, HasSubstr("Commands:"));
  EXPECT_FAILS(call({"rnu"}), kUsage, "unknown command 'rnu', did you mean 'run'?");
  EXPECT_FAILS(call({"--frobnicate"}), kUsage, "unknown option '--frobnicate'");
  EXPECT_FAILS(call({"help", "rnu"}), kUsage, "did you mean 'run'?");
  EXPECT_FAILS(call({"run", "--tmep", "1"}), kUsage,
               "bitnet run: unknown option '--tmep', did you mean '--temp'?");
  EXPECT_FAILS(call({"run", "--tmep", "1"}), kUsage, "Try 'bitnet run --help'.");
  EXPECT_FAILS(call({"run", "-p", "x"}), kUsage, "missing option -m (--model) MODEL");
  EXPECT_FAILS(call({"inspect"}), kUsage, "missing argument MODEL");
}

TEST(App, AFullStandardOutputIsAnError) {
  std::ofstream full("/dev/full");
  CallOptions options;
  options.out = &full;
  EXPECT_FAILS(call({"--help"}, options), kFailure, "cannot write to standard output");
}

TEST(Devices, ListsTheCpuAndWhatAutoWouldChoose) {
  const auto o = call({"devices"});
  EXPECT_EQ(o.code, kOk);
  EXPECT_THAT(o.out, ::testing::StartsWith("cpu\t"));
  EXPECT_THAT(o.out, HasSubstr("\nauto\t" + make_registry(true).select("auto").reason + "\n"));
  const auto j =
      nlohmann::json::parse(call({"devices", "--json", "--device-policy", "memory", "--measure"}).out);
  const auto& cpu = j["devices"][0];
  EXPECT_EQ(cpu["name"], "cpu");
  EXPECT_EQ(cpu["kind"], "cpu");
  EXPECT_GT(cpu["capabilities"]["compute_units"], 0);
  EXPECT_GT(cpu["capabilities"]["available_bytes"], 0);
  EXPECT_GT(cpu["capabilities"]["gigabytes_per_second"], 0.0);
  EXPECT_EQ(cpu["capabilities"]["isas"].back(), to_string(best_isa()));
  EXPECT_FALSE(j["reason"].get<std::string>().empty());
  for (const auto& d : j["devices"]) {  // docs/guides/cli.md names every key
    const auto& c = d["capabilities"];
    EXPECT_EQ(d["name"] == "cpu", c.contains("isas"));
    if (d["name"] == "cpu") continue;
    EXPECT_THAT(d["name"].get<std::string>(), ::testing::StartsWith("opencl:"));
    EXPECT_GT(c["work_group_items"], 0);
    EXPECT_GT(c["allocation_bytes"], 0);
    EXPECT_GT(c["gigabytes_per_second"], 0.0);
    EXPECT_FALSE(c["driver"].get<std::string>().empty());
    EXPECT_TRUE(c["shares_host_memory"].is_boolean());
  }
  const std::string guide = read_file(testing::source_path("docs/guides/cli.md"));
  for (const auto& d : j["devices"]) {
    for (const auto& [key, value] : d.items()) EXPECT_THAT(guide, HasSubstr("`" + key + "`"));
    for (const auto& [key, value] : d["capabilities"].items()) EXPECT_THAT(guide, HasSubstr("`" + key + "`"));
  }
  for (const auto& [key, value] : j.items()) EXPECT_THAT(guide, HasSubstr("`" + key + "`"));
  EXPECT_FAILS(call({"devices", "--device-policy", "speed"}), kUsage,
               "expected one of latency, throughput, memory");
}

TEST(Train, AMissingConfigIsAnError) {
  EXPECT_FAILS(call({"train", "/nonexistent/demo.yaml"}), kFailure, "/nonexistent/demo.yaml");
  EXPECT_FAILS(call({"train"}), kUsage, "missing argument CONFIG");
}

}  // namespace
}  // namespace bitnet::cli
