// What holds for every method and any weights: rows may come in any order, a quantised layer computes what
// its dequantised weights say, what is bad is named, what is written is what is read.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "bitnet/core/rng.hpp"
#include "bitnet/quant/bit_linear.hpp"
#include "bitnet/quant/int8_linear.hpp"
#include "bitnet/quant/quantizer.hpp"
#include "bitnet/testing/testing.hpp"
#include "contexts.hpp"

namespace bitnet::quant {
namespace {

using test::context;

constexpr WeightMethod kMethods[] = {WeightMethod::kAbsmean,           WeightMethod::kLeastSquares,
                                     WeightMethod::kLeastSquaresRefit, WeightMethod::kGptq,
                                     WeightMethod::kTwoPlane,          WeightMethod::kInt8};
constexpr std::int64_t kOut = 24, kIn = 64;

std::vector<float> random_weights(std::uint64_t seed, std::int64_t out = kOut, std::int64_t in = kIn) {
  Rng rng(seed);
  std::vector<float> w(static_cast<std::size_t>(out * in));
  for (float& v : w) v = static_cast<float>(rng.normal());
  return w;
}

/// An input seen `rows` times, its columns alike.
InputCalibration random_input(std::int64_t rows, std::uint64_t seed, std::int64_t in = kIn) {
  Rng rng(seed);
  std::vector<float> x(static_cast<std::size_t>(rows * in));
  float last = 0;
  for (float& v : x) v = last = 0.7f * last + static_cast<float>(rng.normal());
  InputCalibration input{{}, Hessian(in), {}};
  input.hessian.add(context(), x);
  input.statistics.add(context(), x, in);
  return input;
}

LinearPlan plan_of(WeightMethod method, ScaleUnit scales) {
  LinearPlan plan;
  plan.method = method;
  plan.scales = method == WeightMethod::kAbsmean ? ScaleUnit::kTensor : scales;
  return plan;
}

TEST(QuantiserProperties, RowsMayComeInAnyOrder) {
  const std::vector<float> w = random_weights(1);
  std::vector<std::size_t> order(kOut);
  std::iota(order.begin(), order.end(), 0);
  std::rotate(order.begin(), order.begin() + 7, order.end());
  std::swap(order[3], order[20]);
  std::vector<float> moved(w.size());
  for (std::size_t r = 0; r < order.size(); ++r)
    std::copy_n(w.begin() + static_cast<std::ptrdiff_t>(order[r] * kIn), kIn,
                moved.begin() + static_cast<std::ptrdiff_t>(r * kIn));
  const InputCalibration input = random_input(300, 2);
  for (const WeightMethod method : kMethods) {
    for (const ScaleUnit scales : {ScaleUnit::kRow, ScaleUnit::kGroup32, ScaleUnit::kTensor}) {
      SCOPED_TRACE(std::string(to_string(method)) + ", " + std::string(to_string(scales)));
      const LinearPlan plan = plan_of(method, scales);
      const std::vector<float> a =
          quantize_linear(context(), {}, w, kOut, kIn, plan, {}, &input).tensor.to_f32();
      const std::vector<float> b =
          quantize_linear(context(), {}, moved, kOut, kIn, plan, {}, &input).tensor.to_f32();
      // A scale that all rows share is a sum over them in their order.
      const float slack = plan.scales == ScaleUnit::kTensor && method != WeightMethod::kInt8 ? 1e-5f : 0.0f;
      for (std::size_t r = 0; r < order.size(); ++r)
        for (std::size_t c = 0; c < kIn; ++c)
          ASSERT_NEAR(b[r * kIn + c], a[order[r] * kIn + c], slack) << r << ", " << c;
    }
  }
}

TEST(QuantiserProperties, ABetterMethodNeverLosesMore) {
  const InputCalibration input = random_input(400, 4);
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    const std::vector<float> w = random_weights(10 + seed);
    const auto metrics = [&](WeightMethod method, ScaleUnit scales) {
      return quantize_linear(context(), {}, w, kOut, kIn, plan_of(method, scales), {}, &input).report.metrics;
    };
    for (const ScaleUnit scales : {ScaleUnit::kTensor, ScaleUnit::kRow, ScaleUnit::kGroup32}) {
      const WeightMetrics ls = metrics(WeightMethod::kLeastSquares, scales),
                          refit = metrics(WeightMethod::kLeastSquaresRefit, scales),
                          gptq = metrics(WeightMethod::kGptq, scales),
                          two = metrics(WeightMethod::kTwoPlane, scales);
      EXPECT_LE(ls.noise, metrics(WeightMethod::kAbsmean, scales).noise);
      EXPECT_LE(refit.output_noise, ls.output_noise * (1 + 1e-6));
      EXPECT_LT(gptq.output_noise, refit.output_noise);
      EXPECT_LT(two.noise, ls.noise);
    }
    // More scales are never worse.
    EXPECT_LE(metrics(WeightMethod::kLeastSquares, ScaleUnit::kRow).noise,
              metrics(WeightMethod::kLeastSquares, ScaleUnit::kTensor).noise);
    EXPECT_LE(metrics(WeightMethod::kLeastSquares, ScaleUnit::kGroup32).noise,
              metrics(WeightMethod::kLeastSquares, ScaleUnit::kRow).noise);
  }
}

/// Σ_k w·x and Σ_k |w| of each row of w [out, in], for each row of x.
struct Product {
  std::vector<double> y, sizes;  // [rows, out]
};
Product product(const std::vector<float>& w, const std::vector<float>& x, std::int64_t rows) {
  Product p;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t o = 0; o < kOut; ++o) {
      double sum = 0, size = 0;
      for (std::int64_t k = 0; k < kIn; ++k) {
        const double v = static_cast<double>(w[static_cast<std::size_t>(o * kIn + k)]);
        sum += v * static_cast<double>(x[static_cast<std::size_t>(r * kIn + k)]);
        size += std::fabs(v);
      }
      p.y.push_back(sum);
      p.sizes.push_back(size);
    }
  return p;
}

