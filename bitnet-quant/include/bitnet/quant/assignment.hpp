#pragma once
// One choice for each of several things, so that all of them together keep to a limit and cost the least: the
// multiple-choice knapsack problem. What things, weights and costs mean is the caller's business
// (sensitivity.hpp). Pure functions, thread-safe.
#include <cstddef>
#include <optional>
#include <span>
#include <vector>

namespace bitnet::quant {

struct Choice {
  double weight = 0;  ///< counts against the limit
  double cost = 0;
};

struct Assignment {
  std::vector<std::size_t> chosen;  // [things], which of its choices
  double weight = 0, cost = 0;      ///< of all chosen, summed in the order of the things
  bool exact = true;                ///< false: `max_states` cut the search, and something cheaper may exist
};

struct AssignOptions {
  /// Partial assignments that are kept after each thing, of which none is both lighter and cheaper than
  /// another, of 24 bytes each. Measured: below 100 for 224 linears of three choices each.
  std::size_t max_states = std::size_t{1} << 20;
};

/// The choices of least cost with Σ weight ≤ limit; of equal cost the lightest. Dynamic programming over the
/// undominated partial assignments (Nemhauser and Ullmann 1969), of which those go that the linear relaxation
/// of the rest cannot bring below the best one known (Dyer et al. 1995). None where even the lightest choices
/// exceed the limit. Throws Error(kInvalidArgument) on a thing without choices, and on numbers that are not
/// finite.
std::optional<Assignment> assign(std::span<const std::vector<Choice>> things, double limit,
                                 const AssignOptions& options = {});

}  // namespace bitnet::quant
