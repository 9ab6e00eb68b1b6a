// The tensor ops' kernel table of one ISA (the one BITNET_ISA names): bounds of exp's kin over many values,
// conversions of every pattern, nothing touched beyond the arrays, and all ISAs of a class against each
// other. What the ops make of it is compared with NumPy in golden_test.cpp.
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "bitnet/core/dtype.hpp"
#include "bitnet/core/ops.hpp"
#include "bitnet/testing/guarded_buffer.hpp"
#include "bitnet/testing/testing.hpp"
#include "f32_support.hpp"
#include "kernels/tensor_table.hpp"

namespace bitnet {
namespace {

using testing::Guard;
using testing::GuardedBuffer;

const TensorKernels& kernels() { return tensor_kernels(default_isa()); }

float apply(ops::Unary op, float x) {
  float y = 0;
  kernels().unary[static_cast<std::size_t>(op)](&x, &y, 1);
  return y;
}

TEST(TensorKernels, TableIsTheOneAskedFor) {
  EXPECT_EQ(std::string(kernels().isa), to_string(default_isa()));
}

/// The largest error in ulps of 2^-23 relative over floats whose patterns are `step` apart.
template <class Exact>
double worst_ulps(ops::Unary op, float from, float to, std::uint32_t step, Exact exact) {
  double worst = 0;
  for (auto bits = std::bit_cast<std::uint32_t>(from); bits <= std::bit_cast<std::uint32_t>(to);
       bits += step) {
    const auto x = std::bit_cast<float>(bits);
    const double y = exact(static_cast<double>(x));
    worst = std::max(worst, std::fabs(apply(op, x) - y) / (std::fabs(y) * 0x1p-23));
  }
  return worst;
}

TEST(TensorKernels, TranscendentalsAreWithinTheirBounds) {
  const auto log = [](double x) { return std::log(x); };
  const auto tanh = [](double x) { return std::tanh(x); };
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  EXPECT_LE(worst_ulps(ops::Unary::kLog, 0x1p-149f, 0x1.fffffep127f, 9973, log), 3);
  EXPECT_LE(worst_ulps(ops::Unary::kLog, 0.9f, 0.99999994f, 101, log), 3);
  EXPECT_LE(worst_ulps(ops::Unary::kLog, 1.0000001f, 1.1f, 101, log), 3);
  EXPECT_LE(worst_ulps(ops::Unary::kTanh, 0x1p-120f, 20.0f, 9973, tanh), 4);
  EXPECT_LE(worst_ulps(ops::Unary::kTanh, 0.01f, 9.1f, 331, tanh), 4);
  EXPECT_LE(worst_ulps(ops::Unary::kSigmoid, 0x1p-120f, 80.0f, 9973, sigmoid), 4);
  EXPECT_EQ(apply(ops::Unary::kLog, 1.0f), 0.0f);
  EXPECT_EQ(apply(ops::Unary::kTanh, -20.0f), -1.0f);
  EXPECT_TRUE(std::signbit(apply(ops::Unary::kTanh, -0.0f)));
  EXPECT_TRUE(std::isnan(apply(ops::Unary::kLog, -1.0f)));
}

TEST(TensorKernels, ConversionsAreTheScalarOnes) {
  std::vector<float> x;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 65521)
    x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  for (std::uint32_t h = 0; h < 65536; ++h) {  // each half's neighbourhood, ties among it
    const float f = f16_to_f32(static_cast<std::uint16_t>(h));
    x.insert(x.end(), {f, std::nextafter(f, 1e9f), f + f * 0x1p-12f, f + f * 0x1p-9f});
  }
  std::vector<std::uint16_t> half(x.size()), brain(x.size());
  std::vector<std::int8_t> bytes(x.size());
  std::vector<std::int32_t> ints(x.size());
  kernels().f32_to_f16(x.data(), half.data(), x.size());
  kernels().f32_to_bf16(x.data(), brain.data(), x.size());
  kernels().f32_to_i8(x.data(), bytes.data(), x.size());
  kernels().f32_to_i32(x.data(), ints.data(), x.size());
  const auto integer = [](float f, double low, double high) {
    return std::isnan(f) ? 0.0 : std::clamp(std::nearbyint(static_cast<double>(f)), low, high);
  };
  for (std::size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(half[i], f32_to_f16(x[i])) << x[i];
    ASSERT_EQ(brain[i], f32_to_bf16(x[i])) << x[i];
    ASSERT_EQ(bytes[i], integer(x[i], -128, 127)) << x[i];
    ASSERT_EQ(ints[i], integer(x[i], -0x1p31, 0x1p31 - 1)) << x[i];
  }
}

/// Runs the whole table over n elements that end (or begin) at a forbidden page; a hash of all outputs.
std::uint64_t run_guarded(const TensorKernels& k, std::size_t n, Guard guard) {
  const auto values = test::random_floats(2 * n, 30 + n);
  GuardedBuffer<float> x(n, guard), y(n, guard), z(n, guard);
  GuardedBuffer<std::int8_t> bytes(n, guard);
  GuardedBuffer<std::uint16_t> halves(n, guard);
  GuardedBuffer<std::int32_t> ints(n, guard);
  for (std::size_t i = 0; i < n; ++i) {
    x[i] = 20 * values[i];
    y[i] = values[n + i];
  }
  test::Hash hash;
  const auto add_bytes = [&] {
    for (const std::int8_t b : bytes.span()) hash.add(static_cast<float>(b));
  };
  const auto add_halves = [&] {
    for (const std::uint16_t h : halves.span()) hash.add(static_cast<float>(h));
  };
  for (const bool x_one : {false, true})
    for (const bool y_one : {false, true}) {
      GuardedBuffer<float> one(1, guard);
      one[0] = 0.7f;
      for (const auto f : k.binary) {
        f(x_one ? one.data() : x.data(), x_one, y_one ? one.data() : y.data(), y_one, z.data(), n);
        hash.add(z.span());
      }
      for (const auto f : k.compare) {
        f(x_one ? one.data() : x.data(), x_one, y_one ? one.data() : y.data(), y_one, bytes.data(), n);
        add_bytes();
      }
    }
  for (const auto f : k.unary) {
    f(x.data(), z.data(), n);
    for (const float v : z.span()) hash.add(std::isnan(v) ? 0.0f : v);  // a NaN's bits are nobody's
  }
  k.clamp(x.data(), -3, 4, z.data(), n);
  hash.add(z.span());
  for (const float v :
       {k.max(x.data(), n), k.min(x.data(), n), k.sum_abs(x.data(), n), k.sum_deviations(x.data(), 0.3f, n)})
    hash.add(v);
  for (const std::size_t i : {k.arg_max(x.data(), n), k.arg_min(x.data(), n)})
    hash.add(static_cast<float>(i));
  // y as as many rows as are in it, two floats apart.
  for (const std::size_t columns : {std::size_t{1}, n / 2 + 1, n}) {
    const std::size_t rows = (n - columns) / 2 + 1;
    k.matvec(y.data(), 2, static_cast<std::int64_t>(rows), x.data(), static_cast<std::int64_t>(columns),
             z.data());
    hash.add(z.span().first(rows));
  }
  k.normalize(x.data(), 0.1f, 0.7f, y.data(), x.data(), z.data(), n);
  hash.add(z.span());
  k.normalize(x.data(), 0.1f, 0.7f, nullptr, nullptr, z.data(), n);
  hash.add(z.span());
  k.f32_to_f16(x.data(), halves.data(), n);
  add_halves();
  k.f32_to_bf16(x.data(), halves.data(), n);
  add_halves();
  k.f32_to_i8(x.data(), bytes.data(), n);
  add_bytes();
  k.i8_to_f32(bytes.data(), z.data(), n);
  hash.add(z.span());
  k.f32_to_i32(x.data(), ints.data(), n);
  k.i32_to_f32(ints.data(), z.data(), n);
  hash.add(z.span());
  return hash.value();
}

/// First index of the largest or smallest by plain comparison, a NaN being it.
std::size_t plain_place(std::span<const float> x, bool largest) {
  std::size_t best = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (std::isnan(x[i])) return i;
    if (largest ? x[i] > x[best] : x[i] < x[best]) best = i;
  }
  return best;
}