/// Adds the products of a plane, its groups of columns one after the other, to y.
void add_plane(const TernaryWeights& t, const QuantizedRows& q, std::vector<float>& y) {
  const std::int64_t width = t.cols_per_scale > 0 ? t.cols_per_scale : t.in, groups = t.in / width;
  for (std::int64_t g = 0; g < groups; ++g) {
    TernaryWeights part{.out = t.out, .in = width, .trits = {}, .scales = {}};
    part.rows_per_scale = t.cols_per_scale > 0 ? 1 : t.rows_per_scale;
    QuantizedRows x;
    x.rows = q.rows;
    x.cols = width;
    x.stride = quantized_stride(width);
    x.values.resize(static_cast<std::size_t>(x.rows * x.stride));
    x.inv_scales = q.inv_scales;
    for (std::int64_t r = 0; r < q.rows; ++r) {
      const auto from = q.values.begin() + r * q.stride + g * width;
      std::copy(from, from + width, x.values.begin() + r * x.stride);
      x.sums.push_back(std::accumulate(from, from + width, std::int32_t{0}));
    }
    for (std::int64_t r = 0; r < t.out; ++r)
      part.trits.insert(part.trits.end(), t.trits.begin() + r * t.in + g * width,
                        t.trits.begin() + r * t.in + (g + 1) * width);
    for (std::size_t i = static_cast<std::size_t>(g); i < t.scales.size();
         i += static_cast<std::size_t>(groups))
      part.scales.push_back(t.scales[i]);
    std::vector<float> more(y.size());
    BitLinear(context(), part).forward(context(), x, more);
    for (std::size_t i = 0; i < y.size(); ++i) y[i] += more[i];
  }
}

