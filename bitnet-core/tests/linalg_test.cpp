// Linear algebra: factorisations multiplied back, ill-conditioned and singular systems, and what is refused.
// Values are compared with NumPy in golden_test.cpp.
#include "bitnet/core/linalg.hpp"

#include <cmath>
#include <limits>

#include "bitnet/core/ops.hpp"
#include "bitnet/core/reductions.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

const ExecutionContext& context() {
  static const ExecutionContext c({.threads = 1, .isa = {}});
  return c;
}

Tensor random(Shape shape, std::uint64_t seed) {
  Rng rng(seed);
  Tensor t(DType::kF32, shape);
  for (float& v : t.span<float>()) v = static_cast<float>(2 * rng.uniform() - 1);
  return t;
}

Tensor matrix(std::int64_t rows, std::int64_t cols, const std::vector<float>& values) {
  return Tensor::of<float>({rows, cols}, values);
}

Tensor product(const Tensor& a, const Tensor& b) { return ops::matmul(context(), a, b); }

/// max |a − b|
float distance(const Tensor& a, const Tensor& b) {
  return ops::reduce(context(), ops::Reduction::kNormMax, ops::sub(context(), a, b)).span<float>()[0];
}

Tensor identity(std::int64_t n) {
  Tensor t(DType::kF32, {n, n});
  for (std::int64_t i = 0; i < n; ++i) t.span<float>()[static_cast<std::size_t>(i * n + i)] = 1;
  return t;
}

Tensor hilbert(std::int64_t n) {
  Tensor t(DType::kF32, {n, n});
  for (std::int64_t i = 0; i < n * n; ++i)
    t.span<float>()[static_cast<std::size_t>(i)] = 1.0f / static_cast<float>(i / n + i % n + 1);
  return t;
}

TEST(Linalg, FactorsMultiplyBack) {
  for (const auto& shape :
       {Shape{1, 1}, Shape{5, 5}, Shape{9, 4}, Shape{4, 9}, Shape{40, 33}, Shape{3, 6, 4}}) {
    const Tensor a = random(shape, 1);
    const std::int64_t k = std::min(shape[-1], shape[-2]);
    // Each factor is rounded once: k products of two rounded numbers of at most ‖a‖, and gemm's own k.
    const float bound = 4 * static_cast<float>(k + 2) * 0x1p-24f * static_cast<float>(std::sqrt(a.numel()));
    const linalg::Qr f = linalg::qr(context(), a);
    EXPECT_LE(distance(product(f.q, f.r), a), bound);
    EXPECT_LE(distance(product(f.q.transpose(-1, -2), f.q),
                       identity(k).broadcast_to(product(f.q.transpose(-1, -2), f.q).shape())),
              bound);
    const linalg::Svd d = linalg::svd(context(), a);
    const auto s = d.s.reshape([&] {
      std::vector<std::int64_t> dims(d.s.shape().dims().begin(), d.s.shape().dims().end());
      dims.insert(dims.end() - 1, 1);
      return Shape(dims);
    }());
    EXPECT_LE(distance(product(ops::mul(context(), d.u, s), d.vt), a), bound);
    EXPECT_LE(distance(product(d.vt, d.vt.transpose(-1, -2)),
                       identity(k).broadcast_to(product(d.vt, d.vt.transpose(-1, -2)).shape())),
              bound);
  }
  const Tensor x = random({12, 12}, 2);
  const Tensor a = ops::binary(context(), ops::Binary::kAdd, ops::add(context(), x, x.transpose(0, 1)), 0.0);
  const linalg::SymmetricEigen e = linalg::symmetric_eigen(context(), a);
  EXPECT_LE(distance(product(a, e.vectors), ops::mul(context(), e.vectors, e.values)), 2e-5f);
  const Tensor p = product(x, x.transpose(0, 1)), l = linalg::cholesky(context(), p);
  EXPECT_LE(distance(product(l, l.transpose(0, 1)), p), 2e-5f);
}

TEST(Linalg, ConditionTellsWhatToExpect) {
  EXPECT_EQ(linalg::condition(identity(4)), 1.0);
  EXPECT_EQ(linalg::rcond_estimate(identity(4)), 1.0);
  EXPECT_NEAR(linalg::condition(hilbert(4)), 15513.7,
              30);  // rounding a to f32 changes it by up to 15513.7² · 2^-24 · 4
  // The estimate is no smaller than the truth, here 1/28375.
  EXPECT_NEAR(1 / linalg::rcond_estimate(hilbert(4)), 28375, 100);
  EXPECT_GT(linalg::condition(matrix(2, 2, {1, 2, 0, 0})), 1e15);
  EXPECT_EQ(linalg::rcond_estimate(matrix(2, 2, {1, 2, 2, 4})), 0.0);
  EXPECT_EQ(linalg::condition(Tensor(DType::kF32, {0, 0})), 0.0);
}

