#pragma once
// What became slower from one measurement to the next, told from chance. Pure functions, thread-safe.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bitnet/benchmarks/results.hpp"

namespace bitnet::benchmarks {

/// Two-sided p-value of Welch's t-test: how probable means so far apart are if both samples come from
/// distributions with one mean (normal, each with its own variance; B. L. Welch, Biometrika 34, 1947). Needs
/// two samples on each side, else nothing. With no spread at all it is 1 for equal means and 0 for others.
/// Welch's and not Mann and Whitney's: with the usual five samples ranks cannot tell less than p = 0.008,
/// with three less than 0.1, however far apart they are.
std::optional<double> welch_p_value(double mean_a, double stddev_a, std::size_t count_a, double mean_b,
                                    double stddev_b, std::size_t count_b);

enum class Verdict : std::uint8_t {
  kSame,     ///< no more than the threshold apart, or that far by chance
  kSlower,   ///< by more than the threshold, and p below the level
  kFaster,   ///< likewise
  kUnknown,  ///< a single sample has no spread: no verdict
};
std::string_view to_string(Verdict verdict) noexcept;

struct Comparison {
  std::string name, unit;
  double old_mean = 0, new_mean = 0;
  double speed = 1;         ///< new speed ÷ old speed, of rates and of times alike
  std::optional<double> p;  ///< absent with one sample
  Verdict verdict = Verdict::kUnknown;
};

struct ComparisonOptions {
  double threshold = 0.05;  ///< of the speed; ≥ 0
  double level = 0.05;      ///< of significance
};

struct ComparisonReport {
  std::vector<Comparison> tests;   ///< those of both files, in the old one's order
  std::vector<std::string> notes;  ///< tests that only one has; facts in which the machines or models differ
  bool any_slower() const noexcept;
};

/// Throws Error(kInvalidArgument) on files of different kinds, or without a test in common.
ComparisonReport compare(const ResultFile& before, const ResultFile& after,
                         const ComparisonOptions& options = {});

}  // namespace bitnet::benchmarks