/// A layer as it runs: the stored integers on quantised rows.
std::vector<float> run_layer(const LogicalTensor& t, const QuantizedRows& q) {
  std::vector<float> y(static_cast<std::size_t>(q.rows * kOut));
  if (t.int8) {
    const Int8Linear linear(context(), kOut, kIn, t.to_f32());
    for (std::int64_t r = 0; r < kOut; ++r) {  // it is what is stored that runs
      const auto from = t.int8->values.begin() + r * kIn;
      EXPECT_EQ(linear.values(r), std::vector<std::int8_t>(from, from + kIn)) << r;
    }
    linear.forward(context(), q, y);
  } else if (t.planes) {
    add_plane(t.planes->first, q, y);
    add_plane(t.planes->second, q, y);
  } else {
    add_plane(t.weights, q, y);
  }
  return y;
}

/// The next of −1, 0, 1, in place of a weight.
void change_one_weight(LogicalTensor& t, std::size_t at) {
  const auto next = [](std::int8_t v) { return static_cast<std::int8_t>(v == 1 ? -1 : v + 1); };
  if (t.int8)
    t.int8->values[at] = static_cast<std::int8_t>(t.int8->values[at] + (t.int8->values[at] > 0 ? -1 : 1));
  else if (t.planes)
    t.planes->second.trits[at] = next(t.planes->second.trits[at]);
  else
    t.weights.trits[at] = next(t.weights.trits[at]);
}

TEST(QuantiserProperties, AQuantisedLayerComputesWhatItsDequantisedWeightsSay) {
  constexpr std::int64_t kRows = 9;
  const InputCalibration input = random_input(300, 5);
  const std::vector<float> w = random_weights(6), x = random_weights(7, kRows, kIn);
  QuantizedRows q;
  quantize_rows(context(), x, kRows, kIn, q);
  std::vector<float> rounded(x.size());  // the rows that the integers stand for
  for (std::size_t r = 0; r < kRows; ++r)
    for (std::size_t c = 0; c < kIn; ++c)
      rounded[r * kIn + c] =
          static_cast<float>(q.values[r * static_cast<std::size_t>(q.stride) + c]) * q.inv_scales[r];
  for (const WeightMethod method : kMethods) {
    for (const ScaleUnit scales : {ScaleUnit::kTensor, ScaleUnit::kRow, ScaleUnit::kGroup32}) {
      SCOPED_TRACE(std::string(to_string(method)) + ", " + std::string(to_string(scales)));
      const LogicalTensor t =
          quantize_linear(context(), {}, w, kOut, kIn, plan_of(method, scales), {}, &input).tensor;
      Product sizes = product(t.to_f32(), rounded, kRows);
      if (t.planes) {  // those of both add up, which their sum's may not show where signs differ
        sizes.sizes = product(dequantise(t.planes->first), rounded, kRows).sizes;
        const Product second = product(dequantise(t.planes->second), rounded, kRows);
        for (std::size_t i = 0; i < sizes.sizes.size(); ++i) sizes.sizes[i] += second.sizes[i];
      }
      // A sum of integers is exact. Rounded are: it, its product with two scales and theirs, for each of two
      // planes of two groups, three additions of those; and here a row's values: 2^-24 each of at most
      // Σ|w| · 127 / a. Those rows differ from x by at most 1 / (2a) a value.
      const auto largest_miss = [&](const LogicalTensor& as, const std::vector<float>& y,
                                    const std::vector<float>& of, double slack) {
        const Product exact = product(as.to_f32(), of, kRows);
        double most = 0;  // in units of the bound
        for (std::size_t i = 0; i < y.size(); ++i) {
          const double unit = static_cast<double>(q.inv_scales[i / kOut]);  // 1 / a
          most = std::max(most, std::fabs(static_cast<double>(y[i]) - exact.y[i]) /
                                    (sizes.sizes[i] * unit * (slack + 8 * 0x1p-24 * 127)));
        }
        return most;
      };
      const std::vector<float> y = run_layer(t, q);
      EXPECT_LE(largest_miss(t, y, rounded, 0), 1);
      EXPECT_LE(largest_miss(t, y, x, 0.5), 1);
      // The bound is no formality: one weight that is another is beyond it.
      for (const std::size_t at : {std::size_t{0}, std::size_t{3 * kIn + 40}, std::size_t{kOut * kIn - 1}}) {
        LogicalTensor other = t;
        change_one_weight(other, at);
        EXPECT_GT(largest_miss(t, run_layer(other, q), rounded, 0), 1) << at;
      }
    }
  }
}

