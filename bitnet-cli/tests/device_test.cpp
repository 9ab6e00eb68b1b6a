// `--device` with whatever OpenCL devices there are: whole models, parts of devices, what a device did.
#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "bitnet/core/device/registry.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/testing/opencl.hpp"
#include "cli_fixture.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;

class DeviceTest : public CliTest {
 protected:
  static bool has_opencl() { return call({"devices"}).out.find("\nopencl:0:0\t") != std::string::npos; }
};

TEST_F(DeviceTest, TheWholeModelRunsOnTheDevice) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_opencl());
  const std::vector<std::string> arguments{"run", "-m", model(), "-p", "hello", "-n", "8", "--seed", "1"};
  auto on_device = arguments;
  on_device.insert(on_device.end(), {"--device", "opencl:0:0"});
  const auto cpu = call(arguments), device = call(on_device);
  ASSERT_EQ(device.code, kOk) << device.err;
  EXPECT_EQ(device.out, cpu.out);
  EXPECT_THAT(device.err, Not(HasSubstr("lacks these operations")));
  EXPECT_THAT(device.err, Not(HasSubstr("device: ")));
  on_device.push_back("--device-only");
  EXPECT_EQ(call(on_device).out, cpu.out);
  on_device.insert(on_device.end(), {"-v", "--profile", file("trace.json")});
  const auto verbose = call(on_device);
  for (const char* part :
       {"device: ", " launches, the host waited ", " GB/s", "device: attention: ", " of them compiled"})
    EXPECT_THAT(verbose.err, HasSubstr(part));
  const json trace = json::parse(read_file(file("trace.json")));
  const auto is_matmul = [](const json& e) { return e["name"] == "kernel ternary_matmul"; };
  EXPECT_TRUE(std::any_of(trace["traceEvents"].begin(), trace["traceEvents"].end(), is_matmul));
  EXPECT_GT(trace["otherData"]["device_statistics"]["launches"], 0);
  EXPECT_FALSE(trace["otherData"]["memory_pools"].empty());
}

// Without --profile: nothing waits for the times, and ops are one launch where they were.
TEST_F(DeviceTest, VerboseAloneTellsTheTimesOfTheDevice) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_opencl());
  const auto run = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words{"run",         "-m",     model(), "-p",       "hello",      "-n",
                                   "8",           "--seed", "1",     "--device", "opencl:0:0", "--statistics",
                                   file("s.json")};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome o = call(words);
    EXPECT_EQ(o.code, kOk) << o.err;
    return std::pair(o.err, json::parse(read_file(file("s.json")))["device_statistics"]);
  };
  const auto [nothing, plain] = run({});
  const auto [lines, timed] = run({"-v"});
  EXPECT_THAT(
      lines, ::testing::ContainsRegex("device: to it [0-9,]+ copies, [^\n]* in all, at [0-9.]+ GB/s, from it "
                                      "[0-9,]+ copies, [^\n]* in all, at [0-9.]+ GB/s\n"));
  for (const char* kernel : {"attention", "rope_and_store", "ternary_matmul", "normalize_quantize"})
    EXPECT_THAT(lines, HasSubstr("device: " + std::string(kernel) + ": "));
  EXPECT_EQ(timed["launches"], plain["launches"]);
  EXPECT_EQ(timed["waits"].get<int>(), plain["waits"].get<int>() + 1);  // for the queue without times
  EXPECT_TRUE(plain["kernels"].empty());
  std::int64_t launches = 0;
  for (const json& k : timed["kernels"]) launches += k["launches"].get<std::int64_t>();
  EXPECT_EQ(launches, timed["launches"]);
}

