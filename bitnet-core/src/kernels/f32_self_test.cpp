// self_test.hpp's comparisons, and the test of the float kernels. Compiled without contraction: what is fused
// is written.
#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <limits>
#include <memory>

#include "bitnet/core/dtype.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/core/self_test.hpp"
#include "kernels/self_test.hpp"

namespace bitnet {
namespace kernel_test {

float MultiplyAdd::operator()(float a, float b, float c) const {
  return fused ? std::fma(a, b, c) : a * b + c;
}

MultiplyAdd multiply_add_of(const F32Kernels& kernels) {
  // (1 + 2^-12)² − (1 + 2^-11) is 2^-24 if the product is not rounded by itself.
  const float x = 1 + 0x1p-12f;
  float y = -(1 + 0x1p-11f);
  kernels.axpy(x, &x, &y, 1);
  if (y != 0 && y != 0x1p-24f)
    throw_failed_self_test(kernels.isa, fmt::format("axpy gave {} instead of 0 or {}", y, 0x1p-24f));
  return {y != 0};
}

std::vector<float> random_floats(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> v(n);
  for (float& x : v) x = static_cast<float>(2 * rng.uniform() - 1);
  return v;
}

namespace {

template <class T, class Same>
void compare_all(const char* isa, const char* kernel, std::span<const T> got, std::span<const T> expected,
                 Same&& same) {
  for (std::size_t i = 0; i < expected.size(); ++i)
    if (!same(got[i], expected[i]))
      throw_failed_self_test(isa, fmt::format("{} gave {} instead of {} in element {} of {}", kernel, got[i],
                                              expected[i], i, expected.size()));
}

}  // namespace

void compare(const char* isa, const char* kernel, std::span<const float> got,
             std::span<const float> expected) {
  compare_all(isa, kernel, got, expected, [](float a, float b) {
    return std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b) ||
           (std::isnan(a) && std::isnan(b));
  });
}

void compare(const char* isa, const char* kernel, std::span<const std::int32_t> got,
             std::span<const std::int32_t> expected) {
  compare_all(isa, kernel, got, expected, [](std::int32_t a, std::int32_t b) { return a == b; });
}

}  // namespace kernel_test

namespace {

using namespace kernel_test;

constexpr std::size_t kN = 37;  // two blocks of 16 and five more

/// One table's test: x and y are random, the rest follows from them.
class F32Test {
 public:
  explicit F32Test(const F32Kernels& kernels) : k_(kernels), fma_(multiply_add_of(kernels)) {
    for (std::size_t i = 0; i < kN; ++i) {
      // Every exponent of f16, infinities and subnormals among them; no NaN. bf16: the same bits.
      half_.push_back(static_cast<std::uint16_t>((i * 1775u & 0xffffu) | (i == 36 ? 0x7c00u : 0u)));
      if ((half_[i] & 0x7c00u) == 0x7c00u) half_[i] &= 0xfc00u;
      from_half_.push_back(f16_to_f32(half_[i]));
      from_bf16_.push_back(bf16_to_f32(half_[i]));
      small_half_.push_back(f32_to_f16(x_[i]));
      small_bf16_.push_back(f32_to_bf16(x_[i]));
    }
  }

  void test_all() const {
    reductions();
    many_dots();
    rows();
    exponentials();
    rotary();
    gemm(false);
    gemm(true);
  }

 private:
  void same(const char* kernel, std::span<const float> got, std::span<const float> expected) const {
    compare(k_.isa, kernel, got, expected);
  }
  float dot(const float* a, const float* b) const {
    return sixteen_lanes(kN, [&](float acc, std::size_t i) { return fma_(a[i], b[i], acc); });
  }
  /// dot() of values that `widen` makes of 16 bits.
  template <class Widen>
  float dot16(const std::uint16_t* a, const float* b, Widen&& widen) const {
    return sixteen_lanes(kN, [&](float acc, std::size_t i) { return fma_(widen(a[i]), b[i], acc); });
  }