TEST(TensorKernels, ExtremesAndTheirPlacesAreThoseOfPlainLoops) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::size_t n : {1u, 2u, 7u, 16u, 31u, 64u, 65u, 511u, 512u, 513u, 1500u}) {
    const auto random = test::random_floats(n, n);
    std::vector<std::vector<float>> rows{random, std::vector<float>(n, -0.0f), std::vector<float>(n, -inf),
                                         std::vector<float>(n, inf)};
    for (std::size_t at = 0; at < n; at += n / 7 + 1) {
      std::vector<float> v = random;
      for (const std::size_t i : {at, n - 1}) v[i] = 2;  // a tie: the first one wins
      rows.push_back(v);
      v[at] = inf;
      v[n / 2] = -inf;
      rows.push_back(v);
      v[at] = -nan;
      v[n - 1] = nan;
      rows.push_back(v);
    }
    for (const auto& row : rows) {
      const std::size_t high = plain_place(row, true), low = plain_place(row, false);
      EXPECT_EQ(kernels().arg_max(row.data(), n), high);
      EXPECT_EQ(kernels().arg_min(row.data(), n), low);
      const float pairs[][2] = {{kernels().max(row.data(), n), row[high]},
                                {kernels().min(row.data(), n), row[low]}};
      for (const auto& [got, right] : pairs) {
        EXPECT_TRUE(std::isnan(right) ? std::isnan(got) : got == right) << got << " " << right << " " << n;
        EXPECT_FALSE(got == 0 && std::signbit(got));
      }
    }
  }
}