/// What --statistics wrote of a device, with times or without.
void expect_device_statistics(const json& s, bool timed) {
  const json& d = s["device_statistics"];
  for (const char* key : {"launches", "waits", "buffers", "programs"}) EXPECT_GT(d[key], 0) << key;
  EXPECT_TRUE(d["compiled_programs"].is_number_unsigned());
  EXPECT_TRUE(d["replays"].is_number_unsigned());
  EXPECT_TRUE(d["replayed_launches"].is_number_unsigned());
  EXPECT_GE(d["buffer_hit_rate"], 0.0);
  EXPECT_LE(d["buffer_hit_rate"], 1.0);
  for (const char* way : {"uploads", "downloads"}) {
    EXPECT_GT(d[way]["copies"], 0) << way;
    EXPECT_GT(d[way]["bytes"], 0) << way;
    EXPECT_EQ(d[way]["gbps"].is_null(), !timed) << way;
  }
  EXPECT_EQ(d["kernels"].empty(), !timed);
  for (const json& k : d["kernels"]) {
    EXPECT_GT(k["launches"], 0);
    EXPECT_GE(k["seconds"], 0.0);
  }
  ASSERT_GE(s["memory_pools"].size(), 1u);
  const auto of_device = [](const json& p) { return p["name"] == "opencl:0:0"; };
  const auto pool = std::find_if(s["memory_pools"].begin(), s["memory_pools"].end(), of_device);
  ASSERT_NE(pool, s["memory_pools"].end());
  EXPECT_GT((*pool)["peak_used_bytes"], 0);
  EXPECT_GE((*pool)["peak_held_bytes"], (*pool)["peak_used_bytes"]);
  EXPECT_GE((*pool)["internal_fragmentation"], 0.0);
  EXPECT_TRUE((*pool)["external_fragmentation"].is_null() || (*pool)["external_fragmentation"] >= 0.0);
  EXPECT_GT(s["load_seconds"], 0.0);
  EXPECT_GT(s["peak_rss_bytes"], 0);
  EXPECT_EQ(s["device"], "opencl:0:0");
}

TEST_F(DeviceTest, StatisticsAreJson) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_opencl());
  const auto run = [](std::vector<std::string> more) {
    std::vector<std::string> words{"run", "-m", model(), "-p", "hello", "-n", "4", "--seed", "1"};
    words.insert(words.end(), more.begin(), more.end());
    const auto o = call(words);
    EXPECT_EQ(o.code, kOk) << o.err;
  };
  run({"--device", "opencl:0:0", "--statistics", file("a.json")});
  const json a = json::parse(read_file(file("a.json")));
  expect_device_statistics(a, false);
  EXPECT_EQ(a["completion_tokens"], 4);
  EXPECT_EQ(a["prompt_tokens"], 6);
  run({"--device", "opencl:0:0", "--statistics", file("b.json"), "--profile", file("trace.json")});
  expect_device_statistics(json::parse(read_file(file("b.json"))), true);
  // Of one that has some of the layers alone; its ops are zones once.
  run({"--device", "opencl:0:0", "--gpu-layers", "1", "--statistics", file("e.json"), "--profile",
       file("trace.json")});
  const json divided = json::parse(read_file(file("e.json")));
  const auto is_product = [](const json& k) { return k["name"] == "ternary_matmul" && k["seconds"] > 0.0; };
  const json& kernels = divided["device_statistics"]["kernels"];
  EXPECT_TRUE(std::any_of(kernels.begin(), kernels.end(), is_product));
  EXPECT_FALSE(divided["device_statistics"]["downloads"]["gbps"].is_null());
  const json trace = json::parse(read_file(file("trace.json")));
  EXPECT_EQ(std::count_if(trace["traceEvents"].begin(), trace["traceEvents"].end(),
                          [](const json& e) { return e["name"] == "logits"; }),
            4);  // a token each
  // Kernels of the device's layers lie inside their ops.
  const json& events = trace["traceEvents"];
  const auto inside = [&](const json& k) {
    return std::any_of(events.begin(), events.end(), [&](const json& e) {
      constexpr double kRounding = 0.002;  // microseconds: times are written with three decimals
      return e["name"] != k["name"] && e["ph"] == "X" && e["tid"] == k["tid"] &&
             e["ts"].get<double>() <= k["ts"].get<double>() + kRounding &&
             e["ts"].get<double>() + e["dur"].get<double>() + kRounding >=
                 k["ts"].get<double>() + k["dur"].get<double>();
    });
  };
  int products = 0;
  for (const json& e : events) {
    if (e["name"] != "kernel ternary_matmul") continue;
    ++products;
    EXPECT_TRUE(inside(e)) << e;
  }
  EXPECT_GT(products, 4);
  run({"--statistics", file("c.json")});
  const json cpu = json::parse(read_file(file("c.json")));
  EXPECT_TRUE(cpu["device_statistics"].is_null());
  EXPECT_EQ(cpu["memory_pools"].size(), 1u);

  const std::string in = file("in.txt", "one\ntwo\nthree\n");
  const std::vector<std::string> batch{"batch",
                                       "-m",
                                       model(),
                                       "-i",
                                       in,
                                       "-n",
                                       "4",
                                       "--seed",
                                       "1",
                                       "--device",
                                       "opencl:0:0",
                                       "-v",
                                       "--statistics",
                                       file("d.json"),
                                       "-o",
                                       file("out.jsonl")};
  const auto o = call(batch);
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.err, HasSubstr(" launches, the host waited "));
  EXPECT_THAT(o.err, HasSubstr("device: attention: "));
  const json d = json::parse(read_file(file("d.json")));
  expect_device_statistics(d, true);
  EXPECT_EQ(d["items"], 3);
  EXPECT_EQ(d["failed"], 0);
  EXPECT_EQ(d["completion_tokens"], 12);
  auto timed = batch;
  timed.insert(timed.end(), {"--profile", file("batch_trace.json")});
  ASSERT_EQ(call(timed).code, kOk);
  expect_device_statistics(json::parse(read_file(file("d.json"))), true);
  EXPECT_THAT(read_file(file("batch_trace.json")), HasSubstr("\"kernel ternary_matmul\""));
}

