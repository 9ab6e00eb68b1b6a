// The multiple-choice knapsack; see assignment.hpp.
#include "bitnet/quant/assignment.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <utility>

#include "bitnet/core/error.hpp"

namespace bitnet::quant {
namespace {

/// A choice that no other of its thing is both lighter and cheaper than, and which one it was.
struct Kept {
  double weight, cost;
  std::uint32_t choice;
};

/// From one choice of a thing to a heavier one: part of the lower convex hull.
struct Step {
  std::size_t thing;
  double weight, saving;  ///< both above 0
  std::uint32_t to;       ///< which of the kept
};

/// Ascending weights, falling costs.
std::vector<Kept> undominated(const std::vector<Choice>& choices) {
  std::vector<Kept> all;
  for (std::size_t i = 0; i < choices.size(); ++i)
    all.push_back({choices[i].weight, choices[i].cost, static_cast<std::uint32_t>(i)});
  std::stable_sort(all.begin(), all.end(), [](const Kept& a, const Kept& b) {
    return std::pair(a.weight, a.cost) < std::pair(b.weight, b.cost);
  });
  std::vector<Kept> kept;
  for (const Kept& k : all)
    if (kept.empty() || k.cost < kept.back().cost) kept.push_back(k);
  return kept;
}

/// The hull's steps, each saving less for its weight than the one before.
std::vector<Step> hull_steps(const std::vector<Kept>& kept, std::size_t thing) {
  std::vector<std::uint32_t> hull;
  const auto slope = [&](std::uint32_t a, std::uint32_t b) {
    return (kept[a].cost - kept[b].cost) / (kept[b].weight - kept[a].weight);
  };
  for (std::uint32_t i = 0; i < kept.size(); ++i) {
    while (hull.size() > 1 && slope(hull.back(), i) >= slope(hull[hull.size() - 2], hull.back()))
      hull.pop_back();
    hull.push_back(i);
  }
  std::vector<Step> steps;
  for (std::size_t i = 1; i < hull.size(); ++i)
    steps.push_back({thing, kept[hull[i]].weight - kept[hull[i - 1]].weight,
                     kept[hull[i - 1]].cost - kept[hull[i]].cost, hull[i]});
  return steps;
}

/// The linear relaxation of the things from one on: how little they can cost within a weight.
class Relaxation {
 public:
  Relaxation(std::span<const std::vector<Kept>> things, const std::vector<Step>& steps, std::size_t first) {
    for (std::size_t i = first; i < things.size(); ++i) {
      weight_ += things[i].front().weight;
      cost_ += things[i].front().cost;
    }
    double weight = 0, saved = 0;
    for (const Step& s : steps) {
      if (s.thing < first) continue;
      weights_.push_back(weight += s.weight);
      savings_.push_back(saved += s.saving);
    }
  }
  double lightest() const noexcept { return weight_; }
  /// `room` ≥ lightest().
  double least_cost(double room) const {
    const double left = room - weight_;
    const auto at =
        static_cast<std::size_t>(std::upper_bound(weights_.begin(), weights_.end(), left) - weights_.begin());
    const double before = at > 0 ? weights_[at - 1] : 0, saved = at > 0 ? savings_[at - 1] : 0;
    if (at == weights_.size()) return cost_ - saved;
    return cost_ - saved - (savings_[at] - saved) * (left - before) / (weights_[at] - before);
  }

