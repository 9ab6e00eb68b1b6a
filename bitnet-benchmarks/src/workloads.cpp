// Random weights and rows of known shapes.
#include "bitnet/benchmarks/workloads.hpp"

#include <array>
#include <cmath>

#include "bitnet/core/rng.hpp"

namespace bitnet::benchmarks {
namespace {

constexpr std::array<LinearShape, 5> kLinearShapes{{
    {"tiny", 250, 260},
    {"kv", 640, 2560},
    {"qo", 2560, 2560},
    {"up", 6912, 2560},
    {"down", 2560, 6912},
}};

// 40 trits a draw: the base-3 digits of a 64-bit number; 2^64 / 3^40 = 1.5 leaves a bias that no kernel can
// see.
void fill_trits(Rng& rng, std::span<std::int8_t> to) {
  std::uint64_t digits = 0;
  for (std::size_t i = 0; i < to.size(); ++i) {
    if (i % 40 == 0) digits = rng.next();
    to[i] = static_cast<std::int8_t>(static_cast<int>(digits % 3) - 1);
    digits /= 3;
  }
}

// Scale that gives a linear unit gain: trits have variance 2/3.
float unit_scale(std::int64_t in) { return std::sqrt(1.5f / static_cast<float>(in)); }

}  // namespace

std::span<const LinearShape> linear_shapes() noexcept { return kLinearShapes; }

quant::TernaryWeights random_weights(const LinearShape& shape, std::uint64_t seed) {
  quant::TernaryWeights w;
  w.out = shape.out;
  w.in = shape.in;
  w.trits.resize(static_cast<std::size_t>(shape.out * shape.in));
  Rng rng(seed);
  fill_trits(rng, w.trits);
  w.scales = {unit_scale(shape.in)};
  w.rows_per_scale = shape.out;
  return w;
}

std::vector<float> random_rows(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  std::vector<float> x(static_cast<std::size_t>(rows * cols));
  Rng rng(seed);
  for (float& v : x) v = static_cast<float>(rng.normal());
  return x;
}

}  // namespace bitnet::benchmarks