TEST_F(DeviceTest, StatisticsThatCannotBeWrittenAreErrorsBeforeTheRun) {
  for (const std::string command : {"run", "batch"}) {
    std::vector<std::string> words{command, "-m", model()};
    if (command == "run") words.insert(words.end(), {"-p", "x"});
    if (command == "batch") words.insert(words.end(), {"-i", file("in.txt", "x\n"), "-o", file("o.jsonl")});
    const auto with = [&](const std::string& to) {
      auto all = words;
      all.insert(all.end(), {"--statistics", to});
      return call(all);
    };
    EXPECT_FAILS(with("-"), kUsage, "--statistics needs a file");
    EXPECT_FAILS(with(""), kUsage, "--statistics: expected a file");
    EXPECT_FAILS(with(model()), kFailure, "the statistics would replace the model");
    EXPECT_FAILS(with(file("none/s.json")), kFailure, "none");
    words.insert(words.end(), {"--profile", file("t.json")});
    EXPECT_FAILS(with(file("./t.json")), kUsage, "--statistics and --profile name the same file");
    EXPECT_FALSE(std::filesystem::exists(file("o.jsonl")));
  }
}

TEST_F(DeviceTest, LayersCanBeDivided) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_opencl());
  const auto run = [](const std::vector<std::string>& more) {
    std::vector<std::string> words{"run", "-m", model(), "-p", "a", "-n", "5", "--seed", "1", "--special"};
    words.insert(words.end(), more.begin(), more.end());
    return call(words);
  };
  const Outcome cpu = run({});
  const Outcome divided = run({"--device", "opencl:0:0", "--gpu-layers", "1"});
  EXPECT_EQ(divided.code, kOk) << divided.err;
  EXPECT_EQ(divided.out, cpu.out);
  EXPECT_THAT(divided.err, HasSubstr("note: embedding and layer 0 on cpu; layer 1 and head on opencl:0:0\n"));
  const Outcome all = run({"--device", "opencl:0:0", "--gpu-layers", "auto"});
  EXPECT_EQ(all.out, cpu.out);
  EXPECT_THAT(all.err, Not(HasSubstr(" on cpu")));
  const Outcome twice = run({"--device", "opencl:0:0,opencl:0:0"});
  EXPECT_EQ(twice.out, cpu.out);
  EXPECT_THAT(twice.err, HasSubstr("embedding and layer 0 on opencl:0:0; layer 1 and head on opencl:0:0\n"));
}

