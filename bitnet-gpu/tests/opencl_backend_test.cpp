// The OpenCL backend against the definition written out (and against quant's BitLinear, the CPU's code):
// every comparison is to the bit. Runs on the first OpenCL device, PoCL in the project's own checks.
#include <gtest/gtest.h>

#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/gpu/register.hpp"
#include "bitnet/quant/bit_linear.hpp"
#include "bitnet/testing/opencl.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

struct Ternary {
  std::int64_t out = 0, in = 0, rows_per_scale = 0;
  std::vector<std::int8_t> trits;  // [out, in]
  std::vector<float> scales;
  LinearWeights view() const {
    LinearWeights w;
    w.out = out;
    w.in = in;
    w.trits = trits;
    w.scales = scales;
    w.rows_per_scale = rows_per_scale;
    return w;
  }
};

Ternary random_ternary(Rng& rng, std::int64_t out, std::int64_t in, std::int64_t rows_per_scale) {
  Ternary w{out, in, rows_per_scale, {}, {}};
  for (std::int64_t i = 0; i < out * in; ++i) w.trits.push_back(static_cast<std::int8_t>(rng.below(3)) - 1);
  for (std::int64_t i = 0; i < (out - 1) / rows_per_scale + 1; ++i)
    w.scales.push_back(static_cast<float>(0.01 + rng.uniform()));
  return w;
}

std::vector<float> random_rows(Rng& rng, std::int64_t n) {
  std::vector<float> x(static_cast<std::size_t>(n));
  for (float& v : x) v = static_cast<float>(rng.normal());
  return x;
}

// The definition (docs/numerics.md), one row: quantise, multiply in 64 bits, scale.
std::vector<float> reference(const Ternary& w, const std::vector<float>& x, std::int64_t rows) {
  std::vector<float> y;
  for (std::int64_t r = 0; r < rows; ++r) {
    const float* row = x.data() + r * w.in;
    float largest = 0;
    for (std::int64_t k = 0; k < w.in; ++k) largest = std::max(largest, std::fabs(row[k]));
    const volatile float a = 127.0f / std::max(largest, 1e-5f);
    const volatile float inverse = 1.0f / a;
    std::vector<std::int64_t> q;
    for (std::int64_t k = 0; k < w.in; ++k) {
      const volatile float scaled = row[k] * a;
      q.push_back(static_cast<std::int64_t>(std::min(127.0f, std::max(-128.0f, std::nearbyint(scaled)))));
    }
    for (std::int64_t o = 0; o < w.out; ++o) {
      std::int64_t acc = 0;
      for (std::int64_t k = 0; k < w.in; ++k) acc += q[k] * w.trits[o * w.in + k];
      const volatile float scale = w.scales[o / w.rows_per_scale] * inverse;
      y.push_back(static_cast<float>(acc) * scale);
    }
  }
  return y;
}

// Position of the first value whose bits differ, or -1. NaNs are equal: their signs and payloads mean
// nothing.
std::int64_t first_difference(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(&a[i], &b[i], sizeof(float)) != 0 && !(std::isnan(a[i]) && std::isnan(b[i])))
      return static_cast<std::int64_t>(i);
  return -1;
}

class OpenCl : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    BackendRegistry registry;
    gpu::register_backends(registry);
    if (registry.devices().empty()) return;
    context = std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 1, .isa = {}});
    backend = registry.create(registry.devices()[0].name, context);
  }
  static void TearDownTestSuite() {
    backend.reset();
    context.reset();
  }
  void SetUp() override { BITNET_REQUIRE_OPENCL_DEVICE(backend != nullptr); }

  static std::vector<float> run(Backend& on, const Ternary& w, const std::vector<float>& x,
                                std::int64_t rows) {
    const PreparedPtr prepared = on.prepare(w.view());
    const BufferPtr in = on.allocate(x.size() * sizeof(float));
    const BufferPtr out = on.allocate(static_cast<std::size_t>(rows * w.out) * sizeof(float));
    on.upload(*in, 0, std::as_bytes(std::span(x)));
    const PreparedWeights* weights[] = {prepared.get()};
    const Matrix outs[] = {{out.get(), 0, rows, w.out}};
    on.linear(weights, {in.get(), 0, rows, w.in}, outs);
    std::vector<float> y(static_cast<std::size_t>(rows * w.out));
    on.download(*out, 0, std::as_writable_bytes(std::span(y)));
    return y;
  }

  static std::vector<float> on_cpu(const Ternary& w, const std::vector<float>& x, std::int64_t rows) {
    const quant::BitLinear cpu(*context, w.out, w.in, w.trits, w.scales, w.rows_per_scale);
    quant::QuantizedRows q;
    quant::quantize_rows(*context, x, rows, w.in, q);
    std::vector<float> y(static_cast<std::size_t>(rows * w.out));
    cpu.forward(*context, q, y);
    return y;
  }

  static void expect_reference(const Ternary& w, const std::vector<float>& x, std::int64_t rows) {
    const auto got = run(*backend, w, x, rows);
    const auto want = reference(w, x, rows);
    const auto at = first_difference(got, want);
    EXPECT_EQ(at, -1) << rows << " rows, " << w.out << " x " << w.in << ": " << got[at] << " instead of "
                      << want[at];
  }

  static inline std::shared_ptr<const ExecutionContext> context;
  static inline std::unique_ptr<Backend> backend;
};

