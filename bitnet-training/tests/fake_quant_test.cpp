// Straight-through quantisers against the formulas, written out in double beside them, and against
// bitnet-quant's definitions bit for bit.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "bitnet/quant/quantize.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/fake_quant.hpp"
#include "double_ops.hpp"

namespace bitnet::training {
namespace {

using reference::Matrix;

struct Random {
  Rng rng{42};
  std::vector<float> values(std::int64_t n, double deviation) {
    std::vector<float> v(static_cast<std::size_t>(n));
    for (float& x : v) x = static_cast<float>(rng.normal() * deviation);
    return v;
  }
};

TEST(TernaryCache, IsAbsmeanToTheBit) {
  const ExecutionContext context;
  Random random;
  for (const auto& [out, in] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {3, 5}, {16, 48}, {33, 70}}) {
    const std::vector<float> w = random.values(out * in, 0.03);
    TernaryCache cache(context, out, in);
    cache.update(context, w);
    const quant::TernaryWeights expected = quant::absmean(w, out, in);
    EXPECT_EQ(cache.scale(), invertible_scale(expected.scales.at(0)));
    std::int64_t zeros = 0;
    std::vector<float> effective(w.size());
    cache.effective(context, {}, effective);
    for (std::size_t i = 0; i < w.size(); ++i) {
      ASSERT_EQ(cache.trits()[i], expected.trits[i]) << i;
      EXPECT_EQ(effective[i], static_cast<float>(cache.trits()[i]) * cache.scale());
      zeros += expected.trits[i] == 0;
    }
    EXPECT_EQ(cache.zeros(), zeros);
    EXPECT_EQ(cache.flips(), 0);
  }
}

TEST(InvertibleScale, EveryMantissaSurvivesTwoInversionsWithinOneUlp) {
  int moved = 0;
  for (const float first : {1.0f / 128, 1.0f})
    for (std::uint32_t i = 0; i < (1u << 23); i += 3) {
      const float m = first * (1.0f + static_cast<float>(i) / static_cast<float>(1u << 23));
      const float s = invertible_scale(m);
      const volatile float inverse = 1.0f / s;
      ASSERT_EQ(1.0f / inverse, s) << m;
      ASSERT_LE(std::abs(s - m), std::nextafter(m, 2 * m) - m) << m;
      moved += s != m;
    }
  EXPECT_GT(moved, 100000);  // it is not the identity
}

TEST(TernaryCache, CountsFlips) {
  const ExecutionContext context;
  std::vector<float> w(40, 1.0f);
  TernaryCache cache(context, 2, 20);
  cache.update(context, w);
  w[0] = -1.0f;
  w[19] = 0.0f;
  w[39] = -1.0f;
  cache.update(context, w);
  EXPECT_EQ(cache.flips(), 3);
  EXPECT_EQ(cache.zeros(), 1);
  cache.update(context, w);
  EXPECT_EQ(cache.flips(), 0);
}

TEST(TernaryCache, WeightsThatAreNotFiniteAreAnError) {
  const ExecutionContext context;
  TernaryCache cache(context, 1, 2);
  BITNET_EXPECT_ERROR(cache.update(context, std::vector<float>{1.0f, INFINITY}), ErrorCode::kInvalidArgument,
                      "finite");
  BITNET_EXPECT_ERROR(cache.update(context, std::vector<float>{1.0f}), ErrorCode::kInvalidArgument, "size");
}

TEST(QuantizeActivations, IsAbsmaxToTheBit) {
  const ExecutionContext context;
  Tape tape(context);
  Random random;
  for (const std::int64_t cols : {1, 7, 16, 45}) {
    Parameter x(context, "x", 5, cols, false);
    const std::vector<float> values = random.values(5 * cols, 3.0);
    std::copy(values.begin(), values.end(), x.value().begin());
    const auto n = static_cast<std::size_t>(cols);
    std::fill_n(x.value().begin(), n, 0.0f);  // a row of zeros: the floor of 1e-5
    const QuantizedVariable q = quantize_activations(tape, x.variable());
    for (std::size_t r = 0; r < 5; ++r) {
      std::vector<std::int8_t> expected(n);
      const float a =
          quant::quantize_row(context, std::span<const float>(x.value()).subspan(r * n, n), expected);
      const std::span row(q.q.values + static_cast<std::int64_t>(r) * q.q.stride,
                          static_cast<std::size_t>(q.q.stride));
      EXPECT_EQ(q.q.inv_scales[r], 1.0f / a);
      EXPECT_EQ(q.q.sums[r], std::accumulate(expected.begin(), expected.end(), 0));
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), row.begin()));
      EXPECT_TRUE(std::all_of(row.begin() + cols, row.end(), [](std::int8_t v) { return v == 0; }));
    }
  }
}