TEST_F(DeviceTest, LayersThatCannotBeDividedAreErrors) {
  const auto run = [](const std::vector<std::string>& more) {
    std::vector<std::string> words{"run", "-m", model(), "-p", "a", "-n", "1"};
    words.insert(words.end(), more.begin(), more.end());
    return call(words);
  };
  EXPECT_FAILS(run({"--gpu-layers", "some"}), kUsage,
               "--gpu-layers some: expected a number of layers from 0 on");
  EXPECT_FAILS(run({"--gpu-layers", "-1"}), kUsage, "--gpu-layers");
  EXPECT_FAILS(run({"--gpu-layers", ""}), kUsage, "--gpu-layers : expected a number of layers from 0 on");
  EXPECT_FAILS(run({"--sub-devices", "2"}), kUsage,
               "--sub-devices divides the device whose part --device names, as in opencl:0:0/1; got 'cpu'");
  BackendRegistry cpu;
  inference::register_cpu_backend(cpu);
  EXPECT_FAILS(call({"run", "-m", model(), "-p", "a", "-n", "1", "--gpu-layers", "1", "--device", "auto"},
                    {.devices = &cpu}),
               kFailure, "1 layers are to be on a device, and 'auto' is the CPU");
  for (const char* layers : {"3", "auto"})
    EXPECT_FAILS(run({"--gpu-layers", layers}), kUsage,
                 "--gpu-layers " + std::string(layers) +
                     ": the layers are to be divided between the CPU and a device: "
                     "expected --device with the name of one");
  EXPECT_FAILS(run({"--device", "opencl:0:0,cpu"}), kFailure, "a list has names of devices other than 'cpu'");
}

TEST_F(DeviceTest, PartsOfADeviceHaveNames) {
  const auto listed = call({"devices", "--sub-devices", "2"});
  BITNET_REQUIRE_OPENCL_DEVICE(has_opencl());
  if (listed.out.find("\nopencl:0:0/1\t") == std::string::npos)
    GTEST_SKIP() << "it cannot be divided: " << listed.err;
  EXPECT_THAT(listed.out, HasSubstr("\nopencl:0:0/0\t"));
  EXPECT_THAT(listed.out, Not(HasSubstr("\nopencl:0:0/2\t")));
  const auto run = [](const std::vector<std::string>& more) {
    std::vector<std::string> words{"run", "-m", model(), "-p", "hello", "-n", "8", "--seed", "1"};
    words.insert(words.end(), more.begin(), more.end());
    return call(words);
  };
  const auto cpu = run({});
  const auto part = run({"--device", "opencl:0:0/1", "-v"});
  ASSERT_EQ(part.code, kOk) << part.err;
  EXPECT_EQ(part.out, cpu.out);
  EXPECT_THAT(part.err, HasSubstr("device: opencl:0:0/1: asked for by name; "));
  const auto both = run({"--device", "opencl:0:0/0,opencl:0:0/1"});
  ASSERT_EQ(both.code, kOk) << both.err;
  EXPECT_EQ(both.out, cpu.out);
  EXPECT_THAT(both.err,
              HasSubstr("embedding and layer 0 on opencl:0:0/0; layer 1 and head on opencl:0:0/1\n"));
  // What there is, is said.
  EXPECT_FAILS(run({"--device", "opencl:0:0/2"}), kFailure,
               "opencl:0:0 has 2 parts, opencl:0:0/0 to opencl:0:0/1");
  EXPECT_FAILS(run({"--device", "opencl:0:0/1,opencl:0:0/7"}), kFailure, "there is no device 'opencl:0:0/7'");
  EXPECT_FAILS(run({"--device", "opencl:0:0/1", "--sub-devices", "1000"}), kFailure,
               "opencl:0:0 is not divided: it has ");
  EXPECT_FAILS(run({"--device", "opencl:0:0/0", "--sub-devices", "1"}), kUsage,
               "--sub-devices: expected a whole number from 2 to 1024");
}

