// The test of the tensor ops' kernels: plain loops beside every entry of the table. Compiled without
// contraction: what is fused is written.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "bitnet/core/dtype.hpp"
#include "bitnet/core/self_test.hpp"
#include "kernels/self_test.hpp"
#include "kernels/tensor_table.hpp"

namespace bitnet {
namespace {

using namespace kernel_test;

constexpr std::size_t kN = 37;  // two registers of the widest and five more
constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

/// Zero, no numbers, ties of every rounding, what 16 bits, 8 bits and i32 cannot hold.
constexpr float kSpecial[] = {0.0f,     kInf,  -kInf, kNan,  0.5f,   1.5f,    2.5f,       -2.5f,
                              65520.0f, 1e-7f, 3e9f,  -3e9f, 127.5f, -128.5f, 8388607.5f, 2147483520.0f};

constexpr const char* kBinaryNames[] = {"add", "sub", "mul", "div", "maximum", "minimum"};
constexpr const char* kComparisonNames[] = {"equal",      "not_equal", "less",
                                            "less_equal", "greater",   "greater_equal"};
constexpr const char* kUnaryNames[] = {"neg",  "abs",     "square", "sqrt", "reciprocal", "exp",  "log",
                                       "tanh", "sigmoid", "relu",   "silu", "floor",      "ceil", "round"};
static_assert(std::size(kBinaryNames) == kBinaryOps && std::size(kComparisonNames) == kComparisons &&
              std::size(kUnaryNames) == kUnaryOps);

float binary_of(std::size_t op, float a, float b) {
  switch (op) {
    case 0:
      return a + b;
    case 1:
      return a - b;
    case 2:
      return a * b;
    case 3:
      return a / b;
    case 4:
      return a >= b || std::isnan(a) ? a : b;
    default:
      return a <= b || std::isnan(a) ? a : b;
  }
}

bool comparison_of(std::size_t op, float a, float b) {
  switch (op) {
    case 0:
      return a == b;
    case 1:
      return a != b;
    case 2:
      return a < b;
    case 3:
      return a <= b;
    case 4:
      return a > b;
    default:
      return a >= b;
  }
}

/// What a function of one float is, and the ulps that it may be off: 0 for every bit.
struct Function {
  double (*exact)(double);
  double ulps;
};
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
constexpr Function kFunctions[] = {
    {[](double x) { return -x; }, 0},
    {[](double x) { return std::fabs(x); }, 0},
    {[](double x) { return x * x; }, 0},
    {[](double x) { return std::sqrt(x); }, 0},
    {[](double x) { return 1 / x; }, 0},
    {[](double x) { return std::exp(x); }, 2},
    {[](double x) { return std::log(x); }, 3},
    {[](double x) { return std::tanh(x); }, 4},
    {&sigmoid, 4},
    {[](double x) { return x < 0 ? 0 : x; }, 0},
    {[](double x) { return x * sigmoid(x); }, 4},
    {[](double x) { return std::floor(x); }, 0},
    {[](double x) { return std::ceil(x); }, 0},
    {[](double x) { return std::nearbyint(x); }, 0},
};
static_assert(std::size(kFunctions) == kUnaryOps);

class TensorTest {
 public:
  TensorTest(const TensorKernels& kernels, const F32Kernels& floats)
      : k_(kernels), fma_(multiply_add_of(floats)) {
    for (float& v : x_) v *= 30;  // −30 … 30: exponentials stay normal
    special_ = x_;
    std::ranges::copy(kSpecial, special_.begin());
  }

  void test_all() const {
    binaries();
    comparisons();
    functions();
    reductions();
    rows();
    conversions();
  }

 private:
  void binaries() const {
    std::vector<float> got(kN), expected(kN);
    for (std::size_t op = 0; op < kBinaryOps; ++op)
      for (int one = 0; one < 4; ++one) {
        const bool x_one = (one & 1) != 0, y_one = (one & 2) != 0;
        k_.binary[op](special_.data(), x_one, y_.data(), y_one, got.data(), kN);
        for (std::size_t i = 0; i < kN; ++i)
          expected[i] = binary_of(op, special_[x_one ? 0 : i], y_[y_one ? 0 : i]);
        compare(k_.isa, kBinaryNames[op], got, expected);
      }
  }

