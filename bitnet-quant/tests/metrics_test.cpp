// The figures against hand-made cases.
#include "bitnet/quant/metrics.hpp"

#include <cmath>
#include <limits>

#include "bitnet/quant/post_training.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::quant {
namespace {

TernaryWeights small() {
  TernaryWeights t;
  t.out = 2;
  t.in = 4;
  t.trits = {1, 0, -1, 0, 0, 0, 1, 1};
  t.scales = {2.0f, 0.5f};
  t.rows_per_scale = 1;
  return t;
}
const std::vector<float> kWeights{3, 0, -2, 1, 0, 0, 0.5f, 0};

TEST(Metrics, OfATernaryMatrix) {
  const ExecutionContext context;
  const WeightMetrics m = measure(context, kWeights, small());
  EXPECT_EQ(m.weights, 8);
  EXPECT_DOUBLE_EQ(m.signal, 9 + 4 + 1 + 0.25);
  EXPECT_DOUBLE_EQ(m.noise, 1 + 0 + 1 + 0.25);
  EXPECT_DOUBLE_EQ(m.mse(), 2.25 / 8);
  EXPECT_DOUBLE_EQ(m.sqnr_db(), 10 * std::log10(14.25 / 2.25));
  EXPECT_DOUBLE_EQ(m.relative_error(), std::sqrt(2.25 / 14.25));
  EXPECT_DOUBLE_EQ(m.cosine(), (6 + 4 + 0.25) / std::sqrt(14.25 * (4 + 4 + 0.25 + 0.25)));
  EXPECT_DOUBLE_EQ(m.zero_fraction(), 0.5);
  EXPECT_DOUBLE_EQ(m.entropy(), 0.5 * 1 + 0.125 * 3 - 0.375 * std::log2(0.375));
  EXPECT_EQ(m.output_error(), 0);
}

TEST(Metrics, WithAHessianTheyAreTheOutputs) {
  const ExecutionContext context;
  Hessian hessian(4);
  hessian.add(context, std::vector<float>{1, 0, 0, 0, 0, 0, 1, 2});
  const WeightMetrics m = measure(context, kWeights, small(), &hessian);
  // Outputs of the two inputs: rows (3, 0) and (0, 0.5); of the errors (1, 2·1) and (0, −2·0.5).
  EXPECT_DOUBLE_EQ(m.output_signal, 9 + 0 + 0 + 0.25);
  EXPECT_DOUBLE_EQ(m.output_noise, 1 + 4 + 0 + 1);
  EXPECT_DOUBLE_EQ(m.output_error(), 6 / 9.25);
}

TEST(Metrics, SeveralAddUp) {
  const ExecutionContext context;
  WeightMetrics sum = measure(context, kWeights, small());
  sum.add(measure(context, kWeights, kWeights, 4));
  EXPECT_EQ(sum.weights, 16);
  EXPECT_DOUBLE_EQ(sum.noise, 2.25);
  EXPECT_DOUBLE_EQ(sum.signal, 28.5);
  EXPECT_DOUBLE_EQ(sum.zero_fraction(), 0.5);
}

TEST(Metrics, OfNothingLostAndOfZeros) {
  const ExecutionContext context;
  const WeightMetrics same = measure(context, kWeights, kWeights, 4);
  EXPECT_TRUE(std::isinf(same.sqnr_db()));
  EXPECT_DOUBLE_EQ(same.cosine(), 1);
  EXPECT_EQ(same.relative_error(), 0);
  const std::vector<float> zeros(8);
  const WeightMetrics none = measure(context, zeros, zeros, 4);
  EXPECT_EQ(none.cosine(), 1);
  EXPECT_EQ(none.relative_error(), 0);
  EXPECT_TRUE(std::isinf(measure(context, zeros, kWeights, 4).relative_error()));
  EXPECT_EQ(measure(context, kWeights, zeros, 4).cosine(), 0);
}

TEST(Metrics, WhatDoesNotFitIsRefused) {
  const ExecutionContext context;
  const std::vector<float> bad{1, 2, std::numeric_limits<float>::infinity(), 4};
  BITNET_EXPECT_ERROR(measure(context, bad, bad, 4), ErrorCode::kInvalidArgument, "weight 2 is inf");
  BITNET_EXPECT_ERROR(measure(context, bad, kWeights, 4), ErrorCode::kInvalidArgument, "4 weights and 8");
  const Hessian hessian(3);
  BITNET_EXPECT_ERROR(measure(context, kWeights, small(), &hessian), ErrorCode::kInvalidArgument,
                      "Hessian of 3 inputs");
}

}  // namespace
}  // namespace bitnet::quant
