// See case_run.hpp.
#include "case_run.hpp"

#include <cfloat>
#include <cmath>
#include <cstdlib>

namespace bitnet::conformance {

bool simulated() {
  static const bool yes = std::getenv("BITNET_TEST_SIMULATED") != nullptr;
  return yes;
}
bool too_large(std::int64_t operations) { return simulated() && operations > 40'000; }

std::string text(const Shape& s) {
  return std::to_string(s.rows) + " rows, " + std::to_string(s.out) + " x " + std::to_string(s.in);
}

std::vector<float> awkward_rows(Run& r, std::int64_t ordinary, std::int64_t cols) {
  std::vector<float> x = r.normals(ordinary * cols);
  const auto add = [&](float v) { x.insert(x.end(), static_cast<std::size_t>(cols), v); };
  add(0.0f);
  add(-0.0f);
  add(9e-6f);
  add(FLT_MIN / 4);
  add(FLT_MAX);
  std::vector<float> row = r.normals(cols);
  for (const float bad : {std::nanf(""), HUGE_VALF, -HUGE_VALF}) {
    row[static_cast<std::size_t>(cols / 2)] = bad;
    x.insert(x.end(), row.begin(), row.end());
  }
  for (const float magnitude : {1e-30f, 1e-6f, 1e-5f, 1e6f, 1e18f}) {
    const std::vector<float> scaled = r.normals(cols, magnitude);
    x.insert(x.end(), scaled.begin(), scaled.end());
  }
  return x;
}

}  // namespace bitnet::conformance
