// Quantisers of every kind against their straight-through formulas: the forward in double with the rounding
// written out, the gradients by central differences of the same product with all rounding detached, as
// x + (Q(x) − x).detach() does. Absmean to the bit is fake_quant_test.cpp.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "bitnet/quant/post_training.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/fake_quant.hpp"
#include "gradient_check.hpp"

namespace bitnet::training {
namespace {

using namespace reference;

constexpr std::int64_t kIn = 150, kOut = 7, kRows = 9;  // a group of 128 and one of 22

std::size_t scale_of(const QuantizerOptions& o, std::int64_t r, std::int64_t c) {
  if (o.granularity == ScaleGranularity::kTensor) return 0;
  if (o.granularity == ScaleGranularity::kRow) return static_cast<std::size_t>(r);
  return static_cast<std::size_t>(r * 2 + c / kScaleGroup);
}

std::size_t scales_of(const QuantizerOptions& o) {
  return o.granularity == ScaleGranularity::kTensor ? 1
         : o.granularity == ScaleGranularity::kRow  ? kOut
                                                    : 2 * kOut;
}

std::vector<float> rule_of(const QuantizerOptions& o, const Matrix& w) {
  std::vector<std::vector<double>> members(scales_of(o));
  for (std::int64_t r = 0; r < kOut; ++r)
    for (std::int64_t c = 0; c < kIn; ++c) members[scale_of(o, r, c)].push_back(std::abs(w.at(r, c)));
  std::vector<float> scales;
  for (auto& m : members) {
    std::sort(m.begin(), m.end());
    double sum = 0;
    for (const double v : m) sum += v;
    const std::size_t n = m.size();
    const double median = n % 2 ? m[n / 2] : (m[n / 2] + m[n / 2 - 1]) / 2;
    scales.push_back(
        static_cast<float>(o.statistic == ScaleStatistic::kMean ? sum / static_cast<double>(n) : median));
  }
  return scales;
}

/// The layer with everything that rounds detached.
struct Detached {
  QuantizerOptions o;
  double lambda;
  Matrix x0, w0;
  std::vector<double> s0;
  Matrix xq, t;  // Q(x0), trits of w0

