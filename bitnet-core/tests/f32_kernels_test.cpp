// The float kernels of one ISA (the one BITNET_ISA names) against references written from their definitions,
// and all ISAs of this CPU against each other. The gemm's own tests are in f32_gemm_test.cpp.
#include "bitnet/core/f32_kernels.hpp"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "bitnet/core/dtype.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/testing/guarded_buffer.hpp"
#include "bitnet/testing/testing.hpp"
#include "f32_support.hpp"

namespace bitnet {
namespace {

using testing::Guard;
using testing::GuardedBuffer;

const F32Kernels& kernels() { return f32_kernels(default_isa()); }

const std::size_t kSizes[] = {0, 1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 100, 1000, 1027};

/// The definition of every sum: 16 lanes, folded pairwise.
template <class Step>
float sixteen_lanes(std::size_t n, float start, Step step) {
  float lane[16];
  for (float& v : lane) v = start;
  for (std::size_t i = 0; i < n; ++i) lane[i % 16] = step(lane[i % 16], i);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

float multiply_add(float a, float b, float c) {
  if (testing::is_fused(kernels())) return std::fma(a, b, c);
  volatile float product = a * b;  // rounded by itself
  return product + c;
}

TEST(F32Kernels, TableIsTheOneAskedFor) { EXPECT_EQ(std::string(kernels().isa), to_string(default_isa())); }

TEST(F32Kernels, DotFollowsItsDefinitionToTheBit) {
  for (const std::size_t n : kSizes) {
    const auto x = test::random_floats(n, 1), y = test::random_floats(n, 2);
    EXPECT_EQ(kernels().dot(x.data(), y.data(), n),
              sixteen_lanes(n, 0, [&](float acc, std::size_t i) { return multiply_add(x[i], y[i], acc); }))
        << n;
    EXPECT_EQ(kernels().sum_squares(x.data(), n),
              sixteen_lanes(n, 0, [&](float acc, std::size_t i) { return multiply_add(x[i], x[i], acc); }))
        << n;
    EXPECT_EQ(kernels().sum(x.data(), n),
              sixteen_lanes(n, 0, [&](float acc, std::size_t i) { return acc + x[i]; }))
        << n;
  }
}

TEST(F32Kernels, DotOfHalfPrecisionWidensFirst) {
  for (const std::size_t n : kSizes) {
    const auto x = test::random_floats(n, 3), y = test::random_floats(n, 4);
    std::vector<std::uint16_t> half(n), brain(n);
    std::vector<float> from_half(n), from_brain(n);
    for (std::size_t i = 0; i < n; ++i) {
      half[i] = f32_to_f16(x[i]);
      brain[i] = f32_to_bf16(x[i]);
      from_half[i] = f16_to_f32(half[i]);
      from_brain[i] = bf16_to_f32(brain[i]);
    }
    EXPECT_EQ(kernels().dot_f16(half.data(), y.data(), n), kernels().dot(from_half.data(), y.data(), n)) << n;
    EXPECT_EQ(kernels().dot_bf16(brain.data(), y.data(), n), kernels().dot(from_brain.data(), y.data(), n))
        << n;
  }
}

TEST(F32Kernels, ManyDotsAreSingleDotsToTheBit) {
  for (const std::size_t n : {1u, 16u, 37u, 100u, 512u})
    for (const std::size_t rows : {1u, 3u, 4u, 9u})
      for (const std::size_t cols : {1u, 4u, 11u}) {
        const auto x = test::random_floats(rows * n, 14), w = test::random_floats(cols * n, 15);
        GuardedBuffer<float> gx(std::span<const float>{x}), gw(std::span<const float>{w});
        GuardedBuffer<std::uint16_t> half(w.size()), brain(w.size());
        for (std::size_t i = 0; i < w.size(); ++i) {
          half[i] = f32_to_f16(w[i]);
          brain[i] = f32_to_bf16(w[i]);
        }
        std::vector<const float*> pointers;
        for (std::size_t r = 0; r < rows; ++r) pointers.push_back(gx.data() + r * n);
        const auto stride = static_cast<std::int64_t>(n), r_count = static_cast<std::int64_t>(rows),
                   c_count = static_cast<std::int64_t>(cols);
        GuardedBuffer<float> y(rows * cols), y_half(rows * cols), y_brain(rows * cols);
        kernels().dots(pointers.data(), r_count, gw.data(), stride, c_count, n, y.data(), c_count);
        kernels().dots_f16(pointers.data(), r_count, half.data(), stride, c_count, n, y_half.data(), c_count);
        kernels().dots_bf16(pointers.data(), r_count, brain.data(), stride, c_count, n, y_brain.data(),
                            c_count);
        for (std::size_t i = 0; i < rows * cols; ++i) {
          const float* const row = pointers[i / cols];
          const std::size_t at = i % cols * n;
          ASSERT_EQ(y[i], kernels().dot(gw.data() + at, row, n));
          ASSERT_EQ(y_half[i], kernels().dot_f16(half.data() + at, row, n));
          ASSERT_EQ(y_brain[i], kernels().dot_bf16(brain.data() + at, row, n));
        }
      }
}

TEST(F32Kernels, MaximaIncludeNegativesAndEmptyRows) {
  EXPECT_EQ(kernels().max(nullptr, 0), -std::numeric_limits<float>::infinity());
  EXPECT_EQ(kernels().max_abs(nullptr, 0), 0.0f);
  for (const std::size_t n : kSizes) {
    if (n == 0) continue;
    auto x = test::random_floats(n, 5);
    for (float& v : x) v -= 10;  // all negative
    float largest = x[0], largest_abs = 0;
    for (const float v : x) {
      largest = std::max(largest, v);
      largest_abs = std::max(largest_abs, std::fabs(v));
    }
    EXPECT_EQ(kernels().max(x.data(), n), largest) << n;
    EXPECT_EQ(kernels().max_abs(x.data(), n), largest_abs) << n;
    for (const std::size_t at : {std::size_t{0}, n / 2, n - 1}) {
      for (const float bad : {std::nanf(""), -std::nanf("")}) {
        auto broken = x;
        broken[(at + 1) % n] = std::numeric_limits<float>::infinity();
        broken[at] = bad;
        EXPECT_TRUE(std::isnan(kernels().max_abs(broken.data(), n))) << n << ", " << at;
      }
      auto infinite = x;
      infinite[at] = -std::numeric_limits<float>::infinity();
      EXPECT_EQ(kernels().max_abs(infinite.data(), n), std::numeric_limits<float>::infinity()) << n;
    }
  }
}

TEST(F32Kernels, ElementwiseFollowTheirDefinitions) {
  for (const std::size_t n : kSizes) {
    const auto x = test::random_floats(n, 6), y = test::random_floats(n, 7);
    auto axpy = y, scale = x, add = y, mul = y;
    std::vector<float> relu2(n);
    kernels().axpy(0.37f, x.data(), axpy.data(), n);
    kernels().scale(0.37f, scale.data(), n);
    kernels().add(x.data(), add.data(), n);
    kernels().mul(x.data(), mul.data(), n);
    kernels().relu2_gate(x.data(), y.data(), relu2.data(), n);
    for (std::size_t i = 0; i < n; ++i) {
      const float relu = x[i] > 0 ? x[i] : 0;
      ASSERT_EQ(axpy[i], multiply_add(0.37f, x[i], y[i]));
      ASSERT_EQ(scale[i], 0.37f * x[i]);
      ASSERT_EQ(add[i], y[i] + x[i]);
      ASSERT_EQ(mul[i], y[i] * x[i]);
      ASSERT_EQ(relu2[i], relu * relu * y[i]);
    }
  }
  const float nan = std::nanf(""), one = 1;
  float out = 0;
  kernels().relu2_gate(&nan, &one, &out, 1);
  EXPECT_TRUE(std::isnan(out));
}

TEST(F32Kernels, AxpyOfRowsIsOneAxpyARow) {
  for (const std::size_t n : {1u, 15u, 16u, 64u, 67u, 100u, 131u}) {
    const std::size_t rows = 9, stride = n + 3;
    const auto x = test::random_floats(rows * stride - 3, 16), a = test::random_floats(rows, 17),
               start = test::random_floats(n, 18);
    GuardedBuffer<float> gx(std::span<const float>{x}), ga(std::span<const float>{a}),
        y(std::span<const float>{start});
    kernels().axpy_rows(ga.data(), gx.data(), static_cast<std::int64_t>(stride),
                        static_cast<std::int64_t>(rows), y.data(), n);
    auto expected = start;
    for (std::size_t t = 0; t < rows; ++t) kernels().axpy(a[t], x.data() + t * stride, expected.data(), n);
    for (std::size_t i = 0; i < n; ++i) ASSERT_EQ(y[i], expected[i]) << n;
  }
}

TEST(F32Kernels, RmsNormDividesByTheRootMeanSquare) {
  for (const std::size_t n : kSizes) {
    const auto x = test::random_floats(n, 8), w = test::random_floats(n, 9);
    std::vector<float> y(n);
    kernels().rms_norm(x.data(), w.data(), 1e-5f, y.data(), n);
    double squares = 0;
    for (const float v : x) squares += static_cast<double>(v) * v;
    for (std::size_t i = 0; i < n; ++i) {
      const double expected = x[i] / std::sqrt(squares / static_cast<double>(n) + 1e-5f) * w[i];
      // ≤ n/16 + 5 roundings in the sum of positive terms, halved by the root, then division, root and two
      // products.
      const double bound = (static_cast<double>(n) / 32 + 8) * std::ldexp(1.0, -24) * std::fabs(expected);
      ASSERT_NEAR(y[i], expected, bound) << n;
    }
  }
}

TEST(F32Kernels, RopeRotatesPairs) {
  for (const std::size_t half : {1u, 3u, 8u, 16u, 50u, 64u}) {
    const auto x = test::random_floats(2 * half, 10);
    std::vector<float> cosine(half), sine(half);
    for (std::size_t i = 0; i < half; ++i) {
      cosine[i] = static_cast<float>(std::cos(0.1 * static_cast<double>(i)));
      sine[i] = static_cast<float>(std::sin(0.1 * static_cast<double>(i)));
    }
    auto y = x;
    kernels().rope(y.data(), cosine.data(), sine.data(), half);
    for (std::size_t i = 0; i < half; ++i) {
      const float a = x[i], b = x[half + i];
      ASSERT_EQ(y[i], multiply_add(a, cosine[i], -(b * sine[i])));
      ASSERT_EQ(y[half + i], multiply_add(b, cosine[i], a * sine[i]));
    }
  }
}

/// e^(x − m) through exp_sum.
std::vector<float> exponentials(std::vector<float> x) {
  kernels().exp_sum(x.data(), 0, x.size());
  return x;
}

TEST(F32Kernels, ExpIsWithinTwoUlp) {
  std::vector<float> x;
  for (double v = -87.3; v < 88.7; v += 0.00137) x.push_back(static_cast<float>(v));
  const auto y = exponentials(x);
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i]));
    worst = std::max(worst, std::fabs(y[i] - exact) / (exact * std::ldexp(1.0, -23)));
  }
  EXPECT_LE(worst, 2.0);
  RecordProperty("worst_ulp", std::to_string(worst));
}