TEST(QuantiserProperties, WeightsThatAreNotFiniteAreNamed) {
  const InputCalibration input = random_input(300, 8);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()})
    for (const WeightMethod method : kMethods) {
      std::vector<float> w = random_weights(9);
      w[2 * kIn + 5] = bad;
      BITNET_EXPECT_ERROR(
          quantize_linear(context(), {}, w, kOut, kIn, plan_of(method, ScaleUnit::kRow), {}, &input),
          ErrorCode::kInvalidArgument, "the weight in row 2, column 5 is ");
    }
}

TEST(QuantiserProperties, ZerosAndConstantsAreKeptAndWarnedOf) {
  const InputCalibration input = random_input(300, 8);
  for (const WeightMethod method : kMethods) {
    SCOPED_TRACE(to_string(method));
    const std::vector<float> zeros(kOut * kIn, 0.0f), same(kOut * kIn, -0.25f);
    const auto quantised = [&](const std::vector<float>& w) {
      return quantize_linear(context(), {}, w, kOut, kIn, plan_of(method, ScaleUnit::kRow), {}, &input);
    };
    const QuantizedLinear nothing = quantised(zeros), one = quantised(same);
    EXPECT_EQ(nothing.tensor.to_f32(), zeros);
    ASSERT_FALSE(nothing.report.warnings.empty());
    EXPECT_EQ(nothing.report.warnings[0], "every weight is 0: the linear has no effect");
    ASSERT_FALSE(one.report.warnings.empty());
    EXPECT_EQ(one.report.warnings[0], "every weight is -0.25: it cannot have been trained");
    EXPECT_LT(one.report.metrics.relative_error(), 0.01);
    EXPECT_EQ(nothing.report.metrics.relative_error(), 0);
  }
}

/// `distinct` rows, one after the other again and again; 0: zeros.
InputCalibration repeated_input(std::int64_t rows, std::int64_t distinct, std::uint64_t seed) {
  std::vector<float> x(static_cast<std::size_t>(rows * kIn));
  const std::vector<float> once = random_weights(seed, std::max<std::int64_t>(distinct, 1));
  for (std::size_t i = 0; distinct > 0 && i < x.size(); ++i) x[i] = once[i % once.size()];
  InputCalibration input{{}, Hessian(kIn), {}};
  input.hessian.add(context(), x);
  input.statistics.add(context(), x, kIn);
  return input;
}

TEST(QuantiserProperties, TheRankIsThatOfTheRows) {
  for (const std::int64_t distinct : {0, 1, 20, 63, 64, 400}) {
    const HessianRank r = rank_of(repeated_input(400, distinct, 3).hessian);
    EXPECT_EQ(r.columns, kIn);
    EXPECT_EQ(r.rank, std::min(distinct, kIn));
    EXPECT_EQ(r.unseen, distinct == 0 ? kIn : 0);
  }
  // Columns that are 0, and columns that are copies, however large.
  std::vector<float> x = random_weights(4, 500);
  for (std::size_t i = 0; i < x.size(); i += kIn) {
    x[i + 3] = x[i + 9] = 0;
    x[i + 20] = 1e4f * x[i + 1];
  }
  Hessian h(kIn);
  h.add(context(), x);
  EXPECT_EQ(rank_of(h).unseen, 2);
  EXPECT_EQ(rank_of(h).rank, kIn - 3);
  // More columns than are looked at.
  const std::int64_t wide = 2 * HessianRank::kMostColumns;
  Hessian few(wide);
  few.add(context(), random_weights(5, 30, wide));
  EXPECT_EQ(rank_of(few).columns, HessianRank::kMostColumns);
  EXPECT_EQ(rank_of(few).rank, 30);
}