  Detached(const QuantizerOptions& options, double l, const Matrix& x, const Matrix& w,
           const std::vector<float>& s)
      : o(options), lambda(l), x0(x), w0(w), s0(s.begin(), s.end()), xq(x), t(w) {
    const float largest = o.activation_bits == 8 ? 127 : 7;
    for (std::int64_t r = 0; r < x.rows; ++r) {
      float most = 1e-5f;
      for (std::int64_t c = 0; c < x.cols; ++c)
        most = std::max(most, static_cast<float>(std::abs(x.at(r, c))));
      const float a = largest / most;
      for (std::int64_t c = 0; c < x.cols; ++c)
        xq.at(r, c) = std::clamp(std::nearbyint(static_cast<float>(x.at(r, c)) * a), -largest - 1, largest) /
                      static_cast<double>(a);
    }
    for (std::int64_t r = 0; r < w.rows; ++r)
      for (std::int64_t c = 0; c < w.cols; ++c)
        t.at(r, c) = std::clamp(
            std::nearbyint(static_cast<float>(w.at(r, c)) * (1.0f / s[scale_of(o, r, c)])), -1.0f, 1.0f);
  }
  Matrix forward(const Matrix& x, const Matrix& w, const std::vector<double>& s) const {
    Matrix xe = x, we = w;
    for (std::size_t i = 0; i < x.v.size(); ++i) xe.v[i] = x.v[i] + lambda * (xq.v[i] - x0.v[i]);
    for (std::int64_t r = 0; r < w.rows; ++r)
      for (std::int64_t c = 0; c < w.cols; ++c) {
        const std::size_t g = scale_of(o, r, c);
        const double at0 = w0.at(r, c) / s0[g], trit = t.at(r, c);
        const bool inside = std::abs(at0) <= o.clip;
        double q = w.at(r, c) + (s0[g] * trit - w0.at(r, c));                      // identity
        if (o.gradient == StraightThrough::kClipped && !inside) q = s0[g] * trit;  // a constant
        if (o.gradient == StraightThrough::kLearnedScale)
          q = inside ? s[g] * (w.at(r, c) / s[g] + (trit - at0)) : s[g] * trit;
        we.at(r, c) = (1 - lambda) * w.at(r, c) + lambda * q;
      }
    return reference::linear(xe, we);
  }
};

void check_layer(const QuantizerOptions& o, float lambda) {
  SCOPED_TRACE(std::string(to_string(o.granularity)) + ", " + std::string(to_string(o.statistic)) + ", " +
               std::string(to_string(o.gradient)) + ", " + std::to_string(o.activation_bits) +
               " bits, lambda " + std::to_string(lambda));
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  Rng rng(21);
  Matrix x = reference::random(rng, kRows, kIn, 2.0), w = reference::random(rng, kOut, kIn, 0.05);
  std::vector<float> s = rule_of(o, w);
  const bool learns = o.gradient == StraightThrough::kLearnedScale;
  if (learns)
    for (float& v : s) v *= 1.2f;
  Tape tape(context);
  Parameter px(context, "x", kRows, kIn, false), pw(context, "w", kOut, kIn, true);
  Parameter ps(context, "s", 1, static_cast<std::int64_t>(s.size()), false);
  fill(px, x);
  fill(pw, w);
  // A step may take a learned scale beyond zero; its size is what counts.
  const float side = learns && o.activation_bits == 4 ? -1.0f : 1.0f;
  std::transform(s.begin(), s.end(), ps.value().begin(), [&](float v) { return side * v; });
  TernaryCache cache(context, kOut, kIn, o);
  if (learns)
    cache.update(context, pw.value(), lambda, ps.value());
  else
    cache.update(context, pw.value(), lambda);
  ASSERT_EQ(cache.scales().size(), s.size());
  for (std::size_t i = 0; i < s.size(); ++i) EXPECT_NEAR(cache.scales()[i], s[i], 3e-7 * s[i]);
  const Detached layer(o, lambda, x, w, s);
  for (std::size_t i = 0; i < w.v.size(); ++i) ASSERT_EQ(cache.trits()[i], layer.t.v[i]);
  std::vector<double> scales(s.begin(), s.end());
  const auto loss = [&] { return reference::weighted_sum(layer.forward(x, w, scales)); };
  const auto dx = central_differences(x, loss), dw = central_differences(w, loss);
  Matrix ms(1, static_cast<std::int64_t>(s.size()));
  ms.v = scales;
  auto ds = central_differences(ms, [&] { return reference::weighted_sum(layer.forward(x, w, ms.v)); });
  for (std::size_t i = 0; i < ds.size(); ++i)
    ds[i] *= static_cast<double>(side) / std::sqrt(static_cast<double>(cache.segment(i).count));
  for (int pass = 1; pass <= 2; ++pass) {
    const Variable y = bit_linear(tape, quantize_activations(tape, px.variable(), o.activation_bits, lambda),
                                  pw.variable(), cache, learns ? ps.variable() : Variable());
    EXPECT_LT(relative_error(y.value(), layer.forward(x, w, scales).v), 1e-5);
    tape.backward(reference::weighted_sum(tape, y));
    tape.reset();
    const auto times = [&](std::vector<double> g) {
      for (double& v : g) v *= pass;
      return g;
    };
    EXPECT_LT(relative_error(px.grad(), times(dx)), kTolerance) << "pass " << pass;
    EXPECT_LT(relative_error(pw.grad(), times(dw)), kTolerance) << "pass " << pass;
    if (learns) {
      EXPECT_LT(relative_error(ps.grad(), times(ds)), kTolerance) << "pass " << pass;
    }
  }
}

TEST(Quantizer, EveryKindFollowsItsStraightThroughFormula) {
  for (const auto granularity : {ScaleGranularity::kTensor, ScaleGranularity::kRow, ScaleGranularity::kGroup})
    for (const auto gradient :
         {StraightThrough::kIdentity, StraightThrough::kClipped, StraightThrough::kLearnedScale})
      for (const int bits : {8, 4})
        for (const float lambda : {1.0f, 0.375f}) {
          QuantizerOptions o;
          o.granularity = granularity;
          o.gradient = gradient;
          o.activation_bits = bits;
          o.statistic = bits == 8 ? ScaleStatistic::kMean : ScaleStatistic::kMedian;
          check_layer(o, lambda);
        }
}

TEST(Quantizer, LambdaZeroIsFullPrecision) {
  const ExecutionContext context;
  Rng rng(22);
  const Matrix x = random(rng, 4, 40), w = random(rng, 5, 40);
  Parameter px(context, "x", 4, 40, false), pw(context, "w", 5, 40, true);
  fill(px, x);
  fill(pw, w);
  TernaryCache cache(context, 5, 40);
  cache.update(context, pw.value(), 0);
  Tape tape(context);
  const auto y =
      bit_linear(tape, quantize_activations(tape, px.variable(), 8, 0), pw.variable(), cache).value();
  const auto dense = linear(tape, px.variable(), pw.variable()).value();
  EXPECT_TRUE(std::equal(y.begin(), y.end(), dense.begin()));
}

TEST(Quantizer, LatentWeightsOfTritsTernariseToThem) {
  const ExecutionContext context;
  Rng rng(24);
  for (const auto granularity : {ScaleGranularity::kTensor, ScaleGranularity::kRow})
    for (const auto gradient : {StraightThrough::kIdentity, StraightThrough::kLearnedScale}) {
      QuantizerOptions o;
      o.granularity = granularity;
      o.gradient = gradient;
      Parameter w(context, "w", 6, 90, true);
      fill(w, random(rng, 6, 90, 0.02));
      std::fill_n(w.value().begin(), 30, 0.0f);
      TernaryCache cache(context, 6, 90, o);
      cache.update(context, w.value());
      const quant::TernaryWeights weights = cache.weights();
      latent_from_ternary(weights, o, w.value());
      TernaryCache again(context, 6, 90, o);
      if (gradient == StraightThrough::kLearnedScale)
        again.update(context, w.value(), 1, cache.scales());
      else
        again.update(context, w.value());
      EXPECT_EQ(again.weights().trits, weights.trits);
      for (std::size_t i = 0; i < weights.scales.size(); ++i)
        EXPECT_NEAR(again.scales()[i], weights.scales[i], 3e-7 * weights.scales[i]);
    }
  quant::TernaryWeights zeros{1, 4, {0, 0, 0, 1}, {0.5f}, 1};
  QuantizerOptions median;
  median.statistic = ScaleStatistic::kMedian;
  std::vector<float> four(4);
  BITNET_EXPECT_ERROR(latent_from_ternary(zeros, median, four), ErrorCode::kUnsupported, "median");
  QuantizerOptions group;
  group.granularity = ScaleGranularity::kGroup;
  EXPECT_EQ(TernaryCache(context, 2, 128, group).weights().cols_per_scale, 0);  // a group is a row
  // Groups of 96 columns are as many as those of 128, of which the second is shorter, but not the same.
  quant::TernaryWeights narrow{1, 192, std::vector<std::int8_t>(192, 1), {0.5f, 0.25f}, 1, 96};
  std::vector<float> latent(192);
  BITNET_EXPECT_ERROR(latent_from_ternary(narrow, group, latent), ErrorCode::kUnsupported,
                      "one for 96 columns of a row");
}

TEST(Quantizer, GroupsOfColumnsAreTritsWithScalesByThemselves) {
  const ExecutionContext context;
  Rng rng(27);
  QuantizerOptions o;
  o.granularity = ScaleGranularity::kGroup;
  Parameter w(context, "w", 3, 256, true);
  fill(w, random(rng, 3, 256, 0.02));
  TernaryCache cache(context, 3, 256, o);
  cache.update(context, w.value());
  const quant::TernaryWeights weights = cache.weights();
  EXPECT_EQ(weights.cols_per_scale, 128);
  EXPECT_EQ(weights.rows_per_scale, 1);
  ASSERT_EQ(weights.scales.size(), 6u);
  const std::vector<float> values = quant::dequantise(weights);
  std::vector<float> effective(values.size());
  cache.effective(context, {}, effective);
  EXPECT_EQ(values, effective);
  // Groups twice as wide are each of both narrower ones; rows are not made of them.
  quant::TernaryWeights wide = weights;
  wide.cols_per_scale = 256;
  wide.scales = {0.5f, 0.25f, 0.125f};
  o.gradient = StraightThrough::kLearnedScale;
  latent_from_ternary(wide, o, w.value());
  for (std::size_t i = 0; i < 3 * 256; ++i)
    ASSERT_EQ(w.value()[i], wide.scales[i / 256] * static_cast<float>(wide.trits[i]));
  o.granularity = ScaleGranularity::kRow;
  BITNET_EXPECT_ERROR(latent_from_ternary(weights, o, w.value()), ErrorCode::kUnsupported,
                      "choose model.scales: group");
}

TEST(Quantizer, WiderScalesOfTritsBecomeEachOfTheNarrowerOnes) {
  const ExecutionContext context;
  Rng rng(26);
  TernaryCache tensor(context, 6, 200);
  Parameter w(context, "w", 6, 200, true);
  fill(w, random(rng, 6, 200, 0.02));
  tensor.update(context, w.value());
  const quant::TernaryWeights one = tensor.weights();
  for (const auto granularity : {ScaleGranularity::kRow, ScaleGranularity::kGroup}) {
    QuantizerOptions o;
    o.granularity = granularity;  // groups of 128 and 72
    latent_from_ternary(one, o, w.value());
    TernaryCache cache(context, 6, 200, o);
    cache.update(context, w.value());
    EXPECT_TRUE(std::equal(one.trits.begin(), one.trits.end(), cache.trits().begin()));
    for (const float s : cache.scales()) EXPECT_NEAR(s, one.scales[0], 3e-7 * one.scales[0]);
  }
  quant::TernaryWeights rows = one;
  rows.scales.assign(6, one.scales[0]);
  rows.rows_per_scale = 1;
  BITNET_EXPECT_ERROR(latent_from_ternary(rows, {}, w.value()), ErrorCode::kUnsupported,
                      "choose model.scales: row");
}

TEST(Quantizer, ThreadsAndInstructionSetsChangeNoBit) {
  Rng rng(25);
  const Matrix x = random(rng, 20, 200), w = random(rng, 30, 200, 0.05);
  QuantizerOptions o;
  o.granularity = ScaleGranularity::kGroup;
  o.gradient = StraightThrough::kLearnedScale;
  o.activation_bits = 4;
  std::vector<float> first;
  const auto run = [&](std::size_t threads, Isa isa) {
    const ExecutionContext context(ExecutionContext::Options{threads, isa});
    Tape tape(context);
    Parameter px(context, "x", 20, 200, false), pw(context, "w", 30, 200, true),
        ps(context, "s", 1, 60, false);
    fill(px, x);
    fill(pw, w);
    TernaryCache cache(context, 30, 200, o);
    cache.update(context, pw.value(), 0.5f);
    std::copy(cache.scales().begin(), cache.scales().end(), ps.value().begin());
    const Variable y = bit_linear(tape, quantize_activations(tape, px.variable(), 4, 0.5f), pw.variable(),
                                  cache, ps.variable());
    std::vector<float> all(y.value().begin(), y.value().end());
    tape.backward(reference::weighted_sum(tape, y));
    for (Parameter* p : {&px, &pw, &ps}) all.insert(all.end(), p->grad().begin(), p->grad().end());
    return all;
  };
  for (const Isa isa : compiled_isas()) {
    if (!is_supported(isa) || to_string(isa) == "scalar" || to_string(isa) == "sse41") continue;  // no FMA
    if (first.empty()) first = run(1, isa);
    EXPECT_EQ(run(3, isa), first) << to_string(isa);
  }
}

TEST(Quantizer, BadOptionsSayWhatThereIs) {
  const ExecutionContext context;
  QuantizerOptions o;
  o.activation_bits = 6;
  BITNET_EXPECT_ERROR(o.validate(), ErrorCode::kInvalidArgument, "expected 8 or 4");
  o = {};
  o.clip = 0.25f;
  BITNET_EXPECT_ERROR(TernaryCache(context, 1, 1, o), ErrorCode::kInvalidArgument, "clip");
  BITNET_EXPECT_ERROR(scale_granularity_from_string("block"), ErrorCode::kInvalidArgument,
                      "tensor, row, group");
  BITNET_EXPECT_ERROR(scale_statistic_from_string("max"), ErrorCode::kInvalidArgument, "mean, median");
  BITNET_EXPECT_ERROR(straight_through_from_string("tanh"), ErrorCode::kInvalidArgument,
                      "identity, clipped, learned_scale");
  BITNET_EXPECT_ERROR(quantizer_schedule_from_string("step"), ErrorCode::kInvalidArgument,
                      "abrupt, linear, exponential, sigmoid");
  EXPECT_EQ(scale_granularity_from_string("group"), ScaleGranularity::kGroup);
  Tape tape(context);
  const Variable x = tape.make(1, 4, true);
  BITNET_EXPECT_ERROR(quantize_activations(tape, x, 5), ErrorCode::kInvalidArgument, "expected 8 or 4");
}

TEST(QuantizerSchedule, GrowsFromZeroToOneByItsCurve) {
  using Kind = QuantizerScheduleKind;
  EXPECT_EQ((QuantizerSchedule{Kind::kAbrupt, 100, false}.lambda(0)), 1.0f);
  for (const Kind kind : {Kind::kLinear, Kind::kExponential, Kind::kSigmoid}) {
    const QuantizerSchedule s{kind, 100, false};
    EXPECT_EQ(s.lambda(0), 0.0f);
    EXPECT_EQ(s.lambda(100), 1.0f);
    EXPECT_EQ(s.lambda(5000), 1.0f);
    for (int step = 0; step < 100; ++step) EXPECT_LT(s.lambda(step), s.lambda(step + 1)) << to_string(kind);
    EXPECT_EQ(quantizer_schedule_from_string(to_string(kind)), kind);
  }
  EXPECT_FLOAT_EQ((QuantizerSchedule{Kind::kLinear, 1000, false}.lambda(250)), 0.25f);
  EXPECT_FLOAT_EQ((QuantizerSchedule{Kind::kSigmoid, 1000, false}.lambda(500)), 0.5f);
  EXPECT_NEAR((QuantizerSchedule{Kind::kExponential, 1000, false}.lambda(200)),
              (1 - std::exp(-1)) / (1 - std::exp(-5)), 1e-6);
  const QuantizerSchedule layers{Kind::kLinear, 100, true};
  EXPECT_FLOAT_EQ(layers.lambda(25, 1, 4), 0.0f);
  EXPECT_FLOAT_EQ(layers.lambda(30, 1, 4), 0.2f);
  EXPECT_FLOAT_EQ(layers.lambda(30, 0, 4), 1.0f);
  EXPECT_FLOAT_EQ(layers.lambda(100, 3, 4), 1.0f);
}

}  // namespace
}  // namespace bitnet::training