  void comparisons() const {
    std::vector<float> other = special_;
    for (std::size_t i = 1; i < kN; i += 2) other[i] = y_[i];
    std::vector<std::int8_t> got(kN);
    for (std::size_t op = 0; op < kComparisons; ++op)
      for (int one = 0; one < 4; ++one) {
        const bool x_one = (one & 1) != 0, y_one = (one & 2) != 0;
        k_.compare[op](special_.data(), x_one, other.data(), y_one, got.data(), kN);
        std::vector<std::int32_t> expected;
        for (std::size_t i = 0; i < kN; ++i)
          expected.push_back(comparison_of(op, special_[x_one ? 0 : i], other[y_one ? 0 : i]) ? 1 : 0);
        compare(k_.isa, kComparisonNames[op], std::vector<std::int32_t>(got.begin(), got.end()), expected);
      }
  }

  void functions() const {
    std::vector<float> got(kN);
    for (std::size_t op = 0; op < kUnaryOps; ++op) {
      const auto& [exact, ulps] = kFunctions[op];
      const std::vector<float>& from = ulps == 0 ? special_ : x_;
      k_.unary[op](from.data(), got.data(), kN);
      for (std::size_t i = 0; i < kN; ++i) {
        // One operation on a float rounded twice, by way of double, is rounded once (Figueroa 1995).
        const double y = exact(static_cast<double>(from[i]));
        if (ulps == 0)
          compare(k_.isa, kUnaryNames[op], got[i], static_cast<float>(y));
        else if (!(std::isnan(y) ? std::isnan(got[i])
                                 : std::fabs(got[i] - y) <= ulps * 0x1p-23 * std::fabs(y)))
          throw_failed_self_test(k_.isa, fmt::format("{} gave {} for {} instead of {} within {} ulp",
                                                     kUnaryNames[op], got[i], from[i], y, ulps));
      }
    }
  }

  void reductions() const {
    const float* const x = x_.data();
    compare(k_.isa, "max", k_.max(x, kN), *std::ranges::max_element(x_));
    compare(k_.isa, "min", k_.min(x, kN), *std::ranges::min_element(x_));
    compare(k_.isa, "max", k_.max(special_.data(), kN), kNan);
    compare(k_.isa, "min", k_.min(special_.data(), kN), kNan);
    const float zeros[] = {-0.0f, -0.0f};
    compare(k_.isa, "max", k_.max(zeros, 2), 0.0f);
    compare(k_.isa, "min", k_.min(zeros, 2), 0.0f);
    arg_extremes();
    compare(k_.isa, "sum_abs", k_.sum_abs(x, kN),
            sixteen_lanes(kN, [&](float acc, std::size_t i) { return acc + std::fabs(x[i]); }));
    compare(k_.isa, "sum_deviations", k_.sum_deviations(x, 0.3f, kN),
            sixteen_lanes(kN, [&](float acc, std::size_t i) { return fma_(x[i] - 0.3f, x[i] - 0.3f, acc); }));
  }

  /// The first of three largest and smallest, and the first NaN.
  void arg_extremes() const {
    std::vector<float> v = x_;
    v[9] = v[20] = v[33] = 100;
    v[11] = v[18] = v[36] = -100;
    const auto expect = [&](const char* name, std::size_t got, std::int32_t expected) {
      const auto place = static_cast<std::int32_t>(got);
      compare(k_.isa, name, std::span(&place, 1), std::span(&expected, 1));
    };
    expect("arg_max", k_.arg_max(v.data(), kN), 9);
    expect("arg_min", k_.arg_min(v.data(), kN), 11);
    v[34] = v[35] = kNan;
    expect("arg_max", k_.arg_max(v.data(), kN), 34);
    expect("arg_min", k_.arg_min(v.data(), kN), 34);
  }

