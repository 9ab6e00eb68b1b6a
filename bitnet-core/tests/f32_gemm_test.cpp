// The packed sgemm of one ISA against a double-precision reference with a derived bound, and its independence
// of blocking, threads and (within a class) ISA. Eigen, in double precision too, is a second reference that
// shares no line with ours.
#include <Eigen/Core>
#include <cmath>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/testing/guarded_buffer.hpp"
#include "bitnet/testing/testing.hpp"
#include "f32_support.hpp"

namespace bitnet {
namespace {

using testing::Guard;
using testing::GuardedBuffer;

/// How a matrix of `rows` × `cols` is stored.
struct Layout {
  std::int64_t row, col;
  static Layout of(bool transposed, std::int64_t rows, std::int64_t cols) {
    return transposed ? Layout{1, rows} : Layout{cols, 1};
  }
};

struct Case {
  std::int64_t m, n, k;
  bool a_transposed, b_transposed, accumulate;
};

struct Matrices {
  explicit Matrices(const Case& s)
      : a(test::random_floats(static_cast<std::size_t>(s.m * s.k), 1)),
        b(test::random_floats(static_cast<std::size_t>(s.k * s.n), 2)),
        c(test::random_floats(static_cast<std::size_t>(s.m * s.n), 3)),
        la(Layout::of(s.a_transposed, s.m, s.k)),
        lb(Layout::of(s.b_transposed, s.k, s.n)) {}
  std::vector<float> a, b, c;
  Layout la, lb;
};

std::vector<float> run_table(const F32Kernels& table, const Case& s) {
  Matrices x(s);
  GuardedBuffer<float> scratch(table.gemm_scratch), a(std::span<const float>(x.a)),
      b(std::span<const float>(x.b)), c(std::span<const float>(x.c));
  table.gemm(s.m, s.n, s.k, a.data(), x.la.row, x.la.col, b.data(), x.lb.row, x.lb.col, c.data(), s.n,
             s.accumulate, scratch.data());
  return {c.span().begin(), c.span().end()};
}

void expect_close(const Case& s, const std::vector<float>& got) {
  const Matrices x(s);
  for (std::int64_t i = 0; i < s.m; ++i)
    for (std::int64_t j = 0; j < s.n; ++j) {
      const double start = s.accumulate ? x.c[static_cast<std::size_t>(i * s.n + j)] : 0.0;
      double sum = start, magnitude = std::fabs(start);
      for (std::int64_t k = 0; k < s.k; ++k) {
        const double term = static_cast<double>(x.a[static_cast<std::size_t>(i * x.la.row + k * x.la.col)]) *
                            x.b[static_cast<std::size_t>(k * x.lb.row + j * x.lb.col)];
        sum += term;
        magnitude += std::fabs(term);
      }
      // k additions and, without FMA, one rounding of each product: γ(k+1) · Σ|terms| (Higham 2002,
      // section 3.1).
      const double gamma = static_cast<double>(s.k + 1) * std::ldexp(1.0, -24);
      ASSERT_NEAR(got[static_cast<std::size_t>(i * s.n + j)], sum, gamma / (1 - gamma) * magnitude)
          << "m=" << s.m << " n=" << s.n << " k=" << s.k << " i=" << i << " j=" << j;
    }
}

std::vector<Case> cases() {
  std::vector<Case> all;
  const std::int64_t sizes[][3] = {{1, 1, 1},    {1, 5, 9},    {3, 17, 4},   {8, 32, 256},  {7, 31, 257},
                                   {8, 32, 384}, {9, 33, 385}, {9, 33, 255}, {13, 100, 70}, {33, 47, 300},
                                   {170, 40, 5}, {5, 530, 20}, {1, 64, 600}, {64, 1, 64},   {2, 23, 0}};
  for (const auto& d : sizes)
    for (const bool ta : {false, true})
      for (const bool tb : {false, true})
        for (const bool accumulate : {false, true}) all.push_back({d[0], d[1], d[2], ta, tb, accumulate});
  return all;
}

TEST(F32Gemm, MatchesTheDoubleReference) {
  for (const Case& s : cases()) expect_close(s, run_table(f32_kernels(default_isa()), s));
}

TEST(F32Gemm, MatchesEigen) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Strides = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
  using View = Eigen::Map<const Matrix, Eigen::Unaligned, Strides>;
  for (const Case& s : cases()) {
    const auto got = run_table(f32_kernels(default_isa()), s);
    const Matrices x(s);
    const Eigen::MatrixXd a = View(x.a.data(), s.m, s.k, Strides(x.la.row, x.la.col)).cast<double>();
    const Eigen::MatrixXd b = View(x.b.data(), s.k, s.n, Strides(x.lb.row, x.lb.col)).cast<double>();
    const Eigen::MatrixXd start =
        View(x.c.data(), s.m, s.n, Strides(s.n, 1)).cast<double>() * (s.accumulate ? 1.0 : 0.0);
    const Eigen::MatrixXd expected = a * b + start;
    // The bound of expect_close(), doubled for Eigen's own roundings in another order.
    const Eigen::MatrixXd magnitude = a.cwiseAbs() * b.cwiseAbs() + start.cwiseAbs();
    const double bound = 2 * static_cast<double>(s.k + 1) * std::ldexp(1.0, -24);
    const Eigen::MatrixXd error =
        (View(got.data(), s.m, s.n, Strides(s.n, 1)).cast<double>() - expected).cwiseAbs();
    EXPECT_TRUE((error.array() <= bound * magnitude.array()).all())
        << "m=" << s.m << " n=" << s.n << " k=" << s.k << " largest error " << error.maxCoeff();
  }
}

TEST(F32Gemm, AnyStridesAndAPaddedC) {
  // a and b are every second element of larger matrices; C has four more columns that must survive.
  const std::int64_t m = 11, n = 37, k = 19, ldc = n + 4;
  const auto a = test::random_floats(static_cast<std::size_t>(m * k * 2), 4);
  const auto b = test::random_floats(static_cast<std::size_t>(n * k * 2), 5);
  std::vector<float> c(static_cast<std::size_t>(m * ldc), 7.0f);
  const F32Kernels& table = f32_kernels(default_isa());
  std::vector<float> scratch(table.gemm_scratch);
  table.gemm(m, n, k, a.data(), 2 * k, 2, b.data(), 2 * n, 2, c.data(), ldc, false, scratch.data());
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (std::int64_t q = 0; q < k; ++q)
        sum += static_cast<double>(a[static_cast<std::size_t>(2 * (i * k + q))]) *
               b[static_cast<std::size_t>(2 * (q * n + j))];
      ASSERT_NEAR(c[static_cast<std::size_t>(i * ldc + j)], sum,
                  20 * std::ldexp(1.0, -24) * static_cast<double>(k));
    }
    for (std::int64_t j = n; j < ldc; ++j) ASSERT_EQ(c[static_cast<std::size_t>(i * ldc + j)], 7.0f);
  }
}

