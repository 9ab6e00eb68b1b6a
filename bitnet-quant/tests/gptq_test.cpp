// GPTQ against the textbook form of optimal brain quantisation, and methods that are cancelled.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <numeric>

#include "bitnet/quant/post_training.hpp"
#include "bitnet/testing/testing.hpp"
#include "post_training_support.hpp"

namespace bitnet::quant {
namespace {

using test::context;
using test::Layer;
using test::random_inputs;

TEST(Cancelling, EndsEveryMethod) {
  const Layer l(8, 64, 200, 4);
  std::atomic<bool> flag{true};
  TernaryWeights t = least_squares(context(), l.w, l.out, l.in, ScaleGroups::row()),
                 g = least_squares(context(), l.w, l.out, l.in, ScaleGroups::columns(32));
  const std::vector<float> scales = t.scales;
  const GptqFactor factor(l.hessian, 0.01, false);
  const auto ends = [&](auto&& work) {
    BITNET_EXPECT_ERROR(work(&flag), ErrorCode::kCancelled, "cancelled");
    flag = false;
    work(&flag);
    flag = true;
  };
  ends([&](CancelFlag f) { quadratic_form(context(), l.w, l.hessian, f); });
  ends([&](CancelFlag f) { GptqFactor(l.hessian, 0.01, false, f); });
  ends([&](CancelFlag f) { gptq(context(), l.w, l.out, l.in, l.hessian, factor, {}, f); });
  ends([&](CancelFlag f) { gptq(context(), l.w, l.out, l.in, l.hessian, {}, f); });
  ends([&](CancelFlag f) { two_planes(context(), l.w, l.out, l.in, ScaleGroups::row(), 50, f); });
  BITNET_EXPECT_ERROR(refit_scales(context(), l.w, l.hessian, t, &flag), ErrorCode::kCancelled, "cancelled");
  EXPECT_EQ(t.scales, scales);
  ends([&](CancelFlag f) { refit_scales(context(), l.w, l.hessian, t, f); });
  ends([&](CancelFlag f) { refit_scales(context(), l.w, l.hessian, g, f); });
}

/// Optimal brain quantisation in a fixed order, in double: the inverse of what is left of H is made anew by
/// eliminating each column (Frantar et al. 2022, equations 1 to 3).
std::vector<std::int8_t> textbook(const Layer& l, const std::vector<float>& row_scales, double damping) {
  const auto n = static_cast<std::size_t>(l.in);
  double mean = 0;
  for (std::int64_t i = 0; i < l.in; ++i) mean += l.h(i, i) / static_cast<double>(l.in);
  std::vector<std::vector<double>> h(n, std::vector<double>(2 * n));
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j)
      h[i][j] =
          l.h(static_cast<std::int64_t>(i), static_cast<std::int64_t>(j)) + (i == j ? damping * mean : 0);
    h[i][n + i] = 1;
  }
  for (std::size_t p = 0; p < n; ++p) {  // Gauss and Jordan
    const double pivot = h[p][p];
    for (double& v : h[p]) v /= pivot;
    for (std::size_t i = 0; i < n; ++i) {
      const double f = h[i][p];
      if (i == p || f == 0) continue;
      for (std::size_t j = 0; j < 2 * n; ++j) h[i][j] -= f * h[p][j];
    }
  }
  std::vector<std::vector<double>> inverse(n, std::vector<double>(n));
  for (std::size_t i = 0; i < n; ++i) std::copy(h[i].begin() + l.in, h[i].end(), inverse[i].begin());
  std::vector<double> w(l.w.begin(), l.w.end());
  std::vector<std::int8_t> trits(w.size());
  for (std::size_t p = 0; p < n; ++p) {
    const double d = inverse[p][p];
    for (std::size_t r = 0; r < static_cast<std::size_t>(l.out); ++r) {
      const double s = static_cast<double>(row_scales[r]), v = w[r * n + p];
      const double t = std::clamp(std::nearbyint(v / s), -1.0, 1.0);
      trits[r * n + p] = static_cast<std::int8_t>(t);
      for (std::size_t k = p; k < n; ++k) w[r * n + k] -= (v - s * t) / d * inverse[p][k];
    }
    const std::vector<double> row = inverse[p];
    for (std::size_t i = p; i < n; ++i)
      for (std::size_t j = p; j < n; ++j) inverse[i][j] -= row[i] * row[j] / d;
  }
  return trits;
}