  void reductions() const {
    const float* const x = x_.data();
    compare(k_.isa, "dot", k_.dot(x, y_.data(), kN), dot(x, y_.data()));
    compare(k_.isa, "dot_f16", k_.dot_f16(small_half_.data(), x, kN),
            dot16(small_half_.data(), x, f16_to_f32));
    compare(k_.isa, "dot_bf16", k_.dot_bf16(small_bf16_.data(), x, kN),
            dot16(small_bf16_.data(), x, bf16_to_f32));
    compare(k_.isa, "sum", k_.sum(x, kN),
            sixteen_lanes(kN, [&](float acc, std::size_t i) { return acc + x[i]; }));
    compare(k_.isa, "sum_squares", k_.sum_squares(x, kN), dot(x, x));
    float max = x[0], max_abs = 0;
    for (const float v : x_) {
      max = std::max(max, v);
      max_abs = std::max(max_abs, std::fabs(v));
    }
    compare(k_.isa, "max", k_.max(x, kN), max);
    compare(k_.isa, "max_abs", k_.max_abs(x, kN), max_abs);
  }

  void many_dots() const {
    constexpr std::size_t kRows = 5, kCols = 5;
    const auto x = random_floats(kRows * kN, 3), w = random_floats(kCols * kN, 4);
    std::vector<std::uint16_t> half, bf16;
    for (const float v : w) {
      half.push_back(f32_to_f16(v));
      bf16.push_back(f32_to_bf16(v));
    }
    const float* rows[kRows];
    for (std::size_t r = 0; r < kRows; ++r) rows[r] = x.data() + r * kN;
    std::vector<float> y(kRows * kCols), expected;
    const auto test = [&](const char* kernel, auto run, const auto* weights, auto one) {
      run(rows, kRows, weights, kN, kCols, kN, y.data(), kCols);
      expected.clear();
      for (std::size_t i = 0; i < y.size(); ++i)
        expected.push_back(one(weights + i % kCols * kN, rows[i / kCols]));
      same(kernel, y, expected);
    };
    test("dots", k_.dots, w.data(), [&](const float* a, const float* b) { return dot(a, b); });
    test("dots_f16", k_.dots_f16, half.data(),
         [&](const std::uint16_t* a, const float* b) { return dot16(a, b, f16_to_f32); });
    test("dots_bf16", k_.dots_bf16, bf16.data(),
         [&](const std::uint16_t* a, const float* b) { return dot16(a, b, bf16_to_f32); });
  }

  /// run(to) against expected(i), element by element; `to` begins as `start`.
  template <class Run, class Expected>
  void row(const char* kernel, std::vector<float> to, Run&& run, Expected&& expected) const {
    std::vector<float> right;
    for (std::size_t i = 0; i < to.size(); ++i) right.push_back(expected(i));
    run(to.data());
    same(kernel, to, right);
  }

  void rows() const {
    const float *const x = x_.data(), *const y = y_.data();
    row(
        "axpy", y_, [&](float* to) { k_.axpy(0.37f, x, to, kN); },
        [&](std::size_t i) { return fma_(0.37f, x[i], y[i]); });
    const float a[3] = {0.37f, -0.11f, 0.83f};
    const auto several = random_floats(3 * kN, 5);
    row(
        "axpy_rows", y_, [&](float* to) { k_.axpy_rows(a, several.data(), kN, 3, to, kN); },
        [&](std::size_t i) {
          float v = y[i];
          for (std::size_t t = 0; t < 3; ++t) v = fma_(a[t], several[t * kN + i], v);
          return v;
        });
    row(
        "scale", x_, [&](float* to) { k_.scale(0.37f, to, kN); },
        [&](std::size_t i) { return 0.37f * x[i]; });
    row(
        "add", y_, [&](float* to) { k_.add(x, to, kN); }, [&](std::size_t i) { return y[i] + x[i]; });
    row(
        "mul", y_, [&](float* to) { k_.mul(x, to, kN); }, [&](std::size_t i) { return y[i] * x[i]; });
    row(
        "relu2_gate", y_, [&](float* to) { k_.relu2_gate(x, y, to, kN); },
        [&](std::size_t i) {
          const float relu = x[i] < 0 ? 0 : x[i];
          return relu * relu * y[i];
        });
    const float factor = 1.0f / std::sqrt(dot(x, x) / static_cast<float>(kN) + 1e-5f);
    row(
        "rms_norm", y_, [&](float* to) { k_.rms_norm(x, y, 1e-5f, to, kN); },
        [&](std::size_t i) { return x[i] * factor * y[i]; });
    row(
        "f16_to_f32", y_, [&](float* to) { k_.f16_to_f32(half_.data(), to, kN); },
        [&](std::size_t i) { return from_half_[i]; });
    row(
        "bf16_to_f32", y_, [&](float* to) { k_.bf16_to_f32(half_.data(), to, kN); },
        [&](std::size_t i) { return from_bf16_[i]; });
  }

