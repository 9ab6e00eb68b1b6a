// Logit metrics against hand-made distributions; sums, hints and JSON of reports.
#include "bitnet/quant/quant_report.hpp"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "bitnet/testing/testing.hpp"

namespace bitnet::quant {
namespace {

float lg(double p) { return static_cast<float>(std::log(p)); }

TEST(LogitMetricsTest, OfTwoDistributions) {
  const std::vector<float> p{lg(0.5), lg(0.25), lg(0.25)};
  const std::vector<float> q{lg(0.25) + 7, lg(0.5) + 7, lg(0.25) + 7};  // a constant changes nothing
  LogitMetrics m;
  m.add(p, q, 0);
  EXPECT_NEAR(m.mean_kl(), 0.5 * std::log(2.0) - 0.25 * std::log(2.0), 1e-6);
  EXPECT_EQ(m.top1_agreement(), 0);
  EXPECT_NEAR(m.perplexity_original(), 2, 1e-6);
  EXPECT_NEAR(m.perplexity_other(), 4, 1e-5);
  m.add(p, p, 1);
  EXPECT_EQ(m.positions, 2);
  EXPECT_EQ(m.top1_agreement(), 0.5);
  EXPECT_NEAR(m.mean_kl(), 0.125 * std::log(2.0), 1e-6);
  EXPECT_NEAR(m.largest_kl, 0.25 * std::log(2.0), 1e-6);
  EXPECT_NEAR(m.perplexity_original(), std::sqrt(8.0), 1e-6);
  EXPECT_EQ(LogitMetrics().top1_agreement(), 1);
  BITNET_EXPECT_ERROR(m.add(p, p, 3), ErrorCode::kInvalidArgument, "token 3");
  BITNET_EXPECT_ERROR(m.add(p, std::vector<float>(2), 0), ErrorCode::kInvalidArgument, "3 and 2 logits");
  BITNET_EXPECT_ERROR(m.add(p, std::vector<float>(3, std::numeric_limits<float>::infinity()), 0),
                      ErrorCode::kInvalidArgument, "position 2 is not finite");
  EXPECT_EQ(m.positions, 2);
}

/// Positions 0 … n − 1, `batch` at a time; row i is (i, 0), its target i % 2.
class Counting final : public LogitSource {
 public:
  Counting(int n, int batch, std::int64_t vocab = 2, int shift = 0)
      : n_(n), batch_(batch), vocab_(vocab), shift_(shift) {}
  std::int64_t vocab_size() const override { return vocab_; }
  bool next(std::vector<float>& rows, std::vector<std::int32_t>& targets) override {
    rows.clear();
    targets.clear();
    for (int i = 0; i < batch_ && at_ < n_; ++i, ++at_) {
      rows.push_back(static_cast<float>(at_));
      rows.push_back(0);
      targets.push_back((at_ + shift_) % 2);
    }
    return !targets.empty();
  }