TEST(F32Gemm, EachOutputIsOneChainInAscendingK) {
  const Case s{5, 21, 700, false, true, true};  // three blocks of k
  const F32Kernels& table = f32_kernels(default_isa());
  const auto got = run_table(table, s);
  const Matrices x(s);
  const bool fused = testing::is_fused(table);
  for (std::int64_t i = 0; i < s.m; ++i)
    for (std::int64_t j = 0; j < s.n; ++j) {
      float sum = x.c[static_cast<std::size_t>(i * s.n + j)];
      for (std::int64_t k = 0; k < s.k; ++k) {
        const float a = x.a[static_cast<std::size_t>(i * x.la.row + k * x.la.col)];
        const float b = x.b[static_cast<std::size_t>(k * x.lb.row + j * x.lb.col)];
        volatile float product = a * b;
        sum = fused ? std::fma(a, b, sum) : product + sum;
      }
      ASSERT_EQ(got[static_cast<std::size_t>(i * s.n + j)], sum);
    }
}

TEST(F32Gemm, IsasOfOneClassGiveTheSameBits) {
  for (const Case& s : {Case{33, 97, 300, false, true, false}, Case{65, 130, 513, true, false, true}})
    for (const auto& [a, b] : test::pairs_of_one_class())
      EXPECT_EQ(run_table(*a, s), run_table(*b, s)) << a->isa << " " << b->isa;
}

TEST(F32Gemm, AnyNumberOfThreadsGivesTheSameBits) {
  for (const Case& s : {Case{256, 512, 64, false, true, false}, Case{130, 70, 300, true, false, true},
                        Case{1000, 24, 100, false, false, false}, Case{3, 900, 400, false, true, true}}) {
    const auto expected = run_table(f32_kernels(default_isa()), s);
    for (const std::size_t threads : {1u, 2u, 3u, 7u}) {
      const ExecutionContext context({.threads = threads, .isa = {}});
      Matrices x(s);
      gemm(context, s.m, s.n, s.k, x.a.data(), x.la.row, x.la.col, x.b.data(), x.lb.row, x.lb.col, x.c.data(),
           s.n, s.accumulate);
      EXPECT_EQ(x.c, expected) << threads;
    }
  }
}

TEST(F32Gemm, EmptyMatricesAreLeftAlone) {
  const ExecutionContext context;
  float c = 3;
  gemm(context, 0, 1, 1, nullptr, 1, 1, nullptr, 1, 1, &c, 1, false);
  gemm(context, 1, 0, 1, nullptr, 1, 1, nullptr, 1, 1, &c, 1, false);
  EXPECT_EQ(c, 3);
  gemm(context, 1, 1, 0, nullptr, 1, 1, nullptr, 1, 1, &c, 1, true);
  EXPECT_EQ(c, 3);
  gemm(context, 1, 1, 0, nullptr, 1, 1, nullptr, 1, 1, &c, 1, false);
  EXPECT_EQ(c, 0);
}

}  // namespace
}  // namespace bitnet
