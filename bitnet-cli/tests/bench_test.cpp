// `bitnet bench`: what it writes, and what it refuses. No test looks at how fast anything is.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

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
  EXPECT_THAT(o.out,
              ::testing::ContainsRegex("\\| pp40 \\| 1 \\| [0-9.]+ ± [0-9.]+ \\| n/a \\| n/a \\| n/a"));
}

TEST_F(BenchTest, TablesNameTheMachineAndEveryTest) {
  const auto md = call(small(model(), {"-t", "2"}));
  ASSERT_EQ(md.code, kOk) << md.err;
  for (const std::string text : {"tiny.gguf", "| test | threads |", "| pp40 | 2 |", "| tg6 | 2 |",
                                 "| tg6@b3 | 2 |", "read GB/s", "read in a step: linears ", "bits a weight"})
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
}

TEST_F(BenchTest, AnotherDeviceHasNoKnownLimits) {
  const bool has_opencl = call({"devices"}).out.find("\nopencl:0:0\t") != std::string::npos;
  BITNET_REQUIRE_OPENCL_DEVICE(has_opencl);
  const json j = bench_json(model(), {"-t", "1", "--device", "opencl:0:0"});
  EXPECT_EQ(j["machine"]["device"], "opencl:0:0");
  for (const char* key : {"read_gbps", "int8_gops", "f32_gflops"}) EXPECT_TRUE(j["machine"][key].is_null());
  for (const json& r : j["results"]) {
    expect_positive(r["tokens_per_second"]);
    EXPECT_TRUE(r["fraction_of_limit"].is_null());
  }
}

TEST_F(BenchTest, WrongValuesAreErrorsThatListWhatThereIs) {
  const auto with = [](const std::vector<std::string>& more) { return call(small(model(), more)); };
  EXPECT_FAILS(call({"bench"}), kUsage, "missing option -m (--model)");
  for (const std::string bad : {"0", "99999", "-1", "1,", "1,x", "", "1.5"})
    EXPECT_FAILS(
        with({"-t", bad}), kUsage,
        "--threads: expected whole numbers from 1 to 1024 with commas between, as in 1,2 (there are ");
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
  const ScopedEnv threads("BITNET_THREADS", "many");
  EXPECT_FAILS(call(small(model(), {})), kFailure, "BITNET_THREADS: expected whole numbers from 1 to 1024");
}

TEST_F(BenchTest, StopsAtCtrlC) {
  std::atomic<bool> cancelled{true};
  const auto o = call(small(model(), {}), {.cancelled = &cancelled});
  EXPECT_EQ(o.code, kInterrupted);
  EXPECT_EQ(o.out, "");
}

}  // namespace
}  // namespace bitnet::cli