TEST(F32Kernels, ExpAtTheEdges) {
  const float inf = std::numeric_limits<float>::infinity();
  const auto y =
      exponentials({-inf, inf, 0.0f, -0.0f, 88.72f, 88.73f, 200.0f, -104.5f, -1e30f, std::nanf(""), -95.0f});
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_EQ(y[1], inf);
  EXPECT_EQ(y[2], 1.0f);
  EXPECT_EQ(y[3], 1.0f);
  EXPECT_TRUE(std::isfinite(y[4]));
  EXPECT_EQ(y[5], inf);
  EXPECT_EQ(y[6], inf);
  EXPECT_EQ(y[7], 0.0f);
  EXPECT_EQ(y[8], 0.0f);
  EXPECT_TRUE(std::isnan(y[9]));
  // Subnormal: the error is at most one step of the subnormal grid.
  EXPECT_NEAR(y[10], std::exp(-95.0), std::ldexp(1.0, -149));
}

TEST(F32Kernels, ExpSumIsTheSumOfItsElements) {
  for (const std::size_t n : kSizes) {
    auto x = test::random_floats(n, 11);
    const float sum = kernels().exp_sum(x.data(), 0.5f, n);
    EXPECT_EQ(sum, kernels().sum(x.data(), n)) << n;
  }
}

