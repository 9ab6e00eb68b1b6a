// Losses: values in double, gradients against central differences, and two losses of the same logits.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "bitnet/testing/testing.hpp"
#include "bitnet/training/losses.hpp"
#include "gradient_check.hpp"

namespace bitnet::training {
namespace {

using namespace reference;

TEST(Gradient, CrossEntropy) {
  Rng rng(9);
  Matrix x = random(rng, 6, 11), w = random(rng, 23, 11);
  const std::vector<std::int32_t> targets = {0, 22, -1, 5, 5, 9};
  const double scale = 0.25;
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  Tape tape(context);
  Parameter px(context, "x", 6, 11, false), pw(context, "w", 23, 11, false);
  fill(px, x);
  fill(pw, w);
  std::vector<float> rows(6);
  const Variable loss = cross_entropy(tape, linear(tape, px.variable(), pw.variable()), targets,
                                      static_cast<float>(scale), rows);
  const auto value = [&] { return reference::cross_entropy(reference::linear(x, w), targets, scale); };
  EXPECT_NEAR(loss.value()[0], value(), 1e-5 * value());
  EXPECT_EQ(rows[2], 0.0f);
  tape.backward(loss);
  EXPECT_LT(relative_error(px.grad(), central_differences(x, value)), kTolerance);
  EXPECT_LT(relative_error(pw.grad(), central_differences(w, value)), kTolerance);
}

TEST(Gradient, CrossEntropyPassesItsOwnGradientOn) {
  Rng rng(10);
  Matrix x = random(rng, 3, 4);
  const std::vector<std::int32_t> targets = {1, 2, 3};
  const ExecutionContext context;
  Tape tape(context);
  Parameter p(context, "x", 3, 4, false);
  fill(p, x);
  Parameter identity(context, "i", 4, 4, false);
  for (std::size_t i = 0; i < 4; ++i) identity.value()[i * 4 + i] = 1.0f;
  const Variable once = cross_entropy(tape, linear(tape, p.variable(), identity.variable()), targets, 1.0f);
  Parameter three(context, "three", 1, 1, false);
  three.value()[0] = 3.0f;
  tape.backward(linear(tape, once, three.variable()));
  const auto value = [&] { return 3 * reference::cross_entropy(x, targets, 1.0); };
  EXPECT_LT(relative_error(p.grad(), central_differences(x, value)), kTolerance);
}

/// −Σ q · log softmax in double, q smoothed.
double smoothed(const Matrix& logits, const std::vector<std::int32_t>& targets, double scale,
                double smoothing) {
  double total = 0;
  for (std::int64_t r = 0; r < logits.rows; ++r) {
    const std::int32_t t = targets[static_cast<std::size_t>(r)];
    if (t < 0) continue;
    double sum = 0;
    for (std::int64_t c = 0; c < logits.cols; ++c) sum += std::exp(logits.at(r, c));
    for (std::int64_t c = 0; c < logits.cols; ++c) {
      const double q = (c == t ? 1 - smoothing : 0.0) + smoothing / static_cast<double>(logits.cols);
      total -= q * (logits.at(r, c) - std::log(sum));
    }
  }
  return total * scale;
}

TEST(Gradient, CrossEntropyWithLabelSmoothingAndMask) {
  Rng rng(12);
  Matrix x = random(rng, 9, 11), w = random(rng, 23, 11);
  const std::vector<std::int32_t> targets = {0, 22, -1, 5, 5, 9, -1, 1, 2};
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  for (const float smoothing : {0.1f, 0.5f}) {
    Tape tape(context);
    Parameter px(context, "x", 9, 11, false), pw(context, "w", 23, 11, false);
    fill(px, x);
    fill(pw, w);
    const Variable loss =
        cross_entropy(tape, linear(tape, px.variable(), pw.variable()), targets, 0.25f, {}, smoothing);
    const auto value = [&] { return smoothed(reference::linear(x, w), targets, 0.25, smoothing); };
    EXPECT_NEAR(loss.value()[0], value(), 1e-5 * value());
    tape.backward(loss);
    EXPECT_LT(relative_error(px.grad(), central_differences(x, value)), kTolerance);
    EXPECT_LT(relative_error(pw.grad(), central_differences(w, value)), kTolerance);
  }
}

double kl(const Matrix& logits, const Matrix& teacher, double tau, double scale,
          const std::vector<std::uint8_t>& mask) {
  double total = 0;
  for (std::int64_t r = 0; r < logits.rows; ++r) {
    if (!mask.empty() && !mask[static_cast<std::size_t>(r)]) continue;
    double p_sum = 0, q_sum = 0;
    for (std::int64_t c = 0; c < logits.cols; ++c) {
      p_sum += std::exp(teacher.at(r, c) / tau);
      q_sum += std::exp(logits.at(r, c) / tau);
    }
    for (std::int64_t c = 0; c < logits.cols; ++c) {
      const double p = std::exp(teacher.at(r, c) / tau) / p_sum, q = std::exp(logits.at(r, c) / tau) / q_sum;
      total += p * std::log(p / q);
    }
  }
  return total * tau * tau * scale;
}

std::vector<float> floats_of(const Matrix& m) { return {m.v.begin(), m.v.end()}; }

TEST(Gradient, KlDivergence) {
  Rng rng(13);
  Matrix x = random(rng, 5, 7), w = random(rng, 19, 7);
  const Matrix teacher = random(rng, 5, 19, 2.0);
  const std::vector<float> wanted = floats_of(teacher);
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  for (const double tau : {1.0, 5.0})
    for (const std::vector<std::uint8_t>& mask : {std::vector<std::uint8_t>{}, {1, 0, 1, 1, 0}}) {
      Tape tape(context);
      Parameter px(context, "x", 5, 7, false), pw(context, "w", 19, 7, false);
      fill(px, x);
      fill(pw, w);
      const Variable loss = kl_divergence(tape, linear(tape, px.variable(), pw.variable()), wanted,
                                          static_cast<float>(tau), 0.5f, mask);
      const auto value = [&] { return kl(reference::linear(x, w), teacher, tau, 0.5, mask); };
      EXPECT_NEAR(loss.value()[0], value(), 2e-5 * value());
      tape.backward(loss);
      EXPECT_LT(relative_error(px.grad(), central_differences(x, value)), kTolerance);
      EXPECT_LT(relative_error(pw.grad(), central_differences(w, value)), kTolerance);
    }
}

TEST(Gradient, KlDivergenceFromOneselfIsZero) {
  Rng rng(14);
  const Matrix x = random(rng, 3, 8);
  const ExecutionContext context;
  Tape tape(context);
  Parameter p(context, "x", 3, 8, false);
  fill(p, x);
  const std::vector<float> same = floats_of(x);
  const Variable loss = kl_divergence(tape, p.variable(), same, 2.0f, 1.0f);
  EXPECT_NEAR(loss.value()[0], 0.0, 1e-6);
  tape.backward(loss);
  for (const float g : p.grad()) EXPECT_NEAR(g, 0.0, 1e-6);
}

TEST(Gradient, SquaredError) {
  Rng rng(15);
  const Matrix target = random(rng, 40, 9);
  static const std::vector<float> wanted = floats_of(target);
  check({{random(rng, 40, 9)},
         [](Tape& t, const auto& v) { return squared_error(t, v[0], wanted, 0.125f); },
         [&](const auto& m) {
           Matrix y(1, 1);
           for (std::size_t i = 0; i < m[0].v.size(); ++i)
             y.v[0] += 0.125 * std::pow(m[0].v[i] - target.v[i], 2);
           return y;
         }});
}

/// Distillation: the losses add up, and so do their gradients in the logits that both share.
TEST(Gradient, TwoLossesOfTheSameLogits) {
  Rng rng(16);
  Matrix x = random(rng, 4, 6), w = random(rng, 10, 6);
  const Matrix teacher = random(rng, 4, 10);
  const std::vector<float> wanted = floats_of(teacher);
  const std::vector<std::int32_t> targets = {1, -1, 9, 0};
  const ExecutionContext context;
  Tape tape(context);
  Parameter px(context, "x", 4, 6, false), pw(context, "w", 10, 6, false);
  fill(px, x);
  fill(pw, w);
  const Variable logits = linear(tape, px.variable(), pw.variable());
  const Variable distilled = kl_divergence(tape, logits, wanted, 5.0f, 0.25f);
  const Variable loss = add(tape, distilled, cross_entropy(tape, logits, targets, 0.25f));
  const auto value = [&] {
    const Matrix l = reference::linear(x, w);
    return kl(l, teacher, 5.0, 0.25, {}) + smoothed(l, targets, 0.25, 0);
  };
  EXPECT_NEAR(loss.value()[0], value(), 1e-5 * value());
  tape.backward(loss);
  EXPECT_LT(relative_error(px.grad(), central_differences(x, value)), kTolerance);
  EXPECT_LT(relative_error(pw.grad(), central_differences(w, value)), kTolerance);
}

TEST(Losses, ShapesThatDisagreeAreErrors) {
  const ExecutionContext context;
  Tape tape(context);
  const Variable x = tape.make(2, 3, true);
  const std::vector<float> five(5), six(6);
  const std::vector<std::int32_t> targets = {0, 1};
  const std::vector<std::uint8_t> mask = {1};
  BITNET_EXPECT_ERROR(kl_divergence(tape, x, five, 1, 1), ErrorCode::kInvalidArgument, "5 values");
  BITNET_EXPECT_ERROR(kl_divergence(tape, x, six, 0, 1), ErrorCode::kInvalidArgument, "temperature");
  BITNET_EXPECT_ERROR(kl_divergence(tape, x, six, 1, 1, mask), ErrorCode::kInvalidArgument, "mask");
  BITNET_EXPECT_ERROR(squared_error(tape, x, five, 1), ErrorCode::kInvalidArgument, "5 targets");
  BITNET_EXPECT_ERROR(cross_entropy(tape, x, targets, 1, {}, 1.0f), ErrorCode::kInvalidArgument,
                      "label_smoothing");
}

}  // namespace
}  // namespace bitnet::training