TEST_F(OpenCl, LinearEqualsTheDefinition) {
  Rng rng(1);
  for (const std::int64_t rows : {1, 2, 3, 7, 8, 9, 16, 17})
    for (const std::int64_t in : {1, 15, 16, 17, 100, 257})
      for (const std::int64_t out : {1, 5, 63, 64, 65, 130}) {
        const Ternary w = random_ternary(rng, out, in, rows % 2 == 0 ? out : 1 + out / 3);
        expect_reference(w, random_rows(rng, rows * in), rows);
      }
}

TEST_F(OpenCl, LinearEqualsTheCpu) {
  Rng rng(2);
  for (const std::int64_t rows : {1, 5, 17}) {
    const Ternary w = random_ternary(rng, 193, 2563, 193);
    const auto x = random_rows(rng, rows * w.in);
    EXPECT_EQ(first_difference(run(*backend, w, x, rows), on_cpu(w, x, rows)), -1) << rows << " rows";
  }
}

// Row absmax 127 makes a = 1 and the result the integer itself; all codes and activations at their extremes.
TEST_F(OpenCl, IntegersAreExactAtTheExtremes) {
  for (const std::int8_t trit : {-1, 1}) {
    Ternary w{3, 60'001, 3, std::vector<std::int8_t>(3 * 60'001, trit), {1.0f}};
    const std::vector<float> x(static_cast<std::size_t>(w.in), -127.0f);
    EXPECT_EQ(run(*backend, w, x, 1), std::vector<float>(3, -127.0f * 60'001.0f * static_cast<float>(trit)));
  }
}

// With the identity as weights a result is q * inv_scale: one wrong q or scale shows.
TEST_F(OpenCl, QuantizerTiesZerosAndRanges) {
  constexpr std::int64_t kCols = 66;
  Ternary identity{kCols, kCols, kCols, std::vector<std::int8_t>(kCols * kCols, 0), {1.0f}};
  for (std::int64_t i = 0; i < kCols; ++i) identity.trits[i * kCols + i] = 1;
  Rng rng(3);
  std::vector<std::vector<float>> rows;
  rows.emplace_back(kCols, 0.0f);
  rows.emplace_back(kCols, -0.0f);
  rows.emplace_back(kCols, 9e-6f);        // below the floor of 1e-5
  rows.emplace_back(kCols, FLT_MIN / 4);  // subnormal
  rows.emplace_back(kCols, FLT_MAX);
  std::vector<float> ties(kCols, 127.0f);  // a = 1: halves stay halves
  for (std::int64_t i = 1; i < kCols; ++i)
    ties[i] = (i % 2 == 0 ? -1.0f : 1.0f) * (static_cast<float>(i) + 0.5f);
  rows.push_back(ties);
  for (const float magnitude : {1e-30f, 1e-6f, 1e-5f, 1e-3f, 1.0f, 1e6f, 1e30f}) {
    auto row = random_rows(rng, kCols);
    for (float& v : row) v *= magnitude;
    rows.push_back(row);
  }
  std::vector<float> x;
  for (const auto& row : rows) x.insert(x.end(), row.begin(), row.end());
  expect_reference(identity, x, static_cast<std::int64_t>(rows.size()));
}

TEST_F(OpenCl, NanAndInfinityGiveWhatTheCpuGives) {
  Rng rng(6);
  constexpr std::int64_t kIn = 70;
  const Ternary w = random_ternary(rng, 33, kIn, 33);
  std::vector<float> x = random_rows(rng, 4 * kIn);
  x[5] = std::nanf("");
  x[kIn + 9] = HUGE_VALF;
  x[2 * kIn] = -HUGE_VALF;
  for (std::int64_t i = 0; i < kIn; ++i) x[3 * kIn + i] = std::nanf("");
  const auto want = on_cpu(w, x, 4);
  for (const float y : want) EXPECT_TRUE(std::isnan(y));  // of the whole row, which the sampler refuses
  EXPECT_EQ(first_difference(run(*backend, w, x, 4), want), -1);
}

// 1 x 1: each row is a division of its own. More rows than one chunk of the backend.
TEST_F(OpenCl, DivisionsAreCorrectlyRounded) {
  Rng rng(4);
  Ternary one{1, 1, 1, {1}, {1.0f}};
  std::vector<float> x;
  for (int i = 0; i < 5000; ++i) x.push_back(static_cast<float>(std::exp(rng.normal() * 10)));
  for (int i = 1; i <= 1000; ++i) x.push_back(static_cast<float>(i));
  for (int i = 0; i < 30; ++i) x.push_back(std::ldexp(1.0f, i - 15));
  expect_reference(one, x, static_cast<std::int64_t>(x.size()));
}

TEST_F(OpenCl, SeveralWeightsWithinLargerBuffers) {
  Rng rng(5);
  constexpr std::int64_t kRows = 5, kIn = 70;
  constexpr std::size_t kBefore = 12, kAfter = 20;  // floats around each matrix
  const Ternary w[] = {random_ternary(rng, 33, kIn, 33), random_ternary(rng, 70, kIn, 1)};
  const auto x = random_rows(rng, kRows * kIn);
  const BufferPtr in = backend->allocate((kBefore + x.size()) * sizeof(float));
  backend->upload(*in, kBefore * sizeof(float), std::as_bytes(std::span(x)));
  std::vector<PreparedPtr> prepared;
  std::vector<const PreparedWeights*> weights;
  std::vector<BufferPtr> buffers;
  std::vector<Matrix> outs;
  for (const Ternary& one : w) {
    weights.push_back(prepared.emplace_back(backend->prepare(one.view())).get());
    const std::size_t floats = kBefore + static_cast<std::size_t>(kRows * one.out) + kAfter;
    Buffer* b = buffers.emplace_back(backend->allocate(floats * sizeof(float))).get();
    const std::vector<float> mark(floats, -7.5f);
    backend->upload(*b, 0, std::as_bytes(std::span(mark)));
    outs.push_back({b, kBefore * sizeof(float), kRows, one.out});
  }
  backend->linear(weights, {in.get(), kBefore * sizeof(float), kRows, kIn}, outs);
  backend->sync();
  for (std::size_t i = 0; i < 2; ++i) {
    auto want = reference(w[i], x, kRows);
    want.insert(want.begin(), kBefore, -7.5f);
    want.insert(want.end(), kAfter, -7.5f);
    std::vector<float> got(want.size());
    backend->download(*buffers[i], 0, std::as_writable_bytes(std::span(got)));
    EXPECT_EQ(first_difference(got, want), -1) << "weight " << i;
  }
}

TEST_F(OpenCl, ResultsDoNotDependOnTheWorkGroupSizes) {
  BackendRegistry registry;
  gpu::Options options;
  options.build_options = "-DBN_OUT_WG=16 -DBN_QUANT_WG=32";
  options.kernels.wide = false;
  gpu::register_backends(registry, options);
  const auto tuned = registry.create(registry.devices()[0].name, context);
  Rng rng(6);
  const Ternary w = random_ternary(rng, 77, 131, 77);
  const auto x = random_rows(rng, 9 * w.in);
  EXPECT_EQ(first_difference(run(*tuned, w, x, 9), run(*backend, w, x, 9)), -1);
}

TEST_F(OpenCl, BuffersAreZeroFilledAndCounted) {
  const std::size_t before = backend->available_memory(), used = backend->memory()->stats().used;
  {
    const BufferPtr buffer = backend->allocate(4097);
    EXPECT_EQ(buffer->bytes(), 4097u);
    EXPECT_LE(backend->available_memory(), before - 4097);
    EXPECT_GE(backend->available_memory(), before - 4097 * 9 / 8);  // the pool rounds up
    EXPECT_EQ(backend->memory()->stats().used, before - backend->available_memory() + used);
    std::vector<std::byte> bytes(4097, std::byte{1});
    backend->download(*buffer, 0, bytes);
    EXPECT_EQ(bytes, std::vector<std::byte>(4097));
  }
  EXPECT_EQ(backend->available_memory(), before);
  EXPECT_EQ(backend->allocate(0)->bytes(), 0u);
}

TEST_F(OpenCl, TooMuchMemoryIsAnError) {
  BITNET_EXPECT_ERROR(backend->allocate(std::size_t{1} << 60), ErrorCode::kOutOfMemory,
                      "1152921504606846976 bytes");
}

TEST_F(OpenCl, RefusesWeightsThatTheFormCannotHold) {
  std::vector<float> dense{1.0f, 2.0f, 70000.0f, -1.0f, 0.0f, 3.0f};
  LinearWeights w;
  w.out = 2;
  w.in = 3;
  w.dense = std::as_bytes(std::span(dense));
  w.dense_form = DenseForm::kF16;
  BITNET_EXPECT_ERROR(backend->prepare_embedding(w), ErrorCode::kUnsupported,
                      "row 0, column 2 is 70000, beyond f16");
  dense[4] = HUGE_VALF;
  w.dense_form = DenseForm::kInt8;
  BITNET_EXPECT_ERROR(backend->prepare_embedding(w), ErrorCode::kInvalidArgument, "row 1, column 1 is inf");
  w.in = 131'073;
  w.dense = {};
  w.dense_rows = [](std::int64_t, std::int64_t, std::byte*) { FAIL() << "too wide to be asked for"; };
  BITNET_EXPECT_ERROR(backend->prepare_embedding(w), ErrorCode::kUnsupported, "2 x 131073 exceeds");
}

TEST_F(OpenCl, WeightsGoThroughStagingBuffersWhereMemoryIsNotShared) {
  BackendRegistry registry;
  gpu::Options options;
  options.kernels.zero_copy = false;
  gpu::register_backends(registry, options);
  const auto staged = registry.create(registry.devices()[0].name, context);
  Rng rng(8);
  const Ternary w = random_ternary(rng, 9001, 4100, 9001);  // 9 MB: two pieces
  const auto x = random_rows(rng, w.in);
  EXPECT_EQ(first_difference(run(*staged, w, x, 1), on_cpu(w, x, 1)), -1);
}

// Clang announces the extension where it does not declare its functions: they are then done without.
TEST_F(OpenCl, IntegerDotsThatTheCompilerDoesNotDeclareAreComputedPlainly) {
  for (const char* standard : {"", "-cl-std=CL1.2", "-cl-std=CL1.2 -Dcl_khr_integer_dot_product=1",
                               "-cl-std=CL1.2 -D__opencl_c_integer_dot_product_input_4x8bit_packed=1"}) {
    SCOPED_TRACE(standard);
    gpu::Options options;
    options.kernels.wide = false;
    options.kernels.integer_dot = true;
    options.build_options = standard;
    BackendRegistry registry;
    gpu::register_backends(registry, options);
    const auto dots = registry.create(registry.devices()[0].name, context);
    Rng rng(9);
    const Ternary w = random_ternary(rng, 33, 100, 33);
    for (const std::int64_t rows : {1, 9}) {
      const auto x = random_rows(rng, rows * w.in);
      EXPECT_EQ(first_difference(run(*dots, w, x, rows), on_cpu(w, x, rows)), -1) << rows << " rows";
    }
  }
}

// Without the extension: the functions' names stand for ones that are not there, so that a call is an error.
TEST_F(OpenCl, IntegerDotsThatTheCompilerDeclaresAreCalled) {
  gpu::Options options;
  options.kernels.wide = false;
  options.kernels.integer_dot = true;
  options.build_options =
      "-cl-std=CL3.0 -Dcl_khr_integer_dot_product=1 -Ddot_4x8packed_su_int=bn_no_such_function "
      "-Ddot_4x8packed_ss_int=bn_no_such_function";
  BackendRegistry registry;
  gpu::register_backends(registry, options);
  BITNET_EXPECT_ERROR(registry.create(registry.devices()[0].name, context), ErrorCode::kDevice,
                      "bn_no_such_function");
}

TEST_F(OpenCl, RefusesBadTritsAndForeignBuffers) {
  Ternary w{1, 3, 1, {0, 2, 0}, {1.0f}};
  BITNET_EXPECT_ERROR(backend->prepare(w.view()), ErrorCode::kInvalidArgument, "trit [0, 1] is 2");
  w.trits[1] = 1;
  const PreparedPtr prepared = backend->prepare(w.view());
  struct Foreign final : Buffer {
    Foreign() : Buffer(64) {}
  } foreign;
  const PreparedWeights* weights[] = {prepared.get()};
  const Matrix outs[] = {{&foreign, 0, 1, 1}};
  BITNET_EXPECT_ERROR(backend->linear(weights, {&foreign, 0, 1, 3}, outs), ErrorCode::kInvalidArgument,
                      "buffer of another backend");
}

}  // namespace
}  // namespace bitnet