TEST(F32Kernels, SiluGate) {
  const std::size_t n = 1027;
  auto gate = test::random_floats(n, 12);
  for (float& v : gate) v *= 30;
  gate[0] = -200;  // e^200 overflows: the result must be −0, not NaN
  const auto up = test::random_floats(n, 13);
  std::vector<float> out(n);
  kernels().silu_gate(gate.data(), up.data(), out.data(), n);
  for (std::size_t i = 0; i < n; ++i) {
    const double expected = gate[i] / (1 + std::exp(-static_cast<double>(gate[i]))) * up[i];
    // exp ≤ 2 ulp, then a sum, a division and a product of half an ulp each: ≤ 4 ulp of 2^-23.
    ASSERT_NEAR(out[i], expected, 4 * std::ldexp(1.0, -23) * std::fabs(expected) + 1e-37) << gate[i];
  }
}

TEST(F32Kernels, EveryHalfPrecisionValueWidensExactly) {
  std::vector<std::uint16_t> all(65536);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<std::uint16_t>(i);
  std::vector<float> half(all.size()), brain(all.size());
  kernels().f16_to_f32(all.data(), half.data(), all.size());
  kernels().bf16_to_f32(all.data(), brain.data(), all.size());
  for (std::size_t i = 0; i < all.size(); ++i) {
    const float expected = f16_to_f32(all[i]);
    auto bits = std::bit_cast<std::uint32_t>(expected);
    if (std::isnan(expected)) bits |= 0x400000u;  // hardware makes NaNs quiet
    ASSERT_EQ(std::bit_cast<std::uint32_t>(half[i]), bits) << i;
    ASSERT_EQ(std::bit_cast<std::uint32_t>(brain[i]), static_cast<std::uint32_t>(i) << 16);
  }
}

