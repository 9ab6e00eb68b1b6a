// What self_test.hpp says. The matrices are random, always the same; the reference is the definition.
#include "self_test.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "bitnet/core/rng.hpp"
#include "bitnet/core/self_test.hpp"
#include "bitnet/quant/bit_linear.hpp"
#include "tile_packing.hpp"

namespace bitnet::quant {
namespace {

/// Ways of each product, with ragged tiles, lines and row blocks. One row: longer than any 16-bit sum lasts
/// (31 lines of two bits on NEON). Three: in registers. More: several register blocks, two panels of 640
/// columns, and AMX's passes, which are one or two blocks of 16 rows times two tiles or the one that is left
/// over.
struct Shape {
  std::int64_t rows, out, in;
};
constexpr Shape kShapes[] = {{1, 33, 517}, {3, 20, 39}, {9, 33, 661}, {26, 33, 650}};

struct Problem {
  Shape shape;
  std::int64_t stride;
  std::vector<std::int8_t> weights, x;  // [out, in], [rows, stride]
  std::vector<std::int32_t> sums, expected;
  std::vector<float> scales, inv_scales;
};

/// Weights of −largest … largest.
Problem make_problem(const Shape& s, int largest) {
  Problem p{s, quantized_stride(s.in), {}, {}, {}, {}, {}, {}};
  Rng rng(1);
  const auto values = static_cast<std::uint64_t>(2 * largest + 1);
  for (std::int64_t i = 0; i < s.out * s.in; ++i)
    p.weights.push_back(static_cast<std::int8_t>(static_cast<int>(rng.below(values)) - largest));
  p.x.resize(static_cast<std::size_t>(s.rows * p.stride));
  for (std::int64_t r = 0; r < s.rows; ++r) {
    std::int8_t* const row = p.x.data() + r * p.stride;
    std::int32_t sum = 0;
    for (std::int64_t k = 0; k < s.in; ++k) {
      row[k] = static_cast<std::int8_t>(static_cast<int>(rng.next() & 255) - 128);
      sum += row[k];
    }
    p.sums.push_back(sum);
    p.inv_scales.push_back(1.0f / static_cast<float>(r + 3));
    for (std::int64_t o = 0; o < s.out; ++o) {
      const std::int8_t* const w = p.weights.data() + o * s.in;
      std::int32_t acc = 0;
      for (std::int64_t k = 0; k < s.in; ++k) acc += row[k] * w[k];
      p.expected.push_back(acc);
    }
  }
  for (std::int64_t o = 0; o < s.out; ++o) p.scales.push_back(0.7f + static_cast<float>(o));
  return p;
}

template <class T>
void compare(const char* isa, const std::string& product, const Problem& p, const std::vector<T>& got,
             const std::vector<T>& expected) {
  if (got == expected) return;
  const auto at = std::mismatch(got.begin(), got.end(), expected.begin()).first - got.begin();
  const auto i = static_cast<std::size_t>(at);
  throw_failed_self_test(isa,
                         fmt::format("{}, {} rows of {} columns gave {} instead of {} in row {}, output {} "
                                     "of {}",
                                     product, p.shape.rows, p.shape.in, got[i], expected[i], at / p.shape.out,
                                     at % p.shape.out, p.shape.out));
}

/// The float results of a product.
std::vector<float> scaled(const Problem& p) {
  std::vector<float> y;
  for (std::size_t i = 0; i < p.expected.size(); ++i) {
    const auto out = static_cast<std::size_t>(p.shape.out);
    y.push_back(static_cast<float>(p.expected[i]) * (p.scales[i % out] * p.inv_scales[i / out]));
  }
  return y;
}

void test_product(const TernaryKernels& kernels, TileCode code, const Problem& p) {
  const auto& [rows, out, in] = p.shape;
  const std::int64_t lines = tile_lines(code, in), tiles = (out + kTileRows - 1) / kTileRows;
  std::vector<std::uint8_t> packed(static_cast<std::size_t>(tiles * lines * kLineBytes));
  for (std::int64_t t = 0; t < tiles; ++t)
    pack_tile(code, p.weights.data() + t * kTileRows * in, std::min(kTileRows, out - t * kTileRows), in,
              packed.data() + t * lines * kLineBytes);
  std::vector<std::int32_t> acc(p.expected.size());
  TernaryProduct product{.code = code,
                         .tiles = packed.data(),
                         .lines = lines,
                         .out = out,
                         .tile_begin = 0,
                         .tile_end = tiles,
                         .x = p.x.data(),
                         .stride = p.stride,
                         .rows = rows,
                         .sums = p.sums.data(),
                         .acc = acc.data(),
                         .y = nullptr,
                         .scales = p.scales.data(),
                         .inv_scales = p.inv_scales.data()};
  kernels.multiply(product);
  const std::string name = fmt::format("multiply of code {}", to_string(code));
  compare(kernels.isa, name, p, acc, p.expected);
  std::vector<float> y(acc.size());
  product.acc = nullptr;
  product.y = y.data();
  kernels.multiply(product);
  compare(kernels.isa, name, p, y, scaled(p));
}

void test_quantize(const TernaryKernels& kernels) {
  std::vector<float> x{0.5f,    1.5f, -2.5f, 127.5f,
                       -128.5f, 200,  -200,  std::numeric_limits<float>::quiet_NaN()};
  Rng rng(2);
  while (x.size() < 37) x.push_back(static_cast<float>(rng.below(5120)) / 16 - 160);
  std::vector<std::int8_t> q(x.size());
  const std::int32_t sum = kernels.quantize(x.data(), 1.0f, q.data(), x.size());
  std::int32_t expected_sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const int expected =
        std::isnan(x[i]) ? 0 : static_cast<int>(std::nearbyint(std::clamp(x[i], -128.0f, 127.0f)));
    expected_sum += expected;
    if (q[i] != expected)
      throw_failed_self_test(kernels.isa,
                             fmt::format("quantize gave {} instead of {} for {}", int{q[i]}, expected, x[i]));
  }
  if (sum != expected_sum)
    throw_failed_self_test(kernels.isa,
                           fmt::format("quantize gave the sum {} instead of {}", sum, expected_sum));
}

}  // namespace

