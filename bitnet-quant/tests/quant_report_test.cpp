// Logit metrics against hand-made distributions; sums, hints and JSON of reports.
#include "bitnet/quant/quant_report.hpp"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>
#include <regex>

#include "bitnet/core/rng.hpp"
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
  EXPECT_TRUE(some_hint(report, "--method gptq with --calibrate TEXT (weights.method: gptq in a plan)"));
  for (LinearReport& r : report.linears) r.plan.method = WeightMethod::kGptq;
  EXPECT_FALSE(some_hint(report, "weights.method"));
  EXPECT_TRUE(some_hint(report, "--scales row, or group128 (weights.scales: row in a plan)"));
  EXPECT_FALSE(some_hint(report, "two-plane"));  // all are alike
  report.linears[3] = linear({TensorRole::kAttnQ, 3}, WeightMethod::kGptq, 2);
  EXPECT_TRUE(some_hint(report, "--type extended --plan FILE, in which scheme: mixed_precision"));
  EXPECT_TRUE(some_hint(report, "match: [blk.3.attn_q], method: two-plane"));
  EXPECT_FALSE(some_hint(report, "calibration tokens"));
  report.linears[1].warnings = {"calibrated on 3 tokens for 8 inputs"};
  EXPECT_TRUE(some_hint(report, "--calibration-tokens"));
  EXPECT_FALSE(some_hint(report, "bitnet train"));
  report.logits = LogitMetrics{1, 0, 0, 1, std::log(3.0), std::log(4.0)};
  EXPECT_TRUE(some_hint(report, "bitnet train"));
  for (LinearReport& r : report.linears) r.kept = true;
  EXPECT_TRUE(mitigation_hints(report).empty());
}

LogitMetrics logits_of(double kl, double perplexity) {
  LogitMetrics m;
  m.positions = 100;
  m.kl = 100 * kl;
  m.nll_original = 100 * std::log(10.0);
  m.nll_other = 100 * std::log(10 * perplexity);
  return m;
}

TEST(QuantReportTest, EachHintHasReasonsOfItsOwn) {
  QuantReport report;  // nothing to see on the text that it was calibrated on
  for (std::int64_t i = 0; i < 5; ++i)
    report.linears.push_back(linear({TensorRole::kAttnQ, i}, WeightMethod::kGptq, 0.002));
  report.logits = logits_of(0.004, 1.004);
  EXPECT_TRUE(mitigation_hints(report).empty());
  // Too little text is a reason whatever else is seen.
  for (const char* warning :
       {"calibrated on 2 tokens for 256 inputs", "the inputs' second moments are singular"}) {
    report.linears[2].warnings = {warning};
    EXPECT_EQ(mitigation_hints(report).size(), 1u) << warning;
    EXPECT_TRUE(some_hint(report, "--calibration-tokens")) << warning;
  }
  report.linears[2].warnings = {"every weight is 0"};
  EXPECT_TRUE(mitigation_hints(report).empty());
  // So are the predictions on a text of their own, by either figure.
  for (const LogitMetrics& logits : {logits_of(0.02, 1.01), logits_of(0.001, 1.06)}) {
    report.logits = logits;
    EXPECT_TRUE(some_hint(report, "--scales row"));
    EXPECT_TRUE(some_hint(report, "--tune-steps"));
    EXPECT_FALSE(some_hint(report, "bitnet train"));
    EXPECT_FALSE(some_hint(report, "two-plane"));
  }
  report.linears[3].metrics.output_noise = 1;  // five times as much as the others
  EXPECT_TRUE(some_hint(report, "match: [blk.3.attn_q], method: two-plane"));
  for (LinearReport& r : report.linears) r.plan.method = WeightMethod::kLeastSquares;
  EXPECT_TRUE(some_hint(report, "--method gptq"));
  report.tuning.emplace();
  EXPECT_FALSE(some_hint(report, "--tune-steps"));
}

TEST(QuantReportTest, MasterWeightsOfBitNetNeedNoMending) {
  QuantReport report;
  for (std::int64_t i = 0; i < 5; ++i) {
    report.linears.push_back(linear({TensorRole::kAttnQ, i}, WeightMethod::kAbsmean, i == 3 ? 2 : 0.5));
    report.linears.back().master_weights = true;
  }
  report.logits = logits_of(0.02, 2);
  EXPECT_TRUE(mitigation_hints(report).empty());
  EXPECT_NE(to_html(report).find("and no loss"), std::string::npos);
  EXPECT_EQ(nlohmann::json::parse(to_json(report))["linears"][0]["master_weights"], true);
  report.linears.push_back(linear({TensorRole::kFfnUp, 0}, WeightMethod::kLeastSquares, 0.5));
  EXPECT_TRUE(some_hint(report, "makes up for each column"));
  EXPECT_FALSE(some_hint(report, "absmean is right"));
  EXPECT_FALSE(some_hint(report, "two-plane"));
}