 private:
  int n_, batch_;
  std::int64_t vocab_;
  int shift_, at_ = 0;
};

TEST(LogitMetricsTest, SourcesMayCutAsTheyLike) {
  Counting a(23, 5), b(23, 7);
  const LogitMetrics m = compare_logits(a, b);
  EXPECT_EQ(m.positions, 23);
  EXPECT_EQ(m.kl, 0);
  EXPECT_EQ(m.same_top, 23);
  EXPECT_EQ(m.nll_original, m.nll_other);
  const auto compare = [](Counting first, Counting second) { return compare_logits(first, second); };
  BITNET_EXPECT_ERROR(compare({23, 5}, {22, 7}), ErrorCode::kInvalidArgument, "ends after 22 positions");
  BITNET_EXPECT_ERROR(compare({9, 5}, {9, 5, 3}), ErrorCode::kInvalidArgument, "vocabularies of 2 and 3");
  BITNET_EXPECT_ERROR(compare({9, 5}, {9, 5, 2, 1}), ErrorCode::kInvalidArgument,
                      "position 0: the texts differ");
}

/// A linear whose output lost `loss` of its square.
LinearReport linear(TensorId id, WeightMethod method, double loss) {
  LinearReport r;
  r.id = id;
  r.out = 4;
  r.in = 8;
  r.plan.method = method;
  r.bytes = 8 + 4;
  r.metrics.weights = 32;
  r.metrics.signal = 10;
  r.metrics.noise = 10 * loss;
  r.metrics.stored = 10;
  r.metrics.product = 9;
  r.metrics.output_signal = 100;
  r.metrics.output_noise = 100 * loss;
  r.metrics.trits = {8, 16, 8};
  return r;
}

TEST(QuantReportTest, SumsAndJson) {
  QuantReport report;
  report.model = "a \"model\"";
  report.linears = {linear({TensorRole::kAttnQ, 0}, WeightMethod::kGptq, 0.5),
                    linear({TensorRole::kFfnUp, 0}, WeightMethod::kGptq, 0.1),
                    linear({TensorRole::kAttnQ, 1}, WeightMethod::kLeastSquares, 0)};
  report.linears[0].warnings = {"odd"};
  report.linears[0].damping = 0.1;
  report.linears[2].kept = true;
  EXPECT_DOUBLE_EQ(report.layer(0).output_error(), 0.3);
  EXPECT_DOUBLE_EQ(report.total().output_error(), 0.2);
  EXPECT_DOUBLE_EQ(report.bits_per_weight(), 3);
  nlohmann::json j = nlohmann::json::parse(to_json(report));
  EXPECT_EQ(j["format_version"], 1);
  EXPECT_EQ(j["model"], "a \"model\"");
  EXPECT_EQ(QuantConfig::from_yaml(j["config"].get<std::string>(), "x").to_yaml(), QuantConfig().to_yaml());
  ASSERT_EQ(j["linears"].size(), 3u);
  EXPECT_EQ(j["linears"][0]["name"], "blk.0.attn_q");
  EXPECT_EQ(j["linears"][0]["method"], "gptq");
  EXPECT_EQ(j["linears"][0]["damping"], 0.1);
  EXPECT_EQ(j["linears"][0]["warnings"][0], "odd");
  EXPECT_DOUBLE_EQ(j["linears"][0]["output_error"], 0.5);
  EXPECT_DOUBLE_EQ(j["linears"][1]["mse"], 1.0 / 32);
  EXPECT_TRUE(j["linears"][2]["sqnr_db"].is_null());  // infinite
  EXPECT_TRUE(j["linears"][2]["kept"]);
  EXPECT_FALSE(j["linears"][2].contains("damping"));
  ASSERT_EQ(j["layers"].size(), 2u);
  EXPECT_DOUBLE_EQ(j["layers"][0]["output_error"], 0.3);
  EXPECT_DOUBLE_EQ(j["total"]["entropy_bits"], 1.5);
  EXPECT_DOUBLE_EQ(j["total"]["zero_fraction"], 0.5);
  EXPECT_TRUE(j["logits"].is_null());
  report.logits = LogitMetrics{10, 5, 2, 7, 10 * std::log(3.0), 10 * std::log(4.0)};
  j = nlohmann::json::parse(to_json(report));
  EXPECT_DOUBLE_EQ(j["logits"]["mean_kl"], 0.5);
  EXPECT_DOUBLE_EQ(j["logits"]["top1_agreement"], 0.7);
  EXPECT_NEAR(j["logits"]["perplexity_before"], 3, 1e-12);
  EXPECT_NEAR(j["logits"]["perplexity_after"], 4, 1e-12);
}

bool some_hint(const QuantReport& report, const std::string& part) {
  const std::vector<std::string> hints = mitigation_hints(report);
  return std::any_of(hints.begin(), hints.end(),
                     [&](const std::string& h) { return h.find(part) != h.npos; });
}

TEST(QuantReportTest, HintsNameTheOptionToTry) {
  QuantReport report;
  for (std::int64_t i = 0; i < 5; ++i)
    report.linears.push_back(linear({TensorRole::kAttnQ, i}, WeightMethod::kAbsmean, 0.05));
  EXPECT_TRUE(mitigation_hints(report).empty());  // little was lost
  for (LinearReport& r : report.linears) r = linear(r.id, WeightMethod::kAbsmean, 0.5);
  EXPECT_TRUE(some_hint(report, "weights.method: gptq"));
  for (LinearReport& r : report.linears) r.plan.method = WeightMethod::kGptq;
  EXPECT_FALSE(some_hint(report, "weights.method"));
  EXPECT_TRUE(some_hint(report, "weights.scales: row"));
  EXPECT_FALSE(some_hint(report, "two-plane"));  // all are alike
  report.linears[3] = linear({TensorRole::kAttnQ, 3}, WeightMethod::kGptq, 2);
  EXPECT_TRUE(some_hint(report, "match: [blk.3.attn_q], method: two-plane"));
  EXPECT_FALSE(some_hint(report, "calibration tokens"));
  report.linears[1].warnings = {"calibrated on 3 tokens for 8 inputs"};
  EXPECT_TRUE(some_hint(report, "calibration tokens"));
  EXPECT_FALSE(some_hint(report, "bitnet train"));
  report.logits = LogitMetrics{1, 0, 0, 1, std::log(3.0), std::log(4.0)};
  EXPECT_TRUE(some_hint(report, "bitnet train"));
  for (LinearReport& r : report.linears) r.kept = true;
  EXPECT_TRUE(mitigation_hints(report).empty());
}

}  // namespace
}  // namespace bitnet::quant