TEST(QuantizeActivations, NotANumberStaysOne) {
  const ExecutionContext context;
  Tape tape(context);
  Random random;
  for (const std::size_t at : {0u, 5u, 16u, 44u}) {  // in whole vectors and in the tail
    Parameter x(context, "x", 2, 45, false);
    const std::vector<float> values = random.values(90, 3.0);
    std::copy(values.begin(), values.end(), x.value().begin());
    x.value()[at] = std::nanf("");
    const QuantizedVariable q = quantize_activations(tape, x.variable());
    EXPECT_TRUE(std::isnan(q.q.inv_scales[0])) << at;
    EXPECT_EQ(q.q.sums[0], 0);
    EXPECT_TRUE(std::isfinite(q.q.inv_scales[1]));
  }
}

TEST(QuantizeActivations, HalvesGoToEven) {
  const ExecutionContext context;
  Tape tape(context);
  Parameter x(context, "x", 1, 6, false);
  const float row[] = {127.0f, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f};  // a = 1
  std::copy(std::begin(row), std::end(row), x.value().begin());
  const QuantizedVariable q = quantize_activations(tape, x.variable());
  EXPECT_THAT(std::span(q.q.values, 6), ::testing::ElementsAre(127, 0, 2, 2, 0, -2));
}

/// dX = dY·w_q and dW = dYᵀ·x_q with the quantised values, in double from the formulas.
TEST(BitLinear, FollowsTheStraightThroughFormulas) {
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  for (const auto& [n, in, out] : {std::array<std::int64_t, 3>{1, 4, 3}, {9, 33, 20}, {20, 64, 65}}) {
    Rng rng(static_cast<std::uint64_t>(n));
    const Matrix x = reference::random(rng, n, in, 2.0), w = reference::random(rng, out, in, 0.05);
    Matrix xq = x, wq = w, x_integers = x;
    for (std::int64_t r = 0; r < n; ++r) {
      double largest = 1e-5;
      for (std::int64_t c = 0; c < in; ++c) largest = std::max(largest, std::abs(x.at(r, c)));
      const float a = 127.0f / static_cast<float>(largest);
      for (std::int64_t c = 0; c < in; ++c) {
        x_integers.at(r, c) = std::nearbyint(static_cast<float>(x.at(r, c)) * a);
        xq.at(r, c) = x_integers.at(r, c) / static_cast<double>(a);
      }
    }
    double sum = 0;
    for (const double v : w.v) sum += std::abs(v);
    const auto scale = static_cast<float>(sum / static_cast<double>(w.v.size()));
    for (std::size_t i = 0; i < w.v.size(); ++i)
      wq.v[i] = std::clamp(std::nearbyint(static_cast<float>(w.v[i]) * (1.0f / scale)), -1.0f, 1.0f) *
                static_cast<double>(scale);

    Tape tape(context);
    Parameter px(context, "x", n, in, false), pw(context, "w", out, in, true);
    reference::fill(px, x);
    reference::fill(pw, w);
    TernaryCache cache(context, out, in);
    cache.update(context, pw.value());
    for (int pass = 1; pass <= 2; ++pass) {
      const Variable y = bit_linear(tape, quantize_activations(tape, px.variable()), pw.variable(), cache);
      EXPECT_LT(reference::relative_error(y.value(), reference::linear(xq, wq).v), 2e-6);
      tape.backward(reference::weighted_sum(tape, y));
      tape.reset();
      std::vector<double> dx(x.v.size()), dw(w.v.size());
      for (std::int64_t r = 0; r < n; ++r)
        for (std::int64_t o = 0; o < out; ++o) {
          const double dy = reference::coefficient(static_cast<std::size_t>(r * out + o)) * pass;
          for (std::int64_t i = 0; i < in; ++i) {
            dx[static_cast<std::size_t>(r * in + i)] += dy * wq.at(o, i);
            dw[static_cast<std::size_t>(o * in + i)] += dy * xq.at(r, i);
          }
        }
      EXPECT_LT(reference::relative_error(px.grad(), dx), 1e-5) << "pass " << pass;
      EXPECT_LT(reference::relative_error(pw.grad(), dw), 1e-5) << "pass " << pass;
    }
  }
}

