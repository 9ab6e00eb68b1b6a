#pragma once
// Which of the candidates of a program is taken. How they are measured is tune.cpp. Pure functions.
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace bitnet::gpu {

/// What became of a candidate.
struct TuneCandidate {
  bool refused = false;  ///< by the driver, `why`
  bool unequal = false;  ///< its results were wrong
  std::string why;
  std::vector<double> seconds = {};  ///< for each number of rows, summed over the shapes
  double sum = 0;                    ///< of the number of rows at hand

  void add(double more) { sum += more; }
  void end_of_rows() {
    seconds.push_back(sum);
    sum = 0;
  }
  bool can_be_chosen() const noexcept { return !refused && !unequal; }
};

/// Time with the first candidate over time with `which`, the mean over the numbers of rows; 1 where the first
/// one has no times.
double gain_of(std::span<const TuneCandidate> candidates, std::size_t which);

/// The fastest whose results are right; the first one, which is the default, unless another is faster by more
/// than 2 %, which is what the medians differ by from run to run. None where none can be chosen.
std::optional<std::size_t> best_of(std::span<const TuneCandidate> candidates);

}  // namespace bitnet::gpu