TEST(Gptq, RoundsAsTheTextbookDoes) {
  for (const std::int64_t in : {std::int64_t{24}, std::int64_t{150}}) {  // one block, and two
    const Layer l(8, in, 4 * in, 5);
    const TernaryWeights start = least_squares(context(), l.w, l.out, l.in, ScaleGroups::row());
    GptqOptions options;
    options.groups = ScaleGroups::row();
    options.multipliers = {1.0};
    options.refit = false;
    const TernaryWeights got = gptq(context(), l.w, l.out, l.in, l.hessian, options);
    EXPECT_EQ(got.scales, start.scales);
    EXPECT_EQ(got.trits, textbook(l, start.scales, options.damping)) << in;
  }
}

TEST(Gptq, ActivationOrderIsTheTextbookOnOrderedColumns) {
  const Layer l(8, 150, 600, 5);
  GptqOptions options;
  options.groups = ScaleGroups::row();
  options.multipliers = {1.0};
  options.refit = false;
  options.activation_order = true;
  const TernaryWeights got = gptq(context(), l.w, l.out, l.in, l.hessian, options);
  std::vector<std::int64_t> order(static_cast<std::size_t>(l.in));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return l.h(a, a) > l.h(b, b); });
  EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
  const auto at = [&](std::int64_t r, std::int64_t c) {
    return static_cast<std::size_t>(r * l.in + order[static_cast<std::size_t>(c)]);
  };
  Layer ordered = l;
  std::vector<double> h(l.hessian.values().size());
  for (std::int64_t i = 0; i < l.in; ++i)
    for (std::int64_t j = 0; j < l.in; ++j)
      h[static_cast<std::size_t>(i * l.in + j)] =
          l.h(order[static_cast<std::size_t>(i)], order[static_cast<std::size_t>(j)]);
  ordered.hessian = Hessian(l.in, l.hessian.n_rows(), h);
  for (std::int64_t r = 0; r < l.out; ++r)
    for (std::int64_t c = 0; c < l.in; ++c) ordered.w[static_cast<std::size_t>(r * l.in + c)] = l.w[at(r, c)];
  const std::vector<std::int8_t> expected = textbook(ordered, got.scales, options.damping);
  for (std::int64_t r = 0; r < l.out; ++r)
    for (std::int64_t c = 0; c < l.in; ++c)
      ASSERT_EQ(got.trits[at(r, c)], expected[static_cast<std::size_t>(r * l.in + c)]) << r << ", " << c;
  options.activation_order = false;
  EXPECT_NE(gptq(context(), l.w, l.out, l.in, l.hessian, options).trits, got.trits);
}

TEST(Gptq, KeepsTheBestOfTheMultipliers) {
  const std::vector<double> multipliers = {0.7, 1.0, 1.3, 1.6, 2.5};
  for (const ScaleGroups groups : {ScaleGroups::tensor(), ScaleGroups::row(), ScaleGroups::columns(32)}) {
    const Layer l(16, 96, 400, 6);
    GptqOptions options;
    options.groups = groups;
    options.damping = 1e-6;  // so that the error by which they are compared is that of H
    options.refit = false;
    std::vector<TernaryWeights> alone;
    std::vector<double> errors;
    for (const double m : multipliers) {
      options.multipliers = {m};
      alone.push_back(gptq(context(), l.w, l.out, l.in, l.hessian, options));
      errors.push_back(l.error(dequantise(alone.back())));
    }
    const auto best =
        static_cast<std::size_t>(std::min_element(errors.begin(), errors.end()) - errors.begin());
    EXPECT_TRUE(best > 0 && best + 1 < multipliers.size());  // neither the first nor the last that is tried
    options.multipliers = multipliers;
    const TernaryWeights got = gptq(context(), l.w, l.out, l.in, l.hessian, options);
    EXPECT_EQ(got.trits, alone[best].trits);
    EXPECT_EQ(got.scales, alone[best].scales);
    std::reverse(options.multipliers.begin(), options.multipliers.end());
    EXPECT_EQ(gptq(context(), l.w, l.out, l.in, l.hessian, options).trits, got.trits);
  }
}

TEST(Gptq, TheFactorIsThatOfTheDampedInverse) {
  for (const std::int64_t in : {std::int64_t{7}, std::int64_t{64}, std::int64_t{150}}) {  // panels with rests
    const Layer l(1, in, 4 * in, 9);
    const GptqFactor factor(l.hessian, 0.01, false);
    double mean = 0;
    for (std::int64_t i = 0; i < in; ++i) mean += l.h(i, i) / static_cast<double>(in);
    const auto r = [&](std::int64_t i, std::int64_t j) {
      return static_cast<double>(factor.values()[static_cast<std::size_t>(i * in + j)]);
    };
    // RᵀR·(H + damping) is the identity, to the roundings of R times the size of the sums.
    for (std::int64_t i = 0; i < in; ++i)
      for (std::int64_t j = 0; j < in; ++j) {
        double sum = 0, size = 0;
        for (std::int64_t k = 0; k < in; ++k) {
          double inverse = 0;
          for (std::int64_t m = 0; m <= std::min(i, k); ++m) inverse += r(m, i) * r(m, k);
          const double term = inverse * (l.h(k, j) + (k == j ? 0.01 * mean : 0));
          sum += term;
          size += std::abs(term);
        }
        ASSERT_NEAR(sum, i == j ? 1 : 0, 1e-6 * (1 + size)) << i << ", " << j << " of " << in;
        if (j < i) {
          ASSERT_EQ(r(i, j), 0);
        }
      }
  }
}