TEST_F(DeviceTest, ReplicasShareTheItemsOfABatch) {
  BITNET_REQUIRE_OPENCL_DEVICE(has_opencl());
  if (call({"devices", "--sub-devices", "2"}).out.find("\nopencl:0:0/1\t") == std::string::npos)
    GTEST_SKIP() << "it cannot be divided";
  std::string lines;
  for (int i = 0; i < 14; ++i) lines += "prompt number " + std::to_string(i) + std::string(i % 5, 'x') + "\n";
  const std::string in = file("in.txt", lines);
  const auto batch = [&](const std::string& out, const std::vector<std::string>& more) {
    std::vector<std::string> words{"batch", "-m", model(), "-i", in, "-o", out, "-n", "7", "--seed", "5"};
    words.insert(words.end(), more.begin(), more.end());
    const auto o = call(words);
    EXPECT_EQ(o.code, kOk) << o.err;
    return o;
  };
  const auto texts = [](const std::string& path) {
    std::istringstream records(read_file(path));
    std::vector<std::string> all;
    for (std::string line; std::getline(records, line);) {
      const json r = json::parse(line);
      all.push_back(r["id"].dump() + r["text"].dump() + r["finish_reason"].dump());
    }
    return all;
  };
  batch(file("one.jsonl"), {"--device", "opencl:0:0"});
  const auto both = batch(file("two.jsonl"), {"--device", "opencl:0:0/0,opencl:0:0/1", "--replicas", "-v",
                                              "--statistics", file("s.json")});
  ASSERT_EQ(texts(file("one.jsonl")).size(), 14u);
  EXPECT_EQ(texts(file("two.jsonl")), texts(file("one.jsonl")));  // in the same order
  const json s = json::parse(read_file(file("s.json")));
  ASSERT_EQ(s["replicas"].size(), 2u);
  for (const json& r : s["replicas"])
    EXPECT_GT(r["items"], 0) << r["device"];  // the fair share of neither is all
  EXPECT_EQ(s["replicas"][0]["items"].get<int>() + s["replicas"][1]["items"].get<int>(), 14);
  EXPECT_EQ(s["device"], "opencl:0:0/0,opencl:0:0/1");
  for (const char* name : {"opencl:0:0/0", "opencl:0:0/1"})
    EXPECT_THAT(both.err, HasSubstr(" on " + std::string(name) + "\n"));
  // The CPU can be one of them.
  batch(file("mixed.jsonl"), {"--device", "cpu,opencl:0:0/1", "--replicas", "--batch-size", "2"});
  EXPECT_EQ(texts(file("mixed.jsonl")), texts(file("one.jsonl")));
}

TEST_F(DeviceTest, ABatchDoesNotWriteItsRecordsAndItsFiguresToOneFile) {
  const std::string in = file("in.txt", "x\n");
  for (const std::string option : {"--statistics", "--profile"})
    EXPECT_FAILS(call({"batch", "-m", model(), "-i", in, "-o", file("o.jsonl"), option, file("./o.jsonl")}),
                 kUsage, option + " and --output name the same file");
}

TEST_F(DeviceTest, ReplicasNeedNamesOfDevices) {
  const std::string in = file("in.txt", "x\n");
  const auto with = [&](const std::vector<std::string>& more) {
    std::vector<std::string> words{"batch", "-m", model(), "-i", in, "-o", file("out.jsonl"), "--replicas"};
    words.insert(words.end(), more.begin(), more.end());
    return call(words);
  };
  EXPECT_FAILS(with({"--device", "auto"}), kUsage, "--device: with --replicas expected names of devices");
  EXPECT_FAILS(with({"--device", "cpu,"}), kUsage, "got 'cpu,'");
  EXPECT_FAILS(with({"--device", "cpu,nosuch"}), kFailure, "there is no device 'nosuch'");
  EXPECT_FALSE(std::filesystem::exists(file("out.jsonl")));
  EXPECT_FAILS(with({"--device", "cpu,cpu", "-n", "2"}), kUsage, "'cpu' is named twice in 'cpu,cpu'");
  EXPECT_FAILS(with({"--device", "opencl:0:0/1,opencl:0:0"}), kUsage,
               "'opencl:0:0/1' is a part of 'opencl:0:0'");
  EXPECT_EQ(with({"--device", "cpu", "-n", "2"}).code, kOk);
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
