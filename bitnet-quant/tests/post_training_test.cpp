// Scales and trits in closed form against their definitions: brute force over all trits, normal equations in
// double. GPTQ is gptq_test.cpp.
#include "bitnet/quant/post_training.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "bitnet/testing/testing.hpp"
#include "post_training_support.hpp"

namespace bitnet::quant {
namespace {

using test::context;
using test::Layer;
using test::random_inputs;
using test::random_values;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

double squared_error(std::span<const float> w, std::span<const float> q) {
  double sum = 0;
  for (std::size_t i = 0; i < w.size(); ++i)
    sum += std::pow(static_cast<double>(w[i]) - static_cast<double>(q[i]), 2);
  return sum;
}

TEST(LeastSquares, IsTheBestOfAllTritsAndScales) {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    const std::size_t n = 1 + seed % 7;
    std::vector<float> w = random_values(n, seed);
    if (seed % 5 == 0)
      for (float& v : w) v = std::round(v * 2) / 2;  // ties and zeros
    std::vector<std::int8_t> trits(n);
    const double scale = static_cast<double>(least_squares(w, trits));
    double got = 0, best = std::numeric_limits<double>::infinity();
    for (std::size_t i = 0; i < n; ++i) got += std::pow(static_cast<double>(w[i]) - scale * trits[i], 2);
    const auto all = static_cast<std::size_t>(std::pow(3, n));
    for (std::size_t code = 0; code < all; ++code) {
      double wt = 0, tt = 0, ww = 0;
      for (std::size_t i = 0, rest = code; i < n; ++i, rest /= 3) {
        const double t = static_cast<double>(rest % 3) - 1, v = static_cast<double>(w[i]);
        wt += v * t;
        tt += t * t;
        ww += v * v;
      }
      best = std::min(best, tt > 0 ? ww - wt * wt / tt : ww);
    }
    EXPECT_NEAR(got, best, 1e-5 * (1 + best)) << seed;
    for (std::size_t i = 0; i < n; ++i) {  // the threshold is half of the scale
      const double size = std::abs(static_cast<double>(w[i]));
      EXPECT_TRUE(trits[i] != 0 ? size >= scale / 2 - 1e-6 : size <= scale / 2 + 1e-6);
      EXPECT_GE(trits[i] * w[i], 0);
    }
  }
}

TEST(LeastSquares, GroupsStandAlone) {
  const std::int64_t out = 7, in = 12;
  const std::vector<float> w = random_values(static_cast<std::size_t>(out * in), 3);
  const TernaryWeights by_row = least_squares(context(), w, out, in, ScaleGroups::row());
  for (std::int64_t r = 0; r < out; ++r) {
    const auto row = std::span(w).subspan(static_cast<std::size_t>(r * in), static_cast<std::size_t>(in));
    std::vector<std::int8_t> trits(row.size());
    EXPECT_EQ(by_row.scales[static_cast<std::size_t>(r)], least_squares(row, trits));
    EXPECT_TRUE(std::equal(trits.begin(), trits.end(), by_row.trits.begin() + r * in));
  }
  const TernaryWeights by_4 = least_squares(context(), w, out, in, ScaleGroups::columns(4));
  ASSERT_EQ(by_4.scales.size(), 21u);
  EXPECT_EQ(by_4.cols_per_scale, 4);
  std::vector<std::int8_t> trits(4);
  EXPECT_EQ(by_4.scales[3 * 2 + 1], least_squares(std::span(w).subspan(2 * 12 + 4, 4), trits));
  EXPECT_TRUE(std::equal(trits.begin(), trits.end(), by_4.trits.begin() + 2 * 12 + 4));
  // Groups of three rows, the last one of one.
  const TernaryWeights by_3_rows = least_squares(context(), w, out, in, {3, 0});
  ASSERT_EQ(by_3_rows.scales.size(), 3u);
  trits.resize(12);
  EXPECT_EQ(by_3_rows.scales[2], least_squares(std::span(w).last(12), trits));
  const std::vector<float> values = dequantise(by_4);
  EXPECT_EQ(values[2 * 12 + 5], by_4.scales[7] * static_cast<float>(by_4.trits[2 * 12 + 5]));
  // Finer groups are never worse.
  const double tensor =
      squared_error(w, dequantise(least_squares(context(), w, out, in, ScaleGroups::tensor())));
  const double row = squared_error(w, dequantise(by_row)), four = squared_error(w, values);
  EXPECT_LE(row, tensor);
  EXPECT_LE(four, row);
}

TEST(LeastSquares, RowsMayComeInAnyOrder) {
  const std::int64_t out = 6, in = 10;
  const std::vector<float> w = random_values(60, 8);
  std::vector<float> turned(w.size());
  for (std::int64_t r = 0; r < out; ++r)
    std::copy_n(w.begin() + r * in, in, turned.begin() + (out - 1 - r) * in);
  for (const ScaleGroups groups : {ScaleGroups::tensor(), ScaleGroups::row(), ScaleGroups::columns(5)}) {
    const auto a = dequantise(least_squares(context(), w, out, in, groups)),
               b = dequantise(least_squares(context(), turned, out, in, groups));
    for (std::int64_t r = 0; r < out; ++r)
      EXPECT_TRUE(std::equal(a.begin() + r * in, a.begin() + (r + 1) * in, b.begin() + (out - 1 - r) * in));
  }
}

TEST(LeastSquares, OddTensors) {
  std::vector<std::int8_t> trits(4);
  EXPECT_EQ(least_squares(std::vector<float>(4, 0.0f), trits), 0.0f);
  EXPECT_EQ(trits, (std::vector<std::int8_t>{0, 0, 0, 0}));
  EXPECT_EQ(least_squares(std::vector<float>{2, -2, 2, 2}, trits), 2.0f);
  EXPECT_EQ(trits, (std::vector<std::int8_t>{1, -1, 1, 1}));
  EXPECT_EQ(least_squares(std::vector<float>{0, 0, -3, 0}, trits), 3.0f);
  EXPECT_EQ(trits, (std::vector<std::int8_t>{0, 0, -1, 0}));
  const std::vector<float> bad{1, 2, kNan, 3};
  BITNET_EXPECT_ERROR(least_squares(bad, trits), ErrorCode::kInvalidArgument, "weight 2 is nan");
  BITNET_EXPECT_ERROR(least_squares(context(), bad, 2, 2, {}), ErrorCode::kInvalidArgument,
                      "weight 2 is nan");
  BITNET_EXPECT_ERROR(least_squares(context(), bad, 2, 3, {}), ErrorCode::kInvalidArgument,
                      "4 weights for a matrix [2, 3]");
  const std::vector<float> w(12, 1.0f);
  BITNET_EXPECT_ERROR(least_squares(context(), w, 2, 6, {1, 4}), ErrorCode::kInvalidArgument,
                      "that divide 6");
}

TEST(TwoPlanes, NeverWorseWithEveryRound) {
  const std::int64_t out = 5, in = 64;
  const std::vector<float> w = random_values(320, 4);
  for (const ScaleGroups groups : {ScaleGroups::tensor(), ScaleGroups::row(), ScaleGroups::columns(16)}) {
    const auto error = [&](int rounds) {
      const TwoPlanes p = two_planes(context(), w, out, in, groups, rounds);
      std::vector<float> sum = dequantise(p.first);
      const std::vector<float> second = dequantise(p.second);
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += second[i];
      for (const float s : p.first.scales) EXPECT_GE(s, 0);
      for (const float s : p.second.scales) EXPECT_GE(s, 0);
      return squared_error(w, sum);
    };
    const double one = squared_error(w, dequantise(least_squares(context(), w, out, in, groups)));
    double last = error(0);
    EXPECT_LT(last, 0.5 * one);
    for (const int rounds : {1, 2, 3, 5, 10, 50}) {
      const double next = error(rounds);
      EXPECT_LE(next, last * (1 + 1e-6));
      last = next;
    }
    EXPECT_EQ(error(50), error(1000));  // it came to an end
  }
}

TEST(TwoPlanes, ExactWhereTheWeightsAreTwoPlanes) {
  Rng rng(5);
  std::vector<float> w(200);
  for (float& v : w)
    v = 0.75f * static_cast<float>(static_cast<int>(rng.below(3)) - 1) +
        0.25f * static_cast<float>(static_cast<int>(rng.below(3)) - 1);
  const TwoPlanes p = two_planes(context(), w, 2, 100, ScaleGroups::tensor());
  const std::vector<float> a = dequantise(p.first), b = dequantise(p.second);
  for (std::size_t i = 0; i < w.size(); ++i) EXPECT_NEAR(a[i] + b[i], w[i], 1e-6);
}

TEST(HessianTest, IsTheSumOfProducts) {
  const std::int64_t in = 300, rows = 400;  // strips and blocks with rests
  const std::vector<float> x = random_inputs(rows, in, 1);
  Hessian h(in);
  h.add(context(), x);
  EXPECT_EQ(h.n_rows(), rows);
  for (const auto& [i, j] : std::vector<std::pair<std::int64_t, std::int64_t>>{
           {0, 0}, {0, 299}, {299, 0}, {255, 256}, {298, 299}, {17, 17}}) {
    double sum = 0, sizes = 0;
    for (std::int64_t r = 0; r < rows; ++r) {
      const double p = static_cast<double>(x[static_cast<std::size_t>(r * in + i)]) *
                       static_cast<double>(x[static_cast<std::size_t>(r * in + j)]);
      sum += p;
      sizes += std::abs(p);
    }
    EXPECT_NEAR(h.values()[static_cast<std::size_t>(i * in + j)], sum, 128 * 0x1p-24 * sizes);
  }
  for (const std::size_t threads : {1u, 3u}) {
    Hessian parts(in);
    const auto half = static_cast<std::size_t>(2 * Hessian::kBlockRows * in);
    parts.add(context(threads), std::span(x).first(half));
    parts.add(context(threads), std::span(x).subspan(half));
    EXPECT_TRUE(std::equal(h.values().begin(), h.values().end(), parts.values().begin()));
  }
}

TEST(HessianTest, RefusesWhatItCannotHold) {
  BITNET_EXPECT_ERROR(Hessian(0), ErrorCode::kInvalidArgument, "0 inputs");
  Hessian h(3);
  BITNET_EXPECT_ERROR(h.add(context(), std::vector<float>(4)), ErrorCode::kInvalidArgument, "4 activations");
  h.add(context(), std::vector<float>(3, 1.0f));
  BITNET_EXPECT_ERROR(h.add(context(), std::vector<float>{1, 2, 3, 4, kNan, 6}), ErrorCode::kInvalidArgument,
                      "row 2, column 1 is nan");
  EXPECT_EQ(h.n_rows(), 1);
  EXPECT_EQ(h.values()[0], 1.0);
}

TEST(OutputError, IsTheQuadraticForm) {
  const Layer l(4, 40, 100, 2);
  const std::vector<float> q = random_values(160, 9);
  double above = 0, below = 0;
  for (std::int64_t r = 0; r < l.out; ++r)
    for (std::int64_t i = 0; i < l.in; ++i)
      for (std::int64_t j = 0; j < l.in; ++j) {
        const auto at = [&](const std::vector<float>& m, std::int64_t c) {
          return static_cast<double>(m[static_cast<std::size_t>(r * l.in + c)]);
        };
        above += (at(l.w, i) - at(q, i)) * l.h(i, j) * (at(l.w, j) - at(q, j));
        below += at(l.w, i) * l.h(i, j) * at(l.w, j);
      }
  EXPECT_NEAR(l.error(q), above / below, 1e-4 * above / below);
  EXPECT_EQ(l.error(l.w), 0);
}

TEST(Refit, NoOtherScalesAreBetter) {
  const Layer l(6, 48, 200, 3);
  for (const ScaleGroups groups :
       {ScaleGroups::tensor(), ScaleGroups::row(), ScaleGroups{4, 0}, ScaleGroups::columns(16)}) {
    TernaryWeights t = least_squares(context(), l.w, l.out, l.in, groups);
    const double before = l.error(dequantise(t));
    refit_scales(context(), l.w, l.hessian, t);
    const double after = l.error(dequantise(t));
    EXPECT_LT(after, before);
    for (std::size_t i = 0; i < t.scales.size(); ++i) {
      for (const float factor : {0.97f, 1.03f}) {
        TernaryWeights other = t;
        other.scales[i] *= factor;
        EXPECT_GT(l.error(dequantise(other)), after);
      }
    }
    TernaryWeights again = t;  // one more changes nothing but roundings
    refit_scales(context(), l.w, l.hessian, again);
    for (std::size_t i = 0; i < t.scales.size(); ++i)
      EXPECT_NEAR(again.scales[i], t.scales[i], 1e-4 * t.scales[i]);
  }
}

TEST(Refit, GroupsWithoutAnEquationKeepTheirScale) {
  Layer l(2, 32, 50, 3);
  std::vector<float> x = random_inputs(50, 32, 4);
  for (std::size_t i = 0; i < x.size(); ++i)
    if (i % 32 >= 16) x[i] = 0;
  Hessian half(32);
  half.add(context(), x);
  TernaryWeights t = least_squares(context(), l.w, 2, 32, ScaleGroups::columns(16));
  std::fill(t.trits.begin(), t.trits.begin() + 16, std::int8_t{0});
  const std::vector<float> before = t.scales;
  refit_scales(context(), l.w, half, t);
  EXPECT_EQ(t.scales[0], before[0]);  // no trits
  EXPECT_EQ(t.scales[1], before[1]);  // no inputs
  EXPECT_NE(t.scales[2], before[2]);
  EXPECT_EQ(t.scales[3], before[3]);
  BITNET_EXPECT_ERROR(refit_scales(context(), l.w, Hessian(32), t), ErrorCode::kInvalidArgument,
                      "from 0 rows");
  BITNET_EXPECT_ERROR(refit_scales(context(), l.w, Hessian(31), t), ErrorCode::kInvalidArgument, "31 inputs");
}

TEST(Refit, RowsTogetherAreRowsAlone) {
  // So many groups that the systems are made for a part of the rows at a time.
  const Layer l(40, 512, 600, 4);
  TernaryWeights t = least_squares(context(), l.w, l.out, l.in, ScaleGroups::columns(16));
  const TernaryWeights before = t;
  refit_scales(context(), l.w, l.hessian, t);
  EXPECT_NE(t.scales, before.scales);
  for (std::int64_t r = 0; r < l.out; ++r) {
    TernaryWeights row = before;
    row.out = 1;
    row.trits = {before.trits.begin() + r * l.in, before.trits.begin() + (r + 1) * l.in};
    row.scales = {before.scales.begin() + r * 32, before.scales.begin() + (r + 1) * 32};
    refit_scales(context(), std::span(l.w).subspan(static_cast<std::size_t>(r * l.in), 512), l.hessian, row);
    ASSERT_TRUE(std::equal(row.scales.begin(), row.scales.end(), t.scales.begin() + r * 32)) << r;
  }
}

}  // namespace
}  // namespace bitnet::quant
