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
    const linalg::Qr f = linalg::qr(a);
    EXPECT_LE(distance(product(f.q, f.r), a), bound);
    EXPECT_LE(distance(product(f.q.transpose(-1, -2), f.q),
                       identity(k).broadcast_to(product(f.q.transpose(-1, -2), f.q).shape())),
              bound);
    const linalg::Svd d = linalg::svd(a);
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
  const linalg::SymmetricEigen e = linalg::symmetric_eigen(a);
  EXPECT_LE(distance(product(a, e.vectors), ops::mul(context(), e.vectors, e.values)), 2e-5f);
  const Tensor p = product(x, x.transpose(0, 1)), l = linalg::cholesky(p);
  EXPECT_LE(distance(product(l, l.transpose(0, 1)), p), 2e-5f);
}

TEST(Linalg, ConditionTellsWhatToExpect) {
  EXPECT_EQ(linalg::condition(identity(4)), 1.0);
  EXPECT_EQ(linalg::rcond_estimate(identity(4)), 1.0);
  EXPECT_NEAR(linalg::condition(hilbert(4)), 15513.7,
              30);  // rounding a to f32 changes it by up to 15513.7² · 2^-24 · 4
  // The estimate is no smaller than the truth, 1/(‖a‖₁·‖a⁻¹‖₁) = 1/28375, and seldom three times it.
  EXPECT_NEAR(1 / linalg::rcond_estimate(hilbert(4)), 28375, 100);
  EXPECT_GT(linalg::condition(matrix(2, 2, {1, 2, 0, 0})), 1e15);
  EXPECT_EQ(linalg::rcond_estimate(matrix(2, 2, {1, 2, 2, 4})), 0.0);
  EXPECT_EQ(linalg::condition(Tensor(DType::kF32, {0, 0})), 0.0);
}

TEST(Linalg, SingularSystemsAreErrors) {
  const Tensor b = random({2}, 1);
  BITNET_EXPECT_ERROR(
      (void)linalg::solve(matrix(2, 2, {1, 2, 2, 4}), b), ErrorCode::kInvalidArgument,
      "solve: a·x = b: f32 [2, 2] is singular to working precision: its reciprocal condition is about 0");
  BITNET_EXPECT_ERROR((void)linalg::inverse(Tensor(DType::kF32, {3, 3})), ErrorCode::kInvalidArgument,
                      "inverse: ");
  // Hilbert's matrix of order 8: condition 1.5e10, no digit of an f32 input would come through.
  BITNET_EXPECT_ERROR((void)linalg::solve(hilbert(8), random({8}, 2)), ErrorCode::kInvalidArgument,
                      "reciprocal condition");
  EXPECT_NO_THROW((void)linalg::solve(hilbert(8), random({8}, 2), {.min_rcond = 0}));
  Tensor batch = random({3, 2, 2}, 3);
  for (int i = 8; i < 12; ++i) batch.span<float>()[static_cast<std::size_t>(i)] = 1;
  BITNET_EXPECT_ERROR((void)linalg::inverse(batch), ErrorCode::kInvalidArgument,
                      "f32 [3, 2, 2], matrix 2 of the batch,");
  const auto x = linalg::least_squares(matrix(2, 2, {1, 2, 2, 4}), matrix(2, 1, {5, 10}));
  EXPECT_EQ(x.rank, 1);
  EXPECT_NEAR(x.x.span<float>()[0], 1, 1e-6);  // the solution of least norm: (1, 2)
  EXPECT_NEAR(x.x.span<float>()[1], 2, 1e-6);
}

TEST(Linalg, CholeskyNamesTheBlock) {
  BITNET_EXPECT_ERROR((void)linalg::cholesky(matrix(3, 3, {4, 0, 0, 0, 1, 2, 0, 2, 1})),
                      ErrorCode::kInvalidArgument,
                      "not positive definite: its leading block of order 3 is not");
  BITNET_EXPECT_ERROR((void)linalg::cholesky(matrix(2, 2, {-1, 0, 0, 1})), ErrorCode::kInvalidArgument,
                      "order 1 ");
  BITNET_EXPECT_ERROR((void)linalg::cholesky(matrix(2, 2, {1, 0.5f, 0.25f, 1})), ErrorCode::kInvalidArgument,
                      "f32 [2, 2] is not symmetric: element [1, 0] is 0.25, [0, 1] is 0.5");
  BITNET_EXPECT_ERROR((void)linalg::symmetric_eigen(matrix(2, 2, {1, 2, 3, 1})), ErrorCode::kInvalidArgument,
                      "not symmetric");
}

TEST(Linalg, RefusesWhatIsNoSystem) {
  const Tensor a = random({3, 3}, 1);
  BITNET_EXPECT_ERROR((void)linalg::solve(random({3, 2}, 1), random({3}, 1)), ErrorCode::kInvalidArgument,
                      "f32 [3, 2]: a square matrix wanted");
  BITNET_EXPECT_ERROR((void)linalg::solve(a, random({4}, 1)), ErrorCode::kInvalidArgument,
                      "a f32 [3, 3] and b f32 [4]: the same batch and number of rows wanted");
  BITNET_EXPECT_ERROR((void)linalg::solve(random({2, 3, 3}, 1), random({3, 1}, 1)),
                      ErrorCode::kInvalidArgument, "same batch");
  BITNET_EXPECT_ERROR((void)linalg::qr(random({3}, 1)), ErrorCode::kInvalidArgument,
                      "a is f32 [3], a matrix");
  BITNET_EXPECT_ERROR((void)linalg::svd(a.to(DType::kI8)), ErrorCode::kInvalidArgument, "i8 [3, 3] given");
  BITNET_EXPECT_ERROR((void)linalg::svd(Tensor(DType::kTernary, {4, 4})), ErrorCode::kInvalidArgument,
                      "ternary");
  BITNET_EXPECT_ERROR((void)linalg::condition(random({2, 3, 3}, 1)), ErrorCode::kInvalidArgument,
                      "is a batch");
  BITNET_EXPECT_ERROR((void)linalg::least_squares(a, random({3}, 1), 2), ErrorCode::kInvalidArgument,
                      "rcond 2");
  for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()})
    BITNET_EXPECT_ERROR((void)linalg::inverse(matrix(2, 2, {1, 2, bad, 4})), ErrorCode::kInvalidArgument,
                        "is not finite: element 2");
}

TEST(Linalg, TakesHalfPrecisionAndViews) {
  const Tensor a = random({4, 4}, 5).to(DType::kF16), b = random({4, 2}, 6);
  const Tensor expected = linalg::solve(a.to(DType::kF32).transpose(0, 1).contiguous(), b);
  EXPECT_EQ(distance(linalg::solve(a.transpose(0, 1), b), expected), 0.0f);
}

}  // namespace
}  // namespace bitnet