TEST(TensorKernels, VectorProductsAreGemms) {
  const F32Kernels& floats = f32_kernels(default_isa());
  std::vector<float> scratch(floats.gemm_scratch);
  for (const std::int64_t rows : {1, 3, 8, 9, 15, 16, 17, 37, 64, 150})
    for (const std::int64_t n : {1, 3, 4, 17, 300}) {
      const std::int64_t stride = n + 3;
      const auto w = test::random_floats(static_cast<std::size_t>(rows * stride), 1),
                 x = test::random_floats(static_cast<std::size_t>(n), 2);
      std::vector<float> got(static_cast<std::size_t>(rows)), expected(got);
      kernels().matvec(w.data(), stride, rows, x.data(), n, got.data());
      floats.gemm(1, rows, n, x.data(), n, 1, w.data(), 1, stride, expected.data(), rows, false,
                  scratch.data());
      EXPECT_EQ(got, expected) << rows << " " << n;
    }
}

TEST(TensorKernels, NothingBeyondTheArraysIsTouched) {
  for (std::size_t n = 1; n <= 70; ++n)
    EXPECT_EQ(run_guarded(kernels(), n, Guard::kAfter), run_guarded(kernels(), n, Guard::kBefore)) << n;
}

TEST(TensorKernels, IsasOfOneClassGiveTheSameBits) {
  const TensorKernels* previous[2] = {nullptr, nullptr};
  for (const Isa isa : compiled_isas()) {
    if (!is_supported(isa)) continue;
    const TensorKernels*& other = previous[testing::is_fused(f32_kernels(isa)) ? 1 : 0];
    const TensorKernels& table = tensor_kernels(isa);
    for (const std::size_t n : {1u, 5u, 16u, 37u, 300u, 1027u}) {
      if (other == nullptr) continue;
      EXPECT_EQ(run_guarded(*other, n, Guard::kAfter), run_guarded(table, n, Guard::kAfter))
          << other->isa << " " << table.isa << " " << n;
    }
    other = &table;
  }
}

}  // namespace
}  // namespace bitnet