TEST(Linalg, SingularSystemsAreErrors) {
  const Tensor b = random({2}, 1);
  BITNET_EXPECT_ERROR(
      (void)linalg::solve(context(), matrix(2, 2, {1, 2, 2, 4}), b), ErrorCode::kInvalidArgument,
      "solve: a·x = b: f32 [2, 2] is singular to working precision: its reciprocal condition is about 0");
  BITNET_EXPECT_ERROR((void)linalg::inverse(context(), Tensor(DType::kF32, {3, 3})),
                      ErrorCode::kInvalidArgument, "inverse: ");
  // Hilbert's matrix of order 8: condition 1.5e10, no digit of an f32 input would come through.
  BITNET_EXPECT_ERROR((void)linalg::solve(context(), hilbert(8), random({8}, 2)), ErrorCode::kInvalidArgument,
                      "reciprocal condition");
  EXPECT_NO_THROW((void)linalg::solve(context(), hilbert(8), random({8}, 2), {.min_rcond = 0}));
  Tensor batch = random({3, 2, 2}, 3);
  for (int i = 8; i < 12; ++i) batch.span<float>()[static_cast<std::size_t>(i)] = 1;
  BITNET_EXPECT_ERROR((void)linalg::inverse(context(), batch), ErrorCode::kInvalidArgument,
                      "f32 [3, 2, 2], matrix 2 of the batch,");
  const auto x = linalg::least_squares(context(), matrix(2, 2, {1, 2, 2, 4}), matrix(2, 1, {5, 10}));
  EXPECT_EQ(x.rank.shape(), Shape{});
  EXPECT_EQ(x.rank.span<std::int32_t>()[0], 1);
  EXPECT_NEAR(x.x.span<float>()[0], 1, 1e-6);  // the solution of least norm: (1, 2)
  EXPECT_NEAR(x.x.span<float>()[1], 2, 1e-6);
}

TEST(Linalg, CholeskyNamesTheBlock) {
  BITNET_EXPECT_ERROR((void)linalg::cholesky(context(), matrix(3, 3, {4, 0, 0, 0, 1, 2, 0, 2, 1})),
                      ErrorCode::kInvalidArgument,
                      "not positive definite: its leading block of order 3 is not");
  BITNET_EXPECT_ERROR((void)linalg::cholesky(context(), matrix(2, 2, {-1, 0, 0, 1})),
                      ErrorCode::kInvalidArgument, "order 1 ");
  BITNET_EXPECT_ERROR((void)linalg::cholesky(context(), matrix(2, 2, {1, 0.5f, 0.25f, 1})),
                      ErrorCode::kInvalidArgument,
                      "f32 [2, 2] is not symmetric: element [1, 0] is 0.25, [0, 1] is 0.5");
  BITNET_EXPECT_ERROR((void)linalg::symmetric_eigen(context(), matrix(2, 2, {1, 2, 3, 1})),
                      ErrorCode::kInvalidArgument, "not symmetric");
}

TEST(Linalg, RefusesWhatIsNoSystem) {
  const Tensor a = random({3, 3}, 1);
  BITNET_EXPECT_ERROR((void)linalg::solve(context(), random({3, 2}, 1), random({3}, 1)),
                      ErrorCode::kInvalidArgument, "f32 [3, 2]: a square matrix wanted");
  BITNET_EXPECT_ERROR((void)linalg::solve(context(), a, random({4}, 1)), ErrorCode::kInvalidArgument,
                      "a f32 [3, 3] and b f32 [4]: the same batch and number of rows wanted");
  BITNET_EXPECT_ERROR((void)linalg::solve(context(), random({2, 3, 3}, 1), random({3, 1}, 1)),
                      ErrorCode::kInvalidArgument, "same batch");
  BITNET_EXPECT_ERROR((void)linalg::qr(context(), random({3}, 1)), ErrorCode::kInvalidArgument,
                      "a is f32 [3], a matrix");
  BITNET_EXPECT_ERROR((void)linalg::svd(context(), a.to(DType::kI8)), ErrorCode::kInvalidArgument,
                      "i8 [3, 3] given");
  BITNET_EXPECT_ERROR((void)linalg::svd(context(), Tensor(DType::kTernary, {4, 4})),
                      ErrorCode::kInvalidArgument, "ternary");
  BITNET_EXPECT_ERROR((void)linalg::condition(random({2, 3, 3}, 1)), ErrorCode::kInvalidArgument,
                      "is a batch");
  BITNET_EXPECT_ERROR((void)linalg::least_squares(context(), a, random({3}, 1), 2),
                      ErrorCode::kInvalidArgument, "rcond 2");
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()})
    BITNET_EXPECT_ERROR((void)linalg::inverse(context(), matrix(2, 2, {1, 2, bad, 4})),
                        ErrorCode::kInvalidArgument, "is not finite: element 2");
}

