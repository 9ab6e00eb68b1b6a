// See tune_choice.hpp.
#include "tune_choice.hpp"

namespace bitnet::gpu {
namespace {

constexpr double kLeastGain = 1.02;

/// Of two candidates that can be chosen.
double gain(const TuneCandidate& from, const TuneCandidate& to) {
  double sum = 0;
  for (std::size_t i = 0; i < from.seconds.size(); ++i) sum += from.seconds[i] / to.seconds[i];
  return from.seconds.empty() ? 1 : sum / static_cast<double>(from.seconds.size());
}

}  // namespace

double gain_of(std::span<const TuneCandidate> candidates, std::size_t which) {
  if (!candidates[0].can_be_chosen() || !candidates[which].can_be_chosen()) return 1;
  return gain(candidates[0], candidates[which]);
}

std::optional<std::size_t> best_of(std::span<const TuneCandidate> candidates) {
  std::optional<std::size_t> first, best;
  for (std::size_t i = 0; i < candidates.size(); ++i) {
    if (!candidates[i].can_be_chosen()) continue;
    if (!first) first = best = i;
    if (gain(candidates[*first], candidates[i]) > gain(candidates[*first], candidates[*best])) best = i;
  }
  if (best && gain(candidates[*first], candidates[*best]) <= kLeastGain) best = first;
  return best;
}

}  // namespace bitnet::gpu
