// `bitnet bench`: what it writes, and what it refuses. No test looks at how fast anything is.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <sstream>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/isa.hpp"
#include "bitnet/testing/opencl.hpp"
#include "cli_fixture.hpp"
#include "csv.hpp"

namespace bitnet::cli {
namespace {

using nlohmann::json;

/// A variable for the life of a test.
class ScopedEnv {
 public:
  ScopedEnv(const char* name, const char* value) : name_(name) { setenv(name, value, 1); }
  ~ScopedEnv() { unsetenv(name_); }
  ScopedEnv(const ScopedEnv&) = delete;
  ScopedEnv& operator=(const ScopedEnv&) = delete;

 private:
  const char* name_;
};

/// Presses Ctrl-C when the progress bar shows a test.
class InterruptingATest : public std::stringbuf {
 public:
  explicit InterruptingATest(std::atomic<bool>& flag) : flag_(flag) {}

 protected:
  std::streamsize xsputn(const char* s, std::streamsize n) override {
    const std::string_view text(s, static_cast<std::size_t>(n));
    if (text.find("pp40") != std::string_view::npos) flag_ = true;
    return std::stringbuf::xsputn(s, n);
  }

 private:
  std::atomic<bool>& flag_;
};

class BenchTest : public CliTest {
 protected:
  static std::vector<std::string> small(const std::string& model, const std::vector<std::string>& more) {
    std::vector<std::string> words{"bench", "-m", model, "-p", "40", "-n", "6", "-b", "1,3", "-r", "2"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  static json bench_json(const std::string& model, const std::vector<std::string>& more) {
    auto words = small(model, more);
    words.insert(words.end(), {"-o", "json"});
    const auto o = call(words);
    EXPECT_EQ(o.code, kOk) << o.err;
    return o.code == kOk ? json::parse(o.out) : json();
  }
  static std::vector<std::string> keys(const json& object) {
    std::vector<std::string> names;
    for (const auto& [key, value] : object.items()) names.push_back(key);
    std::sort(names.begin(), names.end());
    return names;
  }
  static void expect_positive(const json& number) {
    ASSERT_TRUE(number.is_number()) << number;
    EXPECT_TRUE(std::isfinite(number.get<double>()));
    EXPECT_GT(number.get<double>(), 0);
  }
};

TEST_F(BenchTest, JsonHasTheDocumentedKeysAndFigures) {
  const json j = bench_json(model(), {"-t", "1,2"});
  using ::testing::ElementsAre;
  ASSERT_THAT(keys(j), ElementsAre("details", "machine", "model", "results"));
  const json &machine = j["machine"], &m = j["model"];
  EXPECT_THAT(keys(machine), ElementsAre("build", "cpu", "device", "f32_gflops", "int8_gops", "isa",
                                         "read_gbps", "threads"));
  EXPECT_THAT(keys(m), ElementsAre("file_bytes", "load_seconds", "parameters", "path", "peak_rss_bytes",
                                   "weight_bits"));
  for (const char* key : {"read_gbps", "int8_gops", "f32_gflops", "threads"}) expect_positive(machine[key]);
  EXPECT_EQ(machine["threads"], 2);
  EXPECT_EQ(machine["isa"], to_string(default_isa()));
  EXPECT_EQ(machine["device"], "cpu");
  EXPECT_NE(machine["cpu"], "");
  EXPECT_THAT(machine["build"].get<std::string>(), ::testing::StartsWith("bitnet 0."));
  for (const char* key : {"file_bytes", "load_seconds", "parameters", "peak_rss_bytes", "weight_bits"})
    expect_positive(m[key]);
  EXPECT_EQ(m["path"], model());
  const json& details = j["details"];
  EXPECT_EQ(details["kv_type"], "f16");
  EXPECT_EQ(details["head_type"], "int8");
  // Loading is a part of the way to the first token.
  EXPECT_GT(details["first_token_seconds"].get<double>(), m["load_seconds"].get<double>());
  EXPECT_EQ(m["file_bytes"], std::filesystem::file_size(model()));
  ASSERT_EQ(j["results"].size(), 6u);
  const char* names[] = {"pp40", "tg6", "tg6@b3"};
  for (std::size_t i = 0; i < 6; ++i) {
    const json& r = j["results"][i];
    SCOPED_TRACE(r.dump());
    EXPECT_THAT(keys(r), ElementsAre("fraction_of_limit", "limit_tokens_per_second", "samples", "stddev",
                                     "test", "threads", "tokens_per_second"));
    EXPECT_EQ(r["test"], names[i % 3]);
    EXPECT_EQ(r["threads"], i < 3 ? 1 : 2);
    ASSERT_EQ(r["samples"].size(), 2u);
    const double a = r["samples"][0], b = r["samples"][1];
    for (const double sample : {a, b}) expect_positive(sample);
    EXPECT_DOUBLE_EQ(r["tokens_per_second"], (a + b) / 2);
    EXPECT_NEAR(r["stddev"], std::abs(a - b) / std::sqrt(2.0), 1e-9 * a);
    expect_positive(r["limit_tokens_per_second"]);
    EXPECT_DOUBLE_EQ(r["fraction_of_limit"],
                     r["tokens_per_second"].get<double>() / r["limit_tokens_per_second"].get<double>());
  }
}

TEST_F(BenchTest, KvTypesAreMeasuredAndNamed) {
  const auto bytes = [](const std::string& type) {
    const json j = bench_json(model(), {"-t", "1", "-p", "0", "-b", "1", "--kv-type", type});
    EXPECT_EQ(j["details"]["kv_type"], type);
    return j["details"]["kv_bytes_per_position"].get<double>();
  };
  const double f32 = bytes("f32"), f16 = bytes("f16"), i8 = bytes("i8");
  EXPECT_EQ(f32, 2 * f16);
  EXPECT_LT(i8, f16);
  EXPECT_GT(i8, f16 / 2);  // scales come on top
  for (const std::string bad : {"q8_0", "F16", ""})
    EXPECT_FAILS(call(small(model(), {"--kv-type", bad})), kUsage, "--kv-type: expected one of f16, i8, f32");
}

TEST_F(BenchTest, LimitsFollowFromTheFiguresBesideThem) {
  const json j = bench_json(model(), {"-t", "1", "-p", "0", "-b", "1"});
  ASSERT_EQ(j["results"].size(), 1u);
  const json& details = j["details"];
  const double bytes = details["linear_bytes"].get<double>() + details["head_bytes"].get<double>() +
                       details["norm_bytes"].get<double>() +
                       details["kv_bytes_per_position"].get<double>() * 3.5;  // the mean of 1 … 6
  EXPECT_DOUBLE_EQ(details["tests"][0]["bytes_per_token"], bytes);
  EXPECT_EQ(details["tests"][0]["bound"], "bandwidth");
  EXPECT_NEAR(j["results"][0]["limit_tokens_per_second"].get<double>(),
              j["machine"]["read_gbps"].get<double>() * 1e9 / bytes, 1e-6 * 1e9 / bytes);
}

TEST_F(BenchTest, DenseModelsHaveNoIntegerLimit) {
  const json j = bench_json(dense_model(), {"-t", "1"});
  EXPECT_TRUE(j["results"][0]["limit_tokens_per_second"].is_null());
  EXPECT_TRUE(j["results"][0]["fraction_of_limit"].is_null());
  expect_positive(j["results"][1]["limit_tokens_per_second"]);
  EXPECT_EQ(j["details"]["ternary"], false);
  EXPECT_GE(j["model"]["weight_bits"], 16);
  const auto o = call(small(dense_model(), {"-t", "1"}));
  ASSERT_EQ(o.code, kOk) << o.err;
  EXPECT_THAT(o.out, ::testing::ContainsRegex(
                         "\\| pp40 \\| 1 \\| [0-9.]+ ± [0-9.]+ \\| [0-9.]+ \\| n/a \\| n/a \\| n/a"));
}

TEST_F(BenchTest, TablesNameTheMachineAndEveryTest) {
  const auto md = call(small(model(), {"-t", "2"}));
  ASSERT_EQ(md.code, kOk) << md.err;
  for (const std::string text :
       {"tiny.gguf", "| test | threads |", "| pp40 | 2 |", "| tg6 | 2 |", "| tg6@b3 | 2 |", "read GB/s",
        "read in a step: linears ", "bits a weight", "head (int8)", "keys and values (f16)",
        "first token of a 16-token prompt after ", "| median |"})
    EXPECT_THAT(md.out, HasSubstr(text));
  EXPECT_THAT(md.out, HasSubstr("; " + std::string(to_string(default_isa())) + "; cpu: "));
  const auto csv = call(small(model(), {"-t", "2", "-o", "csv"}));
  ASSERT_EQ(csv.code, kOk) << csv.err;
  const auto rows = parse_csv(csv.out);
  ASSERT_EQ(rows.size(), 4u);
  for (const CsvRow& row : rows) EXPECT_EQ(row.fields.size(), rows[0].fields.size());
  EXPECT_EQ(rows[0].fields[0], "test");
  EXPECT_EQ(rows[3].fields[0], "tg6@b3");
  EXPECT_GT(std::stod(rows[3].fields[2]), 0);
  const auto field = [&](const std::string& column) {
    const auto& names = rows[0].fields;
    const auto at = std::find(names.begin(), names.end(), column) - names.begin();
    return rows[3].fields.at(static_cast<std::size_t>(at));
  };
  EXPECT_EQ(field("kv_type"), "f16");
  EXPECT_EQ(field("head_type"), "int8");
  EXPECT_GT(std::stod(field("weight_bits")), 1.5);
  EXPECT_NEAR(std::stod(field("median_tokens_per_second")), std::stod(field("tokens_per_second")),
              std::stod(field("stddev")));  // of two samples
}

TEST_F(BenchTest, AnotherDeviceTellsItsOwnLimits) {
  const bool has_opencl = call({"devices"}).out.find("\nopencl:0:0\t") != std::string::npos;
  BITNET_REQUIRE_OPENCL_DEVICE(has_opencl);
  const json j = bench_json(model(), {"-t", "1", "--device", "opencl:0:0"});
  EXPECT_EQ(j["machine"]["device"], "opencl:0:0");
  EXPECT_TRUE(j["machine"]["f32_gflops"].is_null());
  for (const char* key : {"read_gbps", "int8_gops"}) expect_positive(j["machine"][key]);
  for (const char* key : {"copy_gbps", "int8_gops", "enqueue_seconds", "launch_seconds"})
    expect_positive(j["details"]["device_peaks"][key]);
  const json& peaks = j["details"]["device_peaks"];
  // What copies move in all, memory has given.
  EXPECT_GE(j["machine"]["read_gbps"], peaks["copy_gbps"]);
  ASSERT_EQ(j["details"]["tests"].size(), 3u);
  for (std::size_t i = 0; i < 3; ++i) {
    const json& t = j["details"]["tests"][i];
    SCOPED_TRACE(t.dump());
    expect_positive(t["launches"]);
    expect_positive(t["enqueue_seconds"]);
    const double tokens = t["test"] == "pp40" ? 40 : t["test"] == "tg6" ? 1 : 3;  // of a pass
    const double least =
        t["bytes_per_token"].get<double>() * tokens / (peaks["copy_gbps"].get<double>() * 1e9) +
        t["launches"].get<double>() * peaks["launch_seconds"].get<double>();
    EXPECT_NEAR(t["least_seconds"], least, 1e-9 * least);
    const double taken = tokens / j["results"][i]["tokens_per_second"].get<double>();
    EXPECT_NEAR(t["fraction_of_least"], least / taken, 1e-9 * least / taken);
  }
  EXPECT_THAT(
      call(small(model(), {"-t", "1", "--device", "opencl:0:0"})).out,
      ::testing::ContainsRegex("- tg6@b3: [0-9.]+ launches a step, [0-9.]+ µs to enqueue them; its bytes "
                               "as fast as copies and its launches one by one: [0-9.]+ µs, [0-9.]+ % of "
                               "what it took\n"));
  for (const json& r : j["results"]) {
    expect_positive(r["tokens_per_second"]);
    // The weights are within every cache, so memory is no limit.
    if (r["test"] == "tg6")
      EXPECT_TRUE(r["limit_tokens_per_second"].is_null());
    else
      expect_positive(r["limit_tokens_per_second"]);
  }
  const json& did = j["details"]["device_statistics"];
  for (const char* key : {"launches", "waits", "buffers", "programs"}) expect_positive(did[key]);
  for (const char* way : {"uploads", "downloads"})
    for (const char* key : {"copies", "bytes"}) expect_positive(did[way][key]);
  EXPECT_TRUE(did["compiled_programs"].is_number());
  EXPECT_GE(did["launches"], did["waits"]);
}

TEST_F(BenchTest, WrongValuesAreErrorsThatListWhatThereIs) {
  const auto with = [](const std::vector<std::string>& more) { return call(small(model(), more)); };
  EXPECT_FAILS(call({"bench"}), kUsage, "missing option -m (--model)");
  for (const std::string bad : {"99999", "-1", "1,", "1,x", "", "1.5"})
    EXPECT_FAILS(
        with({"-t", bad}), kUsage,
        "--threads: expected whole numbers from 0 to 1024 with commas between, as in 1,2 (there are ");
  EXPECT_FAILS(with({"-b", "0"}), kUsage, "--batch: expected whole numbers from 1 to 4096");
  EXPECT_FAILS(with({"-p", "some"}), kUsage, "--n-prompt: expected whole numbers from 0 to 4194304");
  EXPECT_FAILS(with({"-n", "128;256"}), kUsage, "got \"128;256\"");
  EXPECT_FAILS(with({"-p", "0", "-n", "0"}), kUsage, "nothing to measure");
  EXPECT_FAILS(with({"-r", "0"}), kUsage, "from 1 to 1000");
  EXPECT_FAILS(with({"-o", "xml"}), kUsage, "one of md, csv, json");
  EXPECT_FAILS(with({"--repetition", "3"}), kUsage, "did you mean '--repetitions'");
  EXPECT_FAILS(with({"--device", "nonsense"}), kFailure, "there is no device 'nonsense'");
  EXPECT_THAT(with({"--device", "nonsense"}).err, HasSubstr("cpu"));
  EXPECT_FAILS(with({"--isa", "foo"}), kUsage, "unknown ISA 'foo' (compiled: scalar, ");
  EXPECT_FAILS(call({"bench", "-m", "no/model"}), kFailure, "no/model");
  EXPECT_FAILS(call({"bench", "-m", model(), "-n", "4194304", "-b", "4096", "-p", "0"}), kFailure, "KV");
}

TEST_F(BenchTest, WrongEnvironmentNamesTheVariable) {
  {
    const ScopedEnv isa("BITNET_ISA", "foo");
    EXPECT_FAILS(call(small(model(), {})), kFailure, "BITNET_ISA: unknown ISA 'foo' (compiled: scalar, ");
  }
  for (const Isa isa : compiled_isas()) {
    if (is_supported(isa)) continue;
    const std::string name(to_string(isa));
    const ScopedEnv env("BITNET_ISA", name.c_str());
    const auto o = call(small(model(), {}));
    EXPECT_FAILS(o, kFailure, "BITNET_ISA: ISA '" + name + "': ");
    EXPECT_THAT(o.err, HasSubstr(" (there are: scalar, "));
  }
}

TEST_F(BenchTest, ThreadsAreReadAsByEveryOtherCommand) {
  const std::vector<std::string> run{"run", "-m", model(), "-p", "a", "-n", "1"};
  for (const char* bad : {"many", "1,2", "-1", "1025"}) {
    const ScopedEnv threads("BITNET_THREADS", bad);
    for (const auto& command : {small(model(), {}), run})
      EXPECT_FAILS(call(command), kFailure,
                   "BITNET_THREADS: expected a whole number from 0 to 1024, got '" + std::string(bad) + "'");
  }
  const auto threads_of = [](const std::vector<std::string>& more) {
    return bench_json(model(), more)["machine"]["threads"].get<std::size_t>();
  };
  {
    const ScopedEnv threads("BITNET_THREADS", "0");
    EXPECT_EQ(threads_of({}), usable_cores());
  }
  const ScopedEnv threads("BITNET_THREADS", "3");
  EXPECT_EQ(threads_of({}), 3u);
  EXPECT_EQ(threads_of({"-t", "0"}), usable_cores());  // all, whatever the environment says
  auto all = run;
  all.insert(all.end(), {"-t", "0", "-v"});
  EXPECT_THAT(call(all).err, HasSubstr(", threads: " + std::to_string(usable_cores()) + "\n"));
  const json twice = bench_json(model(), {"-t", "0," + std::to_string(usable_cores())});
  EXPECT_EQ(twice["details"]["limits"].size(), 1u);
}

TEST_F(BenchTest, StopsAtCtrlC) {
  std::atomic<bool> cancelled{true};
  const auto o = call(small(model(), {}), {.cancelled = &cancelled});
  EXPECT_EQ(o.code, kInterrupted);
  EXPECT_EQ(o.out, "");
}

TEST_F(BenchTest, StopsAtCtrlCWhileATestRuns) {
  std::atomic<bool> cancelled{false};
  InterruptingATest buffer(cancelled);
  std::ostream terminal(&buffer);
  CallOptions options{.cancelled = &cancelled};
  options.err = &terminal;
  options.err_is_terminal = true;
  const auto o = call(small(model(), {}), options);
  EXPECT_TRUE(cancelled);
  EXPECT_EQ(o.code, kInterrupted);
  EXPECT_EQ(o.out, "");
  EXPECT_THAT(buffer.str(), HasSubstr("interrupted"));
}

}  // namespace
}  // namespace bitnet::cli
