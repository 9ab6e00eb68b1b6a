// What self_test.hpp says. The matrices are a fixed pseudo-random sequence, the reference is the definition.
#include "self_test.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/bit_linear.hpp"
#include "tile_packing.hpp"

namespace bitnet::quant {
namespace {

/// A linear congruential generator (Knuth's MMIX constants), upper bits.
class Sequence {
 public:
  std::uint32_t next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<std::uint32_t>(state_ >> 33);
  }

 private:
  std::uint64_t state_ = 1;
};

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
  Sequence sequence;
  const auto values = static_cast<std::uint32_t>(2 * largest + 1);
  for (std::int64_t i = 0; i < s.out * s.in; ++i)
    p.weights.push_back(static_cast<std::int8_t>(static_cast<int>(sequence.next() % values) - largest));
  p.x.resize(static_cast<std::size_t>(s.rows * p.stride));
  for (std::int64_t r = 0; r < s.rows; ++r) {
    std::int8_t* const row = p.x.data() + r * p.stride;
    std::int32_t sum = 0;
    for (std::int64_t k = 0; k < s.in; ++k) {
      row[k] = static_cast<std::int8_t>(static_cast<int>(sequence.next() & 255) - 128);
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

[[noreturn]] void fail(const std::string& isa, const std::string& what) {
  std::vector<std::string> others;
  for (const Isa other : compiled_isas())
    if (is_supported(other) && to_string(other) != isa) others.emplace_back(to_string(other));
  throw Error(
      ErrorCode::kDevice,
      fmt::format("self-test of the instruction set '{}': {}; this processor, or the compiler that made this "
                  "program, computes wrongly with it: set BITNET_ISA to another ({})",
                  isa, what, fmt::join(others, ", ")));
}

template <class T>
void compare(const char* isa, const std::string& product, const Problem& p, const std::vector<T>& got,
             const std::vector<T>& expected) {
  if (got == expected) return;
  const auto at = std::mismatch(got.begin(), got.end(), expected.begin()).first - got.begin();
  const auto i = static_cast<std::size_t>(at);
  fail(isa, fmt::format("{}, {} rows of {} columns gave {} instead of {} in row {}, output {} "
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
  Sequence sequence;
  while (x.size() < 37) x.push_back(static_cast<float>(sequence.next() % 5120) / 16 - 160);
  std::vector<std::int8_t> q(x.size());
  const std::int32_t sum = kernels.quantize(x.data(), 1.0f, q.data(), x.size());
  std::int32_t expected_sum = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const int expected =
        std::isnan(x[i]) ? 0 : static_cast<int>(std::nearbyint(std::clamp(x[i], -128.0f, 127.0f)));
    expected_sum += expected;
    if (q[i] != expected)
      fail(kernels.isa, fmt::format("quantize gave {} instead of {} for {}", int{q[i]}, expected, x[i]));
  }
  if (sum != expected_sum)
    fail(kernels.isa, fmt::format("quantize gave the sum {} instead of {}", sum, expected_sum));
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

namespace {

/// `kernels` once they have passed; two threads at once test twice.
template <class Kernels>
const Kernels& tested(const Kernels& kernels, std::atomic<bool>& passed) {
  if (!passed.load(std::memory_order_acquire)) {
    self_test(kernels);
    passed.store(true, std::memory_order_release);
  }
  return kernels;
}

}  // namespace

const TernaryKernels& tested_kernels(Isa isa) {
  static std::atomic<bool> passed[256];  // by Isa::index
  return tested(ternary_kernels(isa), passed[isa.index]);
}

const Int8Kernels& tested_int8_kernels(Isa isa) {
  static std::atomic<bool> passed[256];  // by Isa::index
  return tested(int8_kernels(isa), passed[isa.index]);
}

}  // namespace bitnet::quant
