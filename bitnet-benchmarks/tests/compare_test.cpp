// Reading results and telling slower from chance: the p-value against tables, verdicts, refusals.
#include "bitnet/benchmarks/compare.hpp"

#include <cmath>
#include <nlohmann/json.hpp>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/statistics.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::benchmarks {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

double p_of(const std::vector<double>& a, const std::vector<double>& b) {
  return welch_p_value(mean(a), standard_deviation(a), a.size(), mean(b), standard_deviation(b), b.size())
      .value();
}

TEST(Welch, GivesStudentsTables) {
  // Two samples of one size n and one deviation s: t = (a − b) / (s·sqrt(2/n)), 2n − 2 degrees of freedom.
  // Two-sided critical values of t at p = 0.05.
  const struct {
    std::size_t n;
    double t;
  } table[] = {{2, 4.302653}, {3, 2.776445}, {6, 2.228139}, {16, 2.042272}, {61, 1.979930}};
  for (const auto& row : table) {
    const double apart = row.t * std::sqrt(2.0 / static_cast<double>(row.n));
    EXPECT_NEAR(welch_p_value(apart, 1, row.n, 0, 1, row.n).value(), 0.05, 1e-6) << row.n;
    EXPECT_NEAR(welch_p_value(0, 1, row.n, apart, 1, row.n).value(), 0.05, 1e-6) << row.n;
  }
  // One degree of freedom is Cauchy's distribution: P(|T| > 1) = 1/2. A side without spread takes no part.
  EXPECT_NEAR(welch_p_value(1, std::sqrt(2.0), 2, 0, 0, 5).value(), 0.5, 1e-12);
  EXPECT_EQ(welch_p_value(3, 1, 5, 3, 2, 5).value(), 1);
}

TEST(Welch, GivesWelchsDegreesOfFreedom) {
  // a: n 3, variance 1; b: n 6, variance 12, so errors 1/3 and 2 of the means; freedom (7/3)² / (1/18 + 4/5).
  const double freedom = 49.0 / 9 / (1.0 / 18 + 0.8);
  // Numeric integration of Student's density, Simpson's rule on [0, t].
  const double t = 2.5 / std::sqrt(7.0 / 3);
  const double scale = std::exp(std::lgamma((freedom + 1) / 2) - std::lgamma(freedom / 2)) /
                       std::sqrt(freedom * std::acos(-1.0));
  double inside = 0;
  constexpr int kSteps = 2000;
  for (int i = 0; i <= kSteps; ++i) {
    const double x = t * i / kSteps;
    const double weight = i == 0 || i == kSteps ? 1 : i % 2 == 1 ? 4 : 2;
    inside += weight * scale * std::pow(1 + x * x / freedom, -(freedom + 1) / 2);
  }
  inside *= t / kSteps / 3;
  EXPECT_NEAR(welch_p_value(2.5, 1, 3, 0, std::sqrt(12.0), 6).value(), 1 - 2 * inside, 1e-9);
}

TEST(Welch, KnowsItsEdges) {
  EXPECT_FALSE(welch_p_value(1, 0, 1, 2, 1, 5).has_value());
  EXPECT_FALSE(welch_p_value(1, 1, 5, 2, 0, 1).has_value());
  EXPECT_EQ(welch_p_value(1, 0, 5, 1, 0, 5).value(), 1);
  EXPECT_EQ(welch_p_value(1, 0, 5, 2, 0, 5).value(), 0);
  EXPECT_LT(p_of({100, 101, 99, 100, 100}, {80, 81, 79, 80, 80}), 1e-6);
  EXPECT_GT(p_of({100, 150, 60, 90, 110}, {95, 70, 140, 100, 85}), 0.5);
}

class ResultsTest : public ::testing::Test {
 protected:
  /// A file of bitnet bench with one result for each list of samples.
  static json bench(const std::vector<std::pair<std::string, std::vector<double>>>& tests) {
    json results = json::array();
    for (const auto& [test, samples] : tests)
      results.push_back({{"test", test},
                         {"threads", 2},
                         {"tokens_per_second", mean(samples)},
                         {"stddev", standard_deviation(samples)},
                         {"samples", samples},
                         {"limit_tokens_per_second", 200},
                         {"fraction_of_limit", 0.5}});
    return {{"machine", {{"cpu", "one"}, {"isa", "avx2"}, {"build", "b"}, {"device", "cpu"}}},
            {"model", {{"path", "/a/m.gguf"}}},
            {"results", results}};
  }
  ResultFile read(const json& file, const std::string& name = "x.json") {
    write_file(dir_ / name, file.dump());
    return read_results(dir_ / name);
  }
  testing::TempDir dir_;
};

