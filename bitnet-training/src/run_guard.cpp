// Judging losses and finding what is not finite.
#include "run_guard.hpp"

#include <algorithm>
#include <cmath>

namespace bitnet::training {
namespace {

constexpr std::int64_t kJudged = 20, kMostSpikes = 10;
constexpr double kWeight = 0.02;  // of a new loss: 1 / 50

bool finite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

}  // namespace

bool is_spike(LossLevel& level, double loss, double deviations) {
  if (level.steps >= kJudged &&
      loss > level.mean + deviations * std::max(std::sqrt(level.variance), 0.01 * std::abs(level.mean))) {
    if (++level.spikes < kMostSpikes) return true;
    level = {};
  }
  level.spikes = 0;
  ++level.steps;
  const double weight = std::max(kWeight, 1.0 / static_cast<double>(level.steps));
  const double off = loss - level.mean;
  level.mean += weight * off;
  level.variance = (1 - weight) * (level.variance + weight * off * off);
  return false;
}

std::string first_not_finite(TextModel& model, Tape& tape, std::span<const std::int32_t> ids,
                             const RowLayout& layout) {
  for (const Parameter* p : model.parameters())
    if (!finite(p->value())) return "weights of " + p->name();
  for (std::int64_t layer = 0; layer < model.config().n_layers; ++layer) {
    AttentionStates states;
    states.layer = layer;
    tape.reset();
    const Variable logits = model.forward(tape, ids, layout, &states);
    if (finite(logits.value())) return {};
    if (!finite(states.input.value()))
      return layer == 0 ? "the embeddings" : "the outputs of layer " + std::to_string(layer - 1);
    for (const Variable v : {states.q, states.k, states.v})
      if (!finite(v.value())) return "the attention of layer " + std::to_string(layer);
  }
  return "the outputs of layer " + std::to_string(model.config().n_layers - 1) + " or the logits";
}

std::string gradient_not_finite(TextModel& model) {
  const auto all = model.parameters();
  for (std::size_t i = all.size(); i > 0; --i)
    if (!finite(all[i - 1]->grad())) return "the gradient of " + all[i - 1]->name();
  return {};
}

}  // namespace bitnet::training