  /// kN rows of 7 of a matrix of kN + 6 floats, one float apart.
  void vector_product() const {
    constexpr std::int64_t kK = 7;
    const std::vector<float> w = random_floats(kN + kK - 1, 23);
    std::vector<float> got(kN), expected(kN);
    k_.matvec(w.data(), 1, kN, y_.data(), kK, got.data());
    for (std::size_t r = 0; r < kN; ++r)
      for (std::size_t k = 0; k < kK; ++k) expected[r] = fma_(y_[k], w[r + k], expected[r]);
    compare(k_.isa, "matvec", got, expected);
    k_.matvec(w.data(), 1, 3, y_.data(), kK, got.data());
    compare(k_.isa, "matvec", std::span(got).first(3), std::span(expected).first(3));
  }

  void rows() const {
    vector_product();
    std::vector<float> got(kN), expected(kN);
    k_.normalize(x_.data(), 0.3f, 0.7f, y_.data(), x_.data(), got.data(), kN);
    for (std::size_t i = 0; i < kN; ++i) expected[i] = fma_((x_[i] - 0.3f) * 0.7f, y_[i], x_[i]);
    compare(k_.isa, "normalize", got, expected);
    k_.normalize(x_.data(), 0.3f, 0.7f, nullptr, nullptr, got.data(), kN);
    for (std::size_t i = 0; i < kN; ++i) expected[i] = (x_[i] - 0.3f) * 0.7f;
    compare(k_.isa, "normalize", got, expected);
    k_.clamp(special_.data(), -2.0f, 20.0f, got.data(), kN);
    for (std::size_t i = 0; i < kN; ++i)
      expected[i] = special_[i] < -2 ? -2 : special_[i] > 20 ? 20 : special_[i];
    compare(k_.isa, "clamp", got, expected);
  }

  /// run(to) against expected(v) of each float, as integers.
  template <class T, class Run, class Expected>
  void conversion(const char* kernel, Run&& run, Expected&& expected) const {
    std::vector<T> got(kN);
    run(got.data());
    std::vector<std::int32_t> as_ints(got.begin(), got.end()), right;
    for (const float v : special_) right.push_back(static_cast<std::int32_t>(expected(v)));
    compare(k_.isa, kernel, as_ints, right);
  }

  void conversions() const {
    const float* const x = special_.data();
    const auto integer = [](float v, double low, double high) {
      return std::isnan(v) ? 0.0 : std::clamp(std::nearbyint(static_cast<double>(v)), low, high);
    };
    conversion<std::uint16_t>(
        "f32_to_f16", [&](std::uint16_t* to) { k_.f32_to_f16(x, to, kN); }, f32_to_f16);
    conversion<std::uint16_t>(
        "f32_to_bf16", [&](std::uint16_t* to) { k_.f32_to_bf16(x, to, kN); }, f32_to_bf16);
    conversion<std::int8_t>(
        "f32_to_i8", [&](std::int8_t* to) { k_.f32_to_i8(x, to, kN); },
        [&](float v) { return integer(v, -128, 127); });
    conversion<std::int32_t>(
        "f32_to_i32", [&](std::int32_t* to) { k_.f32_to_i32(x, to, kN); },
        [&](float v) { return integer(v, -0x1p31, 0x1p31 - 1); });
    std::vector<std::int8_t> bytes;
    std::vector<std::int32_t> ints;
    std::vector<float> from_bytes, from_ints, got(kN);
    for (std::size_t i = 0; i < kN; ++i) {
      bytes.push_back(static_cast<std::int8_t>(static_cast<int>(i * 7) - 128));
      ints.push_back(static_cast<std::int32_t>(i * 119304647u - 0x80000000u));  // all over i32
      from_bytes.push_back(static_cast<float>(bytes.back()));
      from_ints.push_back(static_cast<float>(ints.back()));
    }
    k_.i8_to_f32(bytes.data(), got.data(), kN);
    compare(k_.isa, "i8_to_f32", got, from_bytes);
    k_.i32_to_f32(ints.data(), got.data(), kN);
    compare(k_.isa, "i32_to_f32", got, from_ints);
  }

  const TensorKernels& k_;
  MultiplyAdd fma_;
  std::vector<float> x_ = random_floats(kN, 21), y_ = random_floats(kN, 22), special_;
};

}  // namespace

void self_test(const TensorKernels& kernels, const F32Kernels& floats) {
  TensorTest(kernels, floats).test_all();
}

}  // namespace bitnet