TEST_F(ResultsTest, ReadsBitnetBench) {
  json file = bench({{"pp512", {100, 102}}, {"tg128@b16", {50, 52}}});
  file["results"][1]["limit_tokens_per_second"] = nullptr;
  file["results"][1]["fraction_of_limit"] = nullptr;
  const ResultFile read_back = read(file, "new.json");
  EXPECT_EQ(read_back.name, "new");
  EXPECT_EQ(read_back.facts.at("model"), "m.gguf");
  ASSERT_EQ(read_back.measurements.size(), 2u);
  const Measurement& m = read_back.measurements[0];
  EXPECT_EQ(m.name, "pp512, 2 threads");
  EXPECT_EQ(m.mean, 101);
  EXPECT_DOUBLE_EQ(m.stddev, std::sqrt(2.0));
  EXPECT_EQ(m.count, 2u);
  EXPECT_EQ(m.limit, 200);
  EXPECT_TRUE(m.higher_is_better);
  EXPECT_FALSE(read_back.measurements[1].limit.has_value());
  EXPECT_EQ(read_back.measurements[1].test, "tg128@b16");
}

TEST_F(ResultsTest, ReadsGoogleBenchmarkRunsAndAggregates) {
  const auto run = [](const char* name, double time, const char* unit) {
    return json{{"name", name},      {"run_name", name},  {"run_type", "iteration"},
                {"real_time", time}, {"time_unit", unit}, {"bytes/s", 2e9}};
  };
  const auto aggregate = [](const char* kind, double time) {
    return json{{"name", std::string("b_") + kind},
                {"run_name", "b"},
                {"run_type", "aggregate"},
                {"aggregate_name", kind},
                {"repetitions", 7},
                {"real_time", time},
                {"time_unit", "us"}};
  };
  const json file{{"context", {{"isa", "avx2"}, {"threads", "1"}}},
                  {"benchmarks",
                   {run("a", 2, "ms"),
                    run("a", 4, "ms"),
                    aggregate("mean", 5),
                    aggregate("median", 99),
                    aggregate("stddev", 1),
                    aggregate("cv", 0.2),
                    {{"name", "broken"}, {"error_occurred", true}, {"error_message", "no"}}}}};
  const ResultFile r = read(file);
  ASSERT_EQ(r.measurements.size(), 2u);
  EXPECT_THAT(r.measurements[0].samples, ElementsAre(2e6, 4e6));
  EXPECT_FALSE(r.measurements[0].higher_is_better);
  EXPECT_EQ(r.measurements[0].rates.at("bytes/s"), 2e9);
  EXPECT_EQ(r.measurements[1].name, "b");
  EXPECT_DOUBLE_EQ(r.measurements[1].mean, 5e3);
  EXPECT_DOUBLE_EQ(r.measurements[1].stddev, 1e3);
  EXPECT_EQ(r.measurements[1].count, 7u);
}

TEST_F(ResultsTest, RefusesWhatIsNoResult) {
  const auto refused = [&](const std::string& text, const char* why) {
    write_file(dir_ / "bad.json", text);
    BITNET_EXPECT_ERROR(read_results(dir_ / "bad.json"), ErrorCode::kCorruptFile, why);
    BITNET_EXPECT_ERROR(read_results(dir_ / "bad.json"), ErrorCode::kCorruptFile, "bad.json");
  };
  refused("", "no JSON");
  refused("[1]", "neither");
  refused("{}", "neither");
  refused("{\"results\": []}", "has no 'machine'");
  refused("{\"benchmarks\": [], \"context\": {}}", "no figures");
  refused("{\"benchmarks\": 3, \"context\": []}", "no list");
  refused("{\"benchmarks\": [{\"name\": \"a\"}], \"context\": {}}", "has no 'real_time'");
  for (const char* value : {"\"yes\"", "1", "null", "[]"})
    refused("{\"benchmarks\": [{\"name\": \"a\", \"error_occurred\": " + std::string(value) +
                "}], \"context\": {}}",
            "'error_occurred' is neither true nor false");
  refused("{\"benchmarks\": [[1]], \"context\": {}}", "benchmark 1 has no 'name'");
  refused("{\"benchmarks\": [7], \"context\": {}}", "benchmark 1 has no 'name'");
  for (const json& bad : {json(0), json(-1), json("x"), json(nullptr), json::array()}) {
    json file = bench({{"pp1", {1, 2}}});
    file["results"][0]["samples"] = json::array({1, bad});
    refused(file.dump(), "sample");
    file = bench({{"pp1", {1, 2}}});
    file["results"][0]["threads"] = bad;
    refused(file.dump(), "threads");
  }
  json file = bench({{"pp1", {1, 2}}});
  file["results"][0]["samples"] = json::array();
  refused(file.dump(), "no samples");
  file["results"] = json::array();
  refused(file.dump(), "no figures");
  BITNET_EXPECT_ERROR(read_results(dir_ / "none.json"), ErrorCode::kNotFound, "none.json");
}

