// Trains a ternary multi-layer perceptron to tell two spirals apart, with nothing but the library: layers, a
// tape, a loss, an optimiser. A language model from a yaml file is `bitnet train`.
#include <algorithm>
#include <bitnet/training/losses.hpp>
#include <bitnet/training/modules.hpp>
#include <bitnet/training/optimizer.hpp>
#include <bitnet/training/schedule.hpp>
#include <cmath>
#include <cstdio>
#include <exception>

using namespace bitnet;
using namespace bitnet::training;

int main() try {
  constexpr std::int64_t kPoints = 400, kWidth = 128;
  const ExecutionContext context;
  Rng rng(1);
  // Coordinates and answers are in full precision; between them are ternary weights and int8 activations.
  Linear in(context, "in", kWidth, 2, true), out(context, "out", 2, kWidth, true);
  BitLinear middle(context, "middle", kWidth, kWidth, {.shape = BlockShape::k2024, .bias = true});
  std::vector<Parameter*> parameters;
  for (Linear* layer : std::initializer_list<Linear*>{&in, &middle, &out}) {
    layer->initialize(rng);
    layer->parameters(parameters);
  }

  std::vector<float> points;
  std::vector<std::int32_t> labels;
  for (std::int32_t i = 0; i < kPoints; ++i) {
    const double angle = 1 + 8 * rng.uniform(), radius = i % 2 ? angle / 3 : -angle / 3;
    points.push_back(static_cast<float>(radius * std::cos(angle)));
    points.push_back(static_cast<float>(radius * std::sin(angle)));
    labels.push_back(i % 2);
  }

  AdamW optimizer(context, parameters, {});
  const Schedule schedule{.kind = ScheduleKind::kCosine, .steps = 600, .warmup = 20, .peak = 1e-2};
  Tape tape(context);
  int right = 0;
  for (std::int64_t step = 0; step < schedule.steps; ++step, tape.reset()) {
    middle.refresh(context);
    const Variable x = tape.make(kPoints, 2, false);
    std::copy(points.begin(), points.end(), x.value().begin());
    const Variable logits = out(tape, relu(tape, middle(tape, relu(tape, in(tape, x)))));
    right = 0;
    for (std::size_t i = 0; i < labels.size(); ++i)
      right += (logits.value()[2 * i + 1] > logits.value()[2 * i]) == (labels[i] == 1);
    tape.backward(cross_entropy(tape, logits, labels, 1.0f / kPoints));
    optimizer.step(context, static_cast<float>(schedule.learning_rate(step)), 0, 1);
  }
  std::printf("%d of %d right\n", right, static_cast<int>(kPoints));
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