 private:
  double weight_ = 0, cost_ = 0;
  std::vector<double> weights_, savings_;  // sums of the steps, the best first
};

/// What the steps reach that still fit, the best first: which of the kept choices. A bound from above.
std::vector<std::uint32_t> greedy(std::span<const std::vector<Kept>> things, const std::vector<Step>& steps,
                                  double room) {
  std::vector<std::uint32_t> at(things.size(), 0);
  for (const auto& k : things) room -= k.front().weight;
  for (const Step& s : steps) {
    const std::vector<Kept>& kept = things[s.thing];
    const double more = kept[s.to].weight - kept[at[s.thing]].weight;
    if (more > room) continue;
    room -= more;
    at[s.thing] = s.to;
  }
  return at;
}

/// A partial assignment.
struct State {
  double weight, cost;
  std::uint32_t before;  ///< which of the states of one thing less
  std::uint32_t choice;  ///< of its last thing, as the caller numbers them
};

/// Every state with every choice, without the dominated ones and those that `worth` refuses.
template <class Worth>
std::vector<State> extend(const std::vector<State>& states, const std::vector<Kept>& choices, Worth&& worth) {
  std::vector<State> all;
  for (const Kept& k : choices)
    for (std::size_t i = 0; i < states.size(); ++i) {
      const State s{states[i].weight + k.weight, states[i].cost + k.cost, static_cast<std::uint32_t>(i),
                    k.choice};
      if (worth(s)) all.push_back(s);
    }
  std::stable_sort(all.begin(), all.end(), [](const State& a, const State& b) {
    return std::pair(a.weight, a.cost) < std::pair(b.weight, b.cost);
  });
  std::size_t n = 0;
  for (const State& s : all)
    if (n == 0 || s.cost < all[n - 1].cost) all[n++] = s;
  all.resize(n);
  return all;
}

/// About `most` of the states, the lightest and the cheapest among them.
void thin(std::vector<State>& states, std::size_t most) {
  std::vector<State> kept;
  const std::size_t n = states.size();
  for (std::size_t i = 0; i < most; ++i)
    kept.push_back(states[i * (n - 1) / std::max<std::size_t>(1, most - 1)]);
  states = std::move(kept);
}

void check(std::span<const std::vector<Choice>> things, double limit) {
  if (!std::isfinite(limit))
    throw Error(ErrorCode::kInvalidArgument, fmt::format("assign: a limit of {}", limit));
  for (std::size_t i = 0; i < things.size(); ++i) {
    if (things[i].empty())
      throw Error(ErrorCode::kInvalidArgument, fmt::format("assign: thing {} has no choices", i));
    for (const Choice& c : things[i])
      if (!std::isfinite(c.weight) || !std::isfinite(c.cost))
        throw Error(
            ErrorCode::kInvalidArgument,
            fmt::format("assign: thing {} has a choice of weight {} and cost {}", i, c.weight, c.cost));
  }
}

}  // namespace

std::optional<Assignment> assign(std::span<const std::vector<Choice>> things, double limit,
                                 const AssignOptions& options) {
  check(things, limit);
  std::vector<std::vector<Kept>> kept;
  std::vector<Step> steps;
  for (std::size_t i = 0; i < things.size(); ++i) {
    kept.push_back(undominated(things[i]));
    for (const Step& s : hull_steps(kept.back(), i)) steps.push_back(s);
  }
  std::stable_sort(steps.begin(), steps.end(),
                   [](const Step& a, const Step& b) { return a.saving * b.weight > b.saving * a.weight; });
  if (Relaxation(kept, steps, 0).lightest() > limit) return std::nullopt;
  Assignment result;
  result.chosen.resize(things.size());
  const std::vector<std::uint32_t> first = greedy(kept, steps, limit);
  double known = 0, size = 0;
  for (std::size_t i = 0; i < kept.size(); ++i) {
    const Kept& k = kept[i][first[i]];
    result.chosen[i] = k.choice;
    known += k.cost;
    size += std::abs(k.cost) + std::abs(kept[i].front().cost);
  }
  const double slack = 1e-12 * size;  // roundings of sums alone make no state worthless

  std::vector<std::vector<State>> stages{{{0, 0, 0, 0}}};
  const std::size_t most = std::max<std::size_t>(2, options.max_states);
  for (std::size_t i = 0; i < kept.size(); ++i) {
    const Relaxation rest(kept, steps, i + 1);
    stages.push_back(extend(stages.back(), kept[i], [&](const State& s) {
      const double room = limit - s.weight;
      return rest.lightest() <= room && s.cost + rest.least_cost(room) <= known + slack;
    }));
    if (stages.back().size() > most) {
      thin(stages.back(), most);
      result.exact = false;
    }
  }
  if (!stages.back()
           .empty()) {  // else what was thinned away, or rounding, took all that are as good as `first`
    std::size_t at = stages.back().size() - 1;  // the lightest go first, so this is the cheapest
    for (std::size_t i = things.size(); i-- > 0;) {
      const State& s = stages[i + 1][at];
      result.chosen[i] = s.choice;
      at = s.before;
    }
  }
  for (std::size_t i = 0; i < things.size(); ++i) {
    result.weight += things[i][result.chosen[i]].weight;
    result.cost += things[i][result.chosen[i]].cost;
  }
  return result;
}

}  // namespace bitnet::quant