TEST_F(ResultsTest, NotesWhatElseDiffersWhereBothFilesSayIt) {
  const json old = bench({{"pp1", {1, 2}}});  // as files were before these keys
  json f16 = old, i8 = old;
  f16["model"]["weight_bits"] = 2.0;
  f16["details"] = {{"head_type", "int8"}, {"kv_type", "f16"}};
  i8["model"]["weight_bits"] = 1.6;
  i8["details"] = {{"head_type", "stored"}, {"kv_type", "i8"}};
  EXPECT_THAT(compare(read(f16), read(i8)).notes,
              ElementsAre("head_type differs: 'int8' and 'stored'", "kv_type differs: 'f16' and 'i8'",
                          "weight_bits differs: '2.0' and '1.6'"));
  EXPECT_THAT(compare(read(f16), read(f16)).notes, ElementsAre());
  EXPECT_THAT(compare(read(old), read(i8)).notes, ElementsAre());
  i8["details"] = 3;
  EXPECT_FALSE(read(i8).facts.contains("kv_type"));
}

TEST_F(ResultsTest, ComparesRatesAndTimes) {
  const ResultFile before = read(bench({{"a", {100, 101, 99}},
                                        {"b", {100, 101, 99}},
                                        {"c", {100, 101, 99}},
                                        {"d", {100}},
                                        {"e", {100, 180, 20}},
                                        {"gone", {1, 1}}}));
  json changed = bench({{"a", {90, 91, 89}},
                        {"b", {110, 111, 109}},
                        {"c", {98, 97, 99}},
                        {"d", {10}},
                        {"e", {80, 150, 10}},
                        {"fresh", {1, 1}}});
  changed["machine"]["isa"] = "scalar";
  const ComparisonReport report = compare(before, read(changed));
  std::vector<Verdict> verdicts;
  for (const Comparison& c : report.tests) verdicts.push_back(c.verdict);
  EXPECT_THAT(verdicts, ElementsAre(Verdict::kSlower, Verdict::kFaster, Verdict::kSame, Verdict::kUnknown,
                                    Verdict::kSame));
  EXPECT_DOUBLE_EQ(report.tests[0].speed, 0.9);
  EXPECT_FALSE(report.tests[3].p.has_value());
  EXPECT_TRUE(report.any_slower());
  EXPECT_THAT(report.notes, ElementsAre(HasSubstr("isa differs: 'avx2' and 'scalar'"),
                                        HasSubstr("'gone, 2 threads' is only in the old"),
                                        HasSubstr("'fresh, 2 threads' is only in the new")));
  EXPECT_FALSE(compare(before, before).any_slower());
  EXPECT_FALSE(compare(before, read(changed), {.threshold = 0.2}).any_slower());
  EXPECT_FALSE(compare(before, read(changed), {.level = 1e-9}).any_slower());

  const auto times = [](double t) {
    json runs = json::array();
    for (const double more : {0.0, 1.0, -1.0})
      runs.push_back({{"name", "k"}, {"real_time", t + more}, {"time_unit", "ns"}});
    return json{{"context", json::object()}, {"benchmarks", runs}};
  };
  const ComparisonReport slower = compare(read(times(100)), read(times(125)));
  EXPECT_EQ(slower.tests[0].verdict, Verdict::kSlower);
  EXPECT_DOUBLE_EQ(slower.tests[0].speed, 0.8);
  EXPECT_EQ(compare(read(times(125)), read(times(100))).tests[0].verdict, Verdict::kFaster);
  BITNET_EXPECT_ERROR(compare(before, read(times(1e3))), ErrorCode::kInvalidArgument, "Google Benchmark");
  BITNET_EXPECT_ERROR(compare(before, read(bench({{"z", {1, 1}}}))), ErrorCode::kInvalidArgument,
                      "no test in common");
}

}  // namespace
}  // namespace bitnet::benchmarks