TEST(Gptq, BeatsRoundingOnTheInputsItSaw) {
  const Layer l(32, 160, 1000, 6);
  for (const ScaleGroups groups : {ScaleGroups::tensor(), ScaleGroups::row(), ScaleGroups::columns(32)}) {
    GptqOptions options;
    options.groups = groups;
    TernaryWeights refitted = least_squares(context(), l.w, l.out, l.in, groups);
    const double rounded = l.error(dequantise(refitted));
    refit_scales(context(), l.w, l.hessian, refitted);
    const double fitted = l.error(dequantise(refitted));
    options.refit = false;
    const double compensated = l.error(dequantise(gptq(context(), l.w, l.out, l.in, l.hessian, options)));
    options.refit = true;
    const double both = l.error(dequantise(gptq(context(), l.w, l.out, l.in, l.hessian, options)));
    EXPECT_LT(fitted, rounded);
    EXPECT_LT(compensated, 0.7 * rounded);
    EXPECT_LE(both, compensated);
  }
}

TEST(Gptq, BitsDoNotDependOnThreadsAndOrderIsAnOption) {
  const Layer l(16, 144, 600, 7);
  GptqOptions options;
  options.groups = ScaleGroups::columns(48);
  const TernaryWeights first = gptq(context(1), l.w, l.out, l.in, l.hessian, options);
  for (const std::size_t threads : {2u, 3u}) {
    const TernaryWeights next = gptq(context(threads), l.w, l.out, l.in, l.hessian, options);
    EXPECT_EQ(first.trits, next.trits);
    EXPECT_EQ(first.scales, next.scales);
  }
  options.activation_order = true;
  const TernaryWeights ordered = gptq(context(), l.w, l.out, l.in, l.hessian, options);
  EXPECT_NE(ordered.trits, first.trits);
  EXPECT_LT(l.error(dequantise(ordered)),
            l.error(dequantise(least_squares(context(), l.w, l.out, l.in, options.groups))));
}

TEST(Gptq, FewInputsOnesThatAreZeroAndOddTensors) {
  // Fewer rows than inputs: damping makes the Hessian definite.
  const Layer few(4, 64, 10, 8);
  GptqOptions options;
  options.damping = 0;
  EXPECT_LT(few.error(dequantise(gptq(context(), few.w, 4, 64, few.hessian, options))), 1.0);
  // Columns that no input reaches are rounded by themselves.
  std::vector<float> x = random_inputs(100, 64, 3);
  for (std::size_t i = 0; i < x.size(); ++i)
    if (i % 64 == 5) x[i] = 0;
  Hessian gap(64);
  gap.add(context(), x);
  options.multipliers = {1.0};
  const TernaryWeights start = least_squares(context(), few.w, 4, 64, {}),
                       got = gptq(context(), few.w, 4, 64, gap, options);
  for (std::size_t r = 0; r < 4; ++r) EXPECT_EQ(got.trits[r * 64 + 5], start.trits[r * 64 + 5]);
  // Nothing to do, and nothing to go by.
  const TernaryWeights zeros = gptq(context(), std::vector<float>(256), 4, 64, gap);
  EXPECT_EQ(zeros.scales, std::vector<float>{0});
  EXPECT_TRUE(std::all_of(zeros.trits.begin(), zeros.trits.end(), [](auto t) { return t == 0; }));
  Hessian nothing(64);
  nothing.add(context(), std::vector<float>(128));
  EXPECT_EQ(gptq(context(), few.w, 4, 64, nothing, options).trits, start.trits);
  BITNET_EXPECT_ERROR(gptq(context(), few.w, 4, 64, Hessian(64)), ErrorCode::kInvalidArgument, "from 0 rows");
  BITNET_EXPECT_ERROR(gptq(context(), few.w, 8, 32, few.hessian), ErrorCode::kInvalidArgument,
                      "matrix [8, 32]");
  options.multipliers = {-1};
  BITNET_EXPECT_ERROR(gptq(context(), few.w, 4, 64, gap, options), ErrorCode::kInvalidArgument, "above 0");
}

}  // namespace
}  // namespace bitnet::quant