TEST(Linalg, TakesHalfPrecisionAndViews) {
  const Tensor a = random({4, 4}, 5).to(DType::kF16), b = random({4, 2}, 6);
  const Tensor expected = linalg::solve(context(), a.to(DType::kF32).transpose(0, 1).contiguous(), b);
  EXPECT_EQ(distance(linalg::solve(context(), a.transpose(0, 1), b), expected), 0.0f);
}

/// max over columns of Σ |a|
double norm_1(const Tensor& a) {
  const Tensor sums = ops::reduce(context(), ops::Reduction::kNormL1, a, {0});
  return static_cast<double>(ops::reduce(context(), ops::Reduction::kMax, sums).span<float>()[0]);
}

TEST(Linalg, ConditionEstimatesAreWithinThreeOfTheTruth) {
  // Hager's estimate of ‖a⁻¹‖₁ is a lower bound, so 1/condition is never too small but for f32's rounding.
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const auto n = static_cast<std::int64_t>(2 + seed % 40);
    const Tensor a = random({n, n}, seed);
    const double truth = 1 / (norm_1(a) * norm_1(linalg::inverse(context(), a, {.min_rcond = 0})));
    const double ratio = linalg::rcond_estimate(a) / truth;
    EXPECT_GE(ratio, 1 - 1e-4) << n << " " << seed;
    EXPECT_LE(ratio, 3) << n << " " << seed;
  }
}

TEST(Linalg, ResultsBeyondF32AreErrors) {
  BITNET_EXPECT_ERROR((void)linalg::inverse(context(), matrix(1, 1, {1e-40f})), ErrorCode::kInvalidArgument,
                      "inverse: a·x = 1: f32 [1, 1]: element [0, 0] of x is 1e+40, which f32 does not hold");
  BITNET_EXPECT_ERROR((void)linalg::solve(context(), matrix(2, 2, {1, 0, 0, 1e-30f}),
                                          matrix(2, 1, {1, 1e10f}), {.min_rcond = 0}),
                      ErrorCode::kInvalidArgument, "element [1, 0] of x is 1e+40");
  BITNET_EXPECT_ERROR((void)linalg::svd(context(), matrix(2, 1, {3e38f, 3e38f})), ErrorCode::kInvalidArgument,
                      "element [0, 0] of s is 4.24e+38");
  BITNET_EXPECT_ERROR((void)linalg::symmetric_eigen(context(), matrix(2, 2, {3e38f, 3e38f, 3e38f, 3e38f})),
                      ErrorCode::kInvalidArgument, "of λ is 6e+38");
  Tensor batch = Tensor(DType::kF32, {3, 1, 1});
  std::ranges::fill(batch.span<float>(), 1e-40f);
  batch.span<float>()[0] = 1;
  BITNET_EXPECT_ERROR((void)linalg::inverse(context(), batch), ErrorCode::kInvalidArgument,
                      "matrix 1 of the batch");
}

TEST(Linalg, BatchesAreTheSameOnAnyNumberOfThreads) {
  const ExecutionContext three({.threads = 3, .isa = {}});
  const Tensor a = random({40, 12, 12}, 7), b = random({40, 12, 3}, 8);
  const Tensor p = ops::matmul(context(), a, a.transpose(1, 2));
  const auto same = [](const Tensor& x, const Tensor& y) {
    EXPECT_EQ(x.shape(), y.shape());
    EXPECT_TRUE(std::ranges::equal(x.bytes(), y.bytes()));
  };
  same(linalg::solve(context(), a, b), linalg::solve(three, a, b));
  same(linalg::cholesky(context(), p), linalg::cholesky(three, p));
  same(linalg::qr(context(), a).r, linalg::qr(three, a).r);
  same(linalg::svd(context(), a).u, linalg::svd(three, a).u);
  same(linalg::symmetric_eigen(context(), p).vectors, linalg::symmetric_eigen(three, p).vectors);
  Tensor singular = random({40, 12, 12}, 7);
  for (std::size_t i = 17 * 144; i < 40 * 144; ++i) singular.span<float>()[i] = 1;
  for (int run = 0; run < 20; ++run)  // the first one, whichever thread is faster
    BITNET_EXPECT_ERROR((void)linalg::inverse(three, singular), ErrorCode::kInvalidArgument,
                        "matrix 17 of the batch");
  const auto ranks = linalg::least_squares(three, singular, b).rank;
  ASSERT_EQ(ranks.shape(), (Shape{40}));
  for (std::size_t i = 0; i < 40; ++i) EXPECT_EQ(ranks.span<std::int32_t>()[i], i < 17 ? 12 : 1);
}

TEST(Linalg, RefusesThresholdsThatAreNone) {
  for (const double bad : {-0.5, 1.5, std::nan("")})
    BITNET_EXPECT_ERROR((void)linalg::solve(context(), identity(2), random({2}, 1), {.min_rcond = bad}),
                        ErrorCode::kInvalidArgument, "f32 [2, 2]: min_rcond is");
}

}  // namespace
}  // namespace bitnet