  /// Throws unless |got − expected| ≤ ulps · 2^-23 · |expected|.
  void near(const char* kernel, float of, float got, double expected, double ulps) const {
    if (std::fabs(got - expected) <= ulps * 0x1p-23 * std::fabs(expected)) return;
    throw_failed_self_test(k_.isa, fmt::format("{} gave {} for {} instead of {} within {} ulp", kernel, got,
                                               of, expected, ulps));
  }

  /// The header's bounds: exp within 2 ulp, and a sum, a division and a product more in silu_gate.
  void exponentials() const {
    std::vector<float> gate = x_, out(kN);
    for (float& v : gate) v *= 40;
    k_.silu_gate(gate.data(), y_.data(), out.data(), kN);
    for (std::size_t i = 0; i < kN; ++i)
      near("silu_gate", gate[i], out[i], gate[i] / (1 + std::exp(-static_cast<double>(gate[i]))) * y_[i], 4);
    out = gate;
    out[7] = -std::numeric_limits<float>::infinity();
    const float sum = k_.exp_sum(out.data(), 0.5f, kN);
    compare(k_.isa, "exp_sum", out[7], 0.0f);
    for (std::size_t i = 0; i < kN; ++i)
      if (i != 7) near("exp_sum", gate[i], out[i], std::exp(static_cast<double>(gate[i] - 0.5f)), 2);
    compare(k_.isa, "exp_sum", sum,
            sixteen_lanes(kN, [&](float acc, std::size_t i) { return acc + out[i]; }));
  }

  void rotary() const {
    constexpr std::size_t kHalf = 21;
    const auto c = random_floats(kHalf, 6), s = random_floats(kHalf, 7), start = random_floats(2 * kHalf, 8);
    row(
        "rope", start, [&](float* to) { k_.rope(to, c.data(), s.data(), kHalf); },
        [&](std::size_t i) {
          const std::size_t j = i % kHalf;
          const float a = start[j], b = start[kHalf + j];
          return i < kHalf ? fma_(a, c[j], -(b * s[j])) : fma_(b, c[j], a * s[j]);
        });
  }

  /// More than one block of registers each way on every instruction set, and ragged ones.
  void gemm(bool accumulate) const {
    constexpr std::int64_t kRows = 9, kCols = 35, kDepth = 21;
    const auto a = random_floats(kRows * kDepth, 9), b = random_floats(kCols * kDepth, 10),
               start = random_floats(kRows * kCols, 11);
    constexpr std::size_t kAlignment = 64 / sizeof(float);
    const auto scratch = std::make_unique_for_overwrite<float[]>(k_.gemm_scratch + kAlignment);
    const auto address = reinterpret_cast<std::uintptr_t>(scratch.get()) / sizeof(float);
    float* const aligned = scratch.get() + (kAlignment - address % kAlignment) % kAlignment;
    row(
        "gemm", start,
        [&](float* c) {
          k_.gemm(kRows, kCols, kDepth, a.data(), kDepth, 1, b.data(), 1, kDepth, c, kCols, accumulate,
                  aligned);
        },
        [&](std::size_t i) {
          float sum = accumulate ? start[i] : 0;
          for (std::size_t k = 0; k < kDepth; ++k)
            sum = fma_(a[i / kCols * kDepth + k], b[i % kCols * kDepth + k], sum);
          return sum;
        });
  }

  const F32Kernels& k_;
  MultiplyAdd fma_;
  std::vector<float> x_ = random_floats(kN, 1), y_ = random_floats(kN, 2), from_half_, from_bf16_;
  std::vector<std::uint16_t> half_, small_half_, small_bf16_;
};

}  // namespace

void self_test(const F32Kernels& kernels) { F32Test(kernels).test_all(); }

}  // namespace bitnet