void self_test(const TernaryKernels& kernels) {
  test_quantize(kernels);
  for (const Shape& shape : kShapes) {
    const Problem problem = make_problem(shape, 1);
    test_product(kernels, TileCode::kTwoBit, problem);
    test_product(kernels, TileCode::kBase3, problem);
  }
}

void self_test(const Int8Kernels& kernels) {
  for (const Shape& shape : kShapes) {
    const Problem p = make_problem(shape, 127);
    const auto& [rows, out, in] = p.shape;
    const std::int64_t lines = (in + kInt8LineColumns - 1) / kInt8LineColumns;
    const std::int64_t tiles = (out + kInt8TileRows - 1) / kInt8TileRows;
    std::vector<std::int8_t> packed(static_cast<std::size_t>(tiles * lines * kInt8LineBytes));
    for (std::int64_t i = 0; i < out * in; ++i) {
      const std::int64_t o = i / in, k = i % in;
      packed[static_cast<std::size_t>((o / 16 * lines + k / 4) * 64 + o % 16 * 4 + k % 4)] =
          p.weights[static_cast<std::size_t>(i)];
    }
    std::vector<std::int32_t> acc(p.expected.size());
    Int8Product product{.tiles = packed.data(),
                        .lines = lines,
                        .out = out,
                        .tile_begin = 0,
                        .tile_end = tiles,
                        .x = p.x.data(),
                        .stride = p.stride,
                        .rows = rows,
                        .sums = p.sums.data(),
                        .acc = acc.data(),
                        .y = nullptr,
                        .scales = p.scales.data(),
                        .inv_scales = p.inv_scales.data()};
    kernels.multiply(product);
    compare(kernels.isa, "multiply of int8", p, acc, p.expected);
    std::vector<float> y(acc.size());
    product.acc = nullptr;
    product.y = y.data();
    kernels.multiply(product);
    compare(kernels.isa, "multiply of int8", p, y, scaled(p));
  }
}

const TernaryKernels& tested_kernels(Isa isa) {
  static PassedIsas passed;
  return passed.tested(isa, ternary_kernels(isa), [](const TernaryKernels& k) { self_test(k); });
}

const Int8Kernels& tested_int8_kernels(Isa isa) {
  static PassedIsas passed;
  return passed.tested(isa, int8_kernels(isa), [](const Int8Kernels& k) { self_test(k); });
}

}  // namespace bitnet::quant