TEST(QuantiserProperties, TextsThatRepeatThemselvesAreWarnedOf) {
  const std::vector<float> w = random_weights(11);
  for (const WeightMethod method : {WeightMethod::kLeastSquaresRefit, WeightMethod::kGptq}) {
    const auto warnings = [&](const InputCalibration& input) {
      return quantize_linear(context(), {}, w, kOut, kIn, plan_of(method, ScaleUnit::kRow), {}, &input)
          .report.warnings;  // with the default damping
    };
    const std::string name(to_string(method));
    EXPECT_EQ(
        warnings(repeated_input(2000, 20, 3)),
        std::vector<std::string>{"the inputs' second moments have rank 20 of 64: the 2000 tokens of the "
                                 "calibration text are too much alike for " +
                                 name + "; expected a text that says more than one thing"});
    EXPECT_EQ(
        warnings(repeated_input(100, 0, 3)),
        std::vector<std::string>{"the inputs are 0 for each of the 100 tokens of the calibration text: " +
                                 name + " has nothing to go by"});
    EXPECT_TRUE(warnings(random_input(300, 2)).empty());
    EXPECT_TRUE(warnings(repeated_input(2000, 60, 3)).empty());
  }
}

TEST(QuantiserProperties, LittleDataAndHessiansWithoutFullRank) {
  const std::vector<float> w = random_weights(11);
  const InputCalibration little = random_input(20, 12);
  for (const WeightMethod method : {WeightMethod::kLeastSquaresRefit, WeightMethod::kGptq}) {
    const QuantizedLinear q =
        quantize_linear(context(), {}, w, kOut, kIn, plan_of(method, ScaleUnit::kRow), {}, &little);
    ASSERT_FALSE(q.report.warnings.empty());
    EXPECT_EQ(q.report.warnings[0],
              "calibrated on 20 tokens for 64 inputs, whose second moments they do not "
              "determine: at least 64 are needed for " +
                  std::string(to_string(method)) + ", better 256");
    for (const float v : q.tensor.to_f32()) ASSERT_TRUE(std::isfinite(v));
  }
  // Without damping it has no full rank: as much is added as it takes, and said.
  QuantConfig config;
  config.gptq.damping = 0;
  const QuantizedLinear damped = quantize_linear(
      context(), {}, w, kOut, kIn, plan_of(WeightMethod::kGptq, ScaleUnit::kRow), config, &little);
  EXPECT_GT(damped.report.damping, 0);
  ASSERT_EQ(damped.report.warnings.size(), 2u);
  EXPECT_TRUE(damped.report.warnings[1].starts_with("the inputs' second moments have no full rank: damping"));
  // No input at all: nothing can be fitted to it.
  const InputCalibration none{{}, Hessian(kIn), {}};
  BITNET_EXPECT_ERROR(
      quantize_linear(context(), {}, w, kOut, kIn, plan_of(WeightMethod::kGptq, ScaleUnit::kRow), {}, &none),
      ErrorCode::kInvalidArgument, "");
  for (const WeightMethod method : {WeightMethod::kLeastSquaresRefit, WeightMethod::kGptq})
    BITNET_EXPECT_ERROR(quantize_linear(context(), {}, w, kOut, kIn, plan_of(method, ScaleUnit::kRow), {}),
                        ErrorCode::kInvalidArgument, "needs calibration data");
}

}  // namespace
}  // namespace bitnet::quant