/// A matrix of one row.
LogicalTensor stored_as(std::vector<std::int8_t> trits, std::vector<float> scales,
                        std::int64_t cols_per_scale = 0) {
  LogicalTensor t;
  const auto in = static_cast<std::int64_t>(trits.size());
  t.shape = Shape{1, in};
  t.ternary = true;
  t.weights = {1, in, std::move(trits), std::move(scales), 1, cols_per_scale};
  return t;
}

std::int64_t sum(const WeightHistogram& h, std::size_t trit) {
  return std::accumulate(h.counts[trit].begin(), h.counts[trit].end(), std::int64_t{0});
}

TEST(WeightHistogramTest, CountsInUnitsOfTheScale) {
  const std::vector<float> w{0.1f, -0.9f, 2.2f, -50.0f, 0, 0};
  const WeightHistogram h = histogram_of(w, stored_as({0, -1, 1, -1, 0, 0}, {2.0f, 100.0f, 1.0f}, 2));
  EXPECT_TRUE(h.ternary);
  EXPECT_EQ(sum(h, 0), 2);
  EXPECT_EQ(sum(h, 1), 3);
  EXPECT_EQ(sum(h, 2), 1);
  constexpr std::size_t kZero = WeightHistogram::kBins / 2;  // 12 bins a unit
  EXPECT_EQ(h.counts[1][kZero], 3);                          // 0.05, 0 and 0
  EXPECT_EQ(h.counts[2][kZero], 1);                          // 2.2 / 100
  EXPECT_EQ(h.counts[0][kZero - 6], 2);                      // −0.45 and −0.5
  EXPECT_FLOAT_EQ(static_cast<float>(h.largest_zero), 0.05f);
  EXPECT_FLOAT_EQ(static_cast<float>(h.smallest_one), 0.022f);
  WeightHistogram two = h;
  two.add(h);
  EXPECT_EQ(sum(two, 1), 6);
  EXPECT_EQ(two.smallest_one, h.smallest_one);
  WeightHistogram none;
  none.add(h);
  EXPECT_EQ(none.smallest_one, h.smallest_one);
  const WeightHistogram beyond =
      histogram_of(std::vector<float>{-9, 9, 1}, stored_as({-1, 1, 0}, {1.0f, 0.0f, 0.0f}, 1));
  EXPECT_EQ(beyond.counts[0].front(), 1);
  EXPECT_EQ(beyond.counts[2].back(), 1);
  EXPECT_EQ(beyond.counts[1].back(), 1);  // another number than 0 with the scale 0
  EXPECT_TRUE(std::isfinite(beyond.largest_zero));
  BITNET_EXPECT_ERROR(histogram_of(std::vector<float>(2), stored_as({0}, {1})), ErrorCode::kInvalidArgument,
                      "2 weights that are stored as [1, 1]");
}

TEST(WeightHistogramTest, TheThresholdIsWhereItWas) {
  Rng rng(7);
  std::vector<float> w(4096);
  for (float& v : w) v = static_cast<float>(rng.normal());
  const ExecutionContext context;
  LogicalTensor t = stored_as(std::vector<std::int8_t>(w.size()), {1});
  t.weights = least_squares(context, w, 1, 4096, ScaleGroups::tensor());
  const auto by_ls = histogram_of(w, t).threshold();
  ASSERT_TRUE(by_ls.has_value());
  EXPECT_NEAR(*by_ls, 0.5, 0.01);
  t.weights.scales[0] *= 2;  // a refit: the trits stay
  EXPECT_NEAR(histogram_of(w, t).threshold().value(), 0.25, 0.005);
  // Some that lie on the other side do not move it by more than the width of a bin.
  t.weights.scales[0] /= 2;
  for (std::size_t i = 0; i < w.size(); i += 50) t.weights.trits[i] = t.weights.trits[i] == 0 ? 1 : 0;
  EXPECT_NEAR(histogram_of(w, t).threshold().value(), 0.5, 1.0 / 12);
  t.ternary = false;
  t.dense.resize(w.size() * 4);
  const WeightHistogram floats = histogram_of(w, t);
  EXPECT_FALSE(floats.threshold().has_value());
  EXPECT_EQ(sum(floats, 1), 0);
  EXPECT_EQ(sum(floats, WeightHistogram::kNotTernary), 4096);
  EXPECT_FALSE(WeightHistogram{}.threshold().has_value());
}

QuantReport page_report(std::int64_t layers, const std::string& model) {
  QuantReport report;
  report.model = model;
  for (std::int64_t layer = 0; layer < layers; ++layer)
    for (const TensorRole role : {TensorRole::kAttnQ, TensorRole::kFfnDown})
      report.linears.push_back(
          linear({role, layer}, WeightMethod::kGptq, 0.01 + 0.001 * static_cast<double>(layer)));
  return report;
}

std::size_t count(const std::string& text, const std::string& what) {
  std::size_t n = 0;
  for (std::size_t at = 0; (at = text.find(what, at)) != std::string::npos; ++at) ++n;
  return n;
}