/// Runs every row kernel over n elements that end (or begin) at a forbidden page; the result is a hash of all
/// outputs.
std::uint64_t run_guarded(const F32Kernels& k, std::size_t n, Guard guard) {
  const auto values = test::random_floats(2 * n, 20 + n);
  const auto fill = [&](GuardedBuffer<float>& b, std::size_t offset) {
    for (std::size_t i = 0; i < b.size(); ++i) b[i] = values[(i + offset) % values.size()];
  };
  GuardedBuffer<float> x(n, guard), y(n, guard), z(n, guard), pairs(2 * n, guard);
  GuardedBuffer<std::uint16_t> h(n, guard);
  fill(x, 0);
  fill(y, 1);
  fill(pairs, 0);
  for (std::size_t i = 0; i < n; ++i) h[i] = static_cast<std::uint16_t>((i * 37) & 0x3fff);
  test::Hash hash;
  hash.add(k.dot(x.data(), y.data(), n));
  hash.add(k.dot_f16(h.data(), y.data(), n));
  hash.add(k.dot_bf16(h.data(), y.data(), n));
  hash.add(k.sum(x.data(), n));
  hash.add(k.sum_squares(x.data(), n));
  hash.add(k.max(x.data(), n));
  hash.add(k.max_abs(x.data(), n));
  k.axpy(0.3f, x.data(), y.data(), n);
  hash.add(y.span());
  k.rms_norm(x.data(), y.data(), 1e-5f, z.data(), n);
  hash.add(z.span());
  k.relu2_gate(x.data(), y.data(), z.data(), n);
  hash.add(z.span());
  k.silu_gate(x.data(), y.data(), z.data(), n);
  hash.add(z.span());
  hash.add(k.exp_sum(z.data(), 0.1f, n));
  hash.add(z.span());
  k.scale(0.7f, z.data(), n);
  k.add(x.data(), z.data(), n);
  k.mul(y.data(), z.data(), n);
  hash.add(z.span());
  k.rope(pairs.data(), x.data(), y.data(), n);
  hash.add(pairs.span());
  k.f16_to_f32(h.data(), z.data(), n);
  hash.add(z.span());
  k.bf16_to_f32(h.data(), z.data(), n);
  hash.add(z.span());
  return hash.value();
}

TEST(F32Kernels, NothingBeyondTheArraysIsTouched) {
  for (std::size_t n = 1; n <= 70; ++n)
    EXPECT_EQ(run_guarded(kernels(), n, Guard::kAfter), run_guarded(kernels(), n, Guard::kBefore)) << n;
}

TEST(F32Kernels, IsasOfOneClassGiveTheSameBits) {
  for (const std::size_t n : {1u, 5u, 16u, 37u, 300u, 1027u}) {
    for (const auto& [a, b] : test::pairs_of_one_class())
      EXPECT_EQ(run_guarded(*a, n, Guard::kAfter), run_guarded(*b, n, Guard::kAfter))
          << a->isa << " " << b->isa << " " << n;
  }
}

}  // namespace
}  // namespace bitnet
