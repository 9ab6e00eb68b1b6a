// Losses, each with its gradient, which is computed on the way forward. Other ops are ops.cpp.
#include "bitnet/training/losses.hpp"

#include <algorithm>
#include <cmath>

#include "ops_common.hpp"

namespace bitnet::training {
namespace {

/// scale · Σ losses, in order.
float total_of(const float* losses, std::int64_t n, float scale) {
  double total = 0;
  for (std::int64_t r = 0; r < n; ++r) total += losses[r];
  return static_cast<float>(total * scale);
}

/// Gives `x` the gradient `gradient` times what arrives at `loss`. Storage of x itself becomes its gradient
/// where that has not been written.
void pass_back(Tape& tape, Variable loss, Variable x, float* gradient) {
  Tape* t = &tape;
  tape.on_backward(loss, [t, x, loss, gradient] {
    const float upstream = loss.grad()[0];
    const auto cols = static_cast<std::size_t>(x.cols());
    Node* owner = x.node()->grad_owner ? x.node()->grad_owner : x.node();
    const bool in_place = gradient == x.node()->value && !owner->grad_written && !owner->persistent;
    const Tape::GradTarget to = in_place ? Tape::GradTarget{gradient, false} : t->grad_target(x);
    for_rows(*t, x.rows(), 8, [&](std::int64_t r) {
      const auto at = static_cast<std::size_t>(r) * cols;
      if (upstream != 1.0f) f32_of(*t).scale(upstream, gradient + at, cols);
      if (to.accumulate)
        f32_of(*t).add(gradient + at, to.data + at, cols);
      else if (!in_place)
        std::copy_n(gradient + at, cols, to.data + at);
    });
    if (in_place) {
      owner->grad = gradient;
      owner->grad_written = true;
    }
  });
}

/// Row → its softmax of x / temperature; returns log Σ exp(x / temperature).
double softmax(const F32Kernels& k, float* row, float temperature, std::size_t n) {
  if (temperature != 1.0f) k.scale(1.0f / temperature, row, n);
  const float largest = k.max(row, n), sum = k.exp_sum(row, largest, n);
  k.scale(1.0f / sum, row, n);
  return std::log(static_cast<double>(sum)) + static_cast<double>(largest);
}

}  // namespace

Variable cross_entropy(Tape& tape, Variable logits, std::span<const std::int32_t> targets, float scale,
                       std::span<float> row_losses, float label_smoothing) {
  const std::int64_t n = logits.rows(), vocab = logits.cols();
  BITNET_REQUIRE(static_cast<std::int64_t>(targets.size()) == n, "cross_entropy",
                 std::to_string(targets.size()) + " targets for logits " + dims(logits));
  BITNET_REQUIRE(row_losses.empty() || row_losses.size() == targets.size(), "cross_entropy",
                 "row_losses has another size");
  BITNET_REQUIRE(label_smoothing >= 0 && label_smoothing < 1, "cross_entropy",
                 "label_smoothing must be at least 0 and below 1");
  for (const std::int32_t id : targets)
    BITNET_REQUIRE(id < vocab, "cross_entropy",
                   "target " + std::to_string(id) + " is outside the vocabulary");
  Variable out = tape.make(1, 1, logits.needs_grad());
  float* losses = row_losses.empty() ? tape.floats(static_cast<std::size_t>(n)) : row_losses.data();
  float* values = logits.value().data();
  const F32Kernels& k = f32_of(tape);
  for_rows(tape, n, 8, [&](std::int64_t r) {
    float* row = values + r * vocab;
    const std::int32_t target = targets[static_cast<std::size_t>(r)];
    if (target < 0) {
      std::fill_n(row, vocab, 0.0f);
      losses[r] = 0.0f;
      return;
    }
    const auto count = static_cast<std::size_t>(vocab);
    const float wanted = row[target], largest = k.max(row, count);
    const double smooth = label_smoothing,
                 mean = smooth > 0 ? k.sum(row, count) / static_cast<double>(vocab) : 0;
    const float sum = k.exp_sum(row, largest, count);
    const double log_sum = std::log(static_cast<double>(sum));
    losses[r] =
        static_cast<float>(log_sum + (static_cast<double>(largest) - wanted) + smooth * (wanted - mean));
    k.scale(scale / sum, row, count);
    row[target] -= scale * (1 - label_smoothing);
    if (smooth > 0) {
      const float each = scale * label_smoothing / static_cast<float>(vocab);
      for (std::int64_t c = 0; c < vocab; ++c) row[c] -= each;
    }
  });
  out.value()[0] = total_of(losses, n, scale);
  pass_back(tape, out, logits, values);
  return out;
}

Variable kl_divergence(Tape& tape, Variable logits, std::span<const float> teacher, float temperature,
                       float scale, std::span<const std::uint8_t> mask) {
  const std::int64_t n = logits.rows();
  const auto vocab = static_cast<std::size_t>(logits.cols());
  BITNET_REQUIRE(teacher.size() == logits.value().size(), "kl_divergence",
                 std::to_string(teacher.size()) + " values of the teacher for logits " + dims(logits));
  BITNET_REQUIRE(mask.empty() || static_cast<std::int64_t>(mask.size()) == n, "kl_divergence",
                 "the mask has another size");
  BITNET_REQUIRE(temperature > 0, "kl_divergence", "the temperature must be positive");
  Variable out = tape.make(1, 1, logits.needs_grad());
  float* losses = tape.floats(static_cast<std::size_t>(n));
  float* gradient = tape.floats(teacher.size());  // first log p of the student, then the gradient
  float* wanted = tape.floats(teacher.size());
  const F32Kernels& k = f32_of(tape);
  for_rows(tape, n, 8, [&](std::int64_t r) {
    const auto at = static_cast<std::size_t>(r) * vocab;
    float *g = gradient + at, *p = wanted + at;
    losses[r] = 0;
    if (!mask.empty() && mask[static_cast<std::size_t>(r)] == 0) {
      std::fill_n(g, vocab, 0.0f);
      return;
    }
    const float *student = logits.value().data() + at, *theirs = teacher.data() + at;
    std::copy_n(theirs, vocab, p);
    std::copy_n(student, vocab, g);
    const double log_p = softmax(k, p, temperature, vocab), log_q = softmax(k, g, temperature, vocab);
    double loss = 0;
    for (std::size_t c = 0; c < vocab; ++c) {
      const double difference = (static_cast<double>(theirs[c]) - student[c]) / temperature - log_p + log_q;
      loss += p[c] * difference;
      g[c] = (g[c] - p[c]) * (temperature * scale);
    }
    losses[r] = static_cast<float>(loss * temperature * temperature);
  });
  out.value()[0] = total_of(losses, n, scale);
  pass_back(tape, out, logits, gradient);
  return out;
}

Variable squared_error(Tape& tape, Variable x, std::span<const float> target, float scale) {
  BITNET_REQUIRE(target.size() == x.value().size(), "squared_error",
                 std::to_string(target.size()) + " targets for " + dims(x));
  Variable out = tape.make(1, 1, x.needs_grad());
  const auto cols = static_cast<std::size_t>(x.cols());
  float* losses = tape.floats(static_cast<std::size_t>(x.rows()));
  float* gradient = tape.floats(target.size());
  for_rows(tape, x.rows(), 32, [&](std::int64_t r) {
    const auto at = static_cast<std::size_t>(r) * cols;
    double sum = 0;
    for (std::size_t c = at; c < at + cols; ++c) {
      const float difference = x.value()[c] - target[c];
      sum += static_cast<double>(difference) * difference;
      gradient[c] = 2 * scale * difference;
    }
    losses[r] = static_cast<float>(sum);
  });
  out.value()[0] = total_of(losses, x.rows(), scale);
  pass_back(tape, out, x, gradient);
  return out;
}

}  // namespace bitnet::training