TEST(QuantPageTest, HasEverythingInOneFile) {
  QuantReport report = page_report(3, "a<b>&c");
  report.linears[1].metrics.output_noise = 60;  // lost the most
  report.linears[1].warnings = {"odd <weights>"};
  LogitMetrics& logits = report.logits.emplace();
  logits.positions = 100;
  logits.kl = 25;
  logits.same_top = 80;
  logits.nll_original = 100 * std::log(5.0);
  logits.nll_other = 100 * std::log(20.0);
  const std::string html = to_html(report);
  for (const char* has :
       {"Quantisation of a&lt;b&gt;&amp;c", "perplexity before", ">5.0000<", ">20.0000<", "80.0 %",
        "4.00 times as much", "blk.0.ffn_down: odd &lt;weights&gt;", "What to try", "mixed_precision",
        "bitnet train", "Error against depth", "stored as −1", "method: absmean", "<details>"})
    EXPECT_NE(html.find(has), std::string::npos) << has;
  EXPECT_EQ(count(html, "<svg "), 5u);
  // The worst comes first.
  const std::size_t bars = html.find("Linears, the worst first");
  EXPECT_LT(html.find(">blk.0.ffn_down<", bars), html.find(">blk.2.attn_q<", bars));
  const std::string fetched = std::regex_replace(html, std::regex("http://www.w3.org/2000/svg"), "");
  for (const char* not_there : {"http", "<script", "<link", " src="})
    EXPECT_EQ(fetched.find(not_there), std::string::npos);
}

/// The part of a page from one text up to another.
std::string between(const std::string& html, const std::string& from, const std::string& to) {
  const std::size_t begin = html.find(from);
  EXPECT_NE(begin, std::string::npos) << from;
  return begin == std::string::npos ? "" : html.substr(begin, html.find(to, begin) - begin);
}

TEST(QuantPageTest, LossesAreOfOneKind) {
  QuantReport report = page_report(2, "m");
  report.linears[1].metrics.output_signal = report.linears[1].metrics.output_noise = 0;  // its inputs were 0
  report.linears[1].metrics.noise = 10;  // all of the weights, were they compared
  const std::string html = to_html(report);
  const std::string bars = between(html, "Linears, the worst first", "</svg>");
  EXPECT_EQ(bars.find("blk.0.ffn_down"), std::string::npos);
  EXPECT_LT(bars.find("blk.1."), bars.find("blk.0.attn_q"));
  EXPECT_NE(html.find("could be compared with: blk.0.ffn_down."), std::string::npos);
  EXPECT_NE(between(html, "Error against depth", "</svg>").find("attn_q"), std::string::npos);
  EXPECT_TRUE(mitigation_hints(report).empty());  // nothing is known of it
  for (LinearReport& r : report.linears) r.metrics.output_signal = r.metrics.output_noise = 0;
  const std::string weights = to_html(report);
  EXPECT_EQ(weights.find("could be compared with"), std::string::npos);
  EXPECT_LT(weights.find(">blk.0.ffn_down<", weights.find("Linears, the worst first")),
            weights.find(">blk.0.attn_q<", weights.find("Linears, the worst first")));
}

TEST(QuantPageTest, WhatIsNotTernaryIsDrawnApart) {
  QuantReport report = page_report(4, "m");
  Rng rng(3);
  std::vector<float> w(512);
  for (float& v : w) v = static_cast<float>(rng.normal());
  const ExecutionContext context;
  LogicalTensor t = stored_as(std::vector<std::int8_t>(w.size()), {1});
  t.weights = least_squares(context, w, 1, 512, ScaleGroups::tensor());
  LogicalTensor floats = t;
  floats.ternary = false;
  floats.dense.resize(w.size() * 4);
  for (LinearReport& r : report.linears)  // attn_q: one of four; ffn_down: none
    r.histogram = histogram_of(w, r.id.role == TensorRole::kAttnQ && r.id.layer == 1 ? t : floats);
  WeightHistogram sum_of_both = report.linears[0].histogram;
  sum_of_both.add(report.linears[2].histogram);
  EXPECT_EQ(sum_of_both.threshold(), report.linears[2].histogram.threshold());
  const std::string html = to_html(report);
  EXPECT_NE(html.find("not ternary"), std::string::npos);
  const std::string roles = between(html, "All layers, by kind of linear", "</svg>");
  EXPECT_NE(roles.find("attn_q (1 of 4)"), std::string::npos);
  EXPECT_EQ(roles.find("ffn_down"), std::string::npos);
}

TEST(QuantPageTest, OfOneLayerAndOfMany) {
  const std::string one = to_html(page_report(1, "m"));
  EXPECT_EQ(one.find("Error against depth"), std::string::npos);
  EXPECT_EQ(one.find("Layers, the worst first"), std::string::npos);
  EXPECT_NE(one.find("--evaluate TEXT"), std::string::npos);
  const std::string many = to_html(page_report(200, std::string(300, 'm')));
  EXPECT_NE(many.find("Layers, the worst first (16 of 200)"), std::string::npos);
  EXPECT_EQ(count(many, "<td>blk."), 400u);
  EXPECT_LT(many.size(), std::size_t{1} << 20);
  EXPECT_NE(to_html({}).find("In all"), std::string::npos);  // of nothing
}

}  // namespace
}  // namespace bitnet::quant
