#pragma once
// Weights, inputs and a layer of both, from seeds, for the tests of post-training methods.
#include <cstdint>
#include <span>
#include <vector>

#include "bitnet/core/rng.hpp"
#include "bitnet/quant/post_training.hpp"
#include "contexts.hpp"

namespace bitnet::quant::test {

inline std::vector<float> random_values(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> v(n);
  for (float& x : v) x = static_cast<float>(rng.normal());
  return v;
}

/// Inputs whose neighbours are alike, with some large columns.
inline std::vector<float> random_inputs(std::int64_t rows, std::int64_t in, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> x(static_cast<std::size_t>(rows * in));
  for (std::int64_t r = 0; r < rows; ++r) {
    float last = 0;
    for (std::int64_t c = 0; c < in; ++c) {
      last = 0.8f * last + static_cast<float>(rng.normal());
      x[static_cast<std::size_t>(r * in + c)] = last * (c % 7 == 0 ? 3.0f : 1.0f);
    }
  }
  return x;
}

struct Layer {
  std::int64_t out, in;
  std::vector<float> w;
  Hessian hessian;

  Layer(std::int64_t o, std::int64_t i, std::int64_t rows, std::uint64_t seed)
      : out(o), in(i), w(random_values(static_cast<std::size_t>(o * i), seed)), hessian(i) {
    hessian.add(context(), random_inputs(rows, in, seed + 1));
  }
  double h(std::int64_t i, std::int64_t j) const {
    return hessian.values()[static_cast<std::size_t>(i * in + j)];
  }
  double error(std::span<const float> q) const { return output_error(context(), w, q, hessian); }
};

}  // namespace bitnet::quant::test