/// Sums of products by plain loops, each scaled once; with ragged tiles, and again after new weights.
TEST(BitLinear, ProductsAreThoseOfIntegersToTheBit) {
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  for (const ScaleGranularity granularity : {ScaleGranularity::kTensor, ScaleGranularity::kRow})
    for (const auto& [n, in, out] : {std::array<std::int64_t, 3>{1, 1, 1}, {3, 300, 6}, {40, 77, 53}}) {
      QuantizerOptions options;
      options.granularity = granularity;
      Random random;
      TernaryCache cache(context, out, in, options);
      Parameter x(context, "x", n, in, false), w(context, "w", out, in, true);
      const std::vector<float> rows = random.values(n * in, 2.0);
      std::copy(rows.begin(), rows.end(), x.value().begin());
      for (int pass = 0; pass < 2; ++pass) {
        const std::vector<float> latent = random.values(out * in, 0.05);
        std::copy(latent.begin(), latent.end(), w.value().begin());
        cache.update(context, w.value());
        Tape tape(context);
        const QuantizedVariable q = quantize_activations(tape, x.variable());
        const auto y = bit_linear(tape, q, w.variable(), cache).value();
        for (std::int64_t r = 0; r < n; ++r)
          for (std::int64_t o = 0; o < out; ++o) {
            std::int64_t sum = 0;
            for (std::int64_t i = 0; i < in; ++i)
              sum += std::int64_t{q.q.values[r * q.q.stride + i]} *
                     cache.trits()[static_cast<std::size_t>(o * in + i)];
            const float scale = cache.scales()[granularity == ScaleGranularity::kRow ? o : 0];
            ASSERT_EQ(y[static_cast<std::size_t>(r * out + o)],
                      static_cast<float>(sum) * (scale * q.q.inv_scales[r]))
                << r << " " << o << " pass " << pass;
          }
      }
    }
}

/// Two layers that share one quantised input: their gradients add up in the rows.
TEST(BitLinear, SharedInputCollectsBothGradients) {
  const ExecutionContext context;
  Rng rng(5);
  Tape tape(context);
  Parameter x(context, "x", 3, 8, false), w(context, "w", 4, 8, true);
  reference::fill(x, reference::random(rng, 3, 8));
  reference::fill(w, reference::random(rng, 4, 8));
  TernaryCache cache(context, 4, 8);
  cache.update(context, w.value());
  const auto run = [&](bool twice) {
    x.zero_grad();
    const QuantizedVariable q = quantize_activations(tape, x.variable());
    Variable y = bit_linear(tape, q, w.variable(), cache);
    if (twice) y = add(tape, y, bit_linear(tape, q, w.variable(), cache));
    tape.backward(reference::weighted_sum(tape, y));
    tape.reset();
    return std::vector<float>(x.grad().begin(), x.grad().end());
  };
  const std::vector<float> once = run(false), both = run(true);
  // Sums of four and of eight products: a few roundings apart.
  std::vector<double> doubled;
  for (const float g : once) doubled.push_back(2.0 * g);
  EXPECT_LT(reference::relative_error(both, doubled), 1e-6);
}

}  // namespace
}  // namespace bitnet::training
