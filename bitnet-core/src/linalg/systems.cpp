// Linear systems: LU with condition estimates, Cholesky. Orthogonal factorisations are decompositions.cpp.
#include <Eigen/Cholesky>
#include <Eigen/LU>

#include "bitnet/core/linalg.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "linalg/matrices.hpp"

namespace bitnet::linalg {
namespace {

using Lu = Eigen::PartialPivLU<Matrix>;

/// Eigen's estimate, 0 where a pivot is 0 or the estimate is no number.
double rcond_of(const Lu& lu) {
  const Matrix& m = lu.matrixLU();
  if (m.rows() == 0) return 1;
  if ((m.diagonal().array() == 0).any()) return 0;
  const double rcond = lu.rcond();
  return std::isfinite(rcond) ? rcond : 0;
}

Tensor solve_all(const ExecutionContext& context, std::string_view op, const Batch& a, const Batch& b,
                 const SolveOptions& options) {
  require_square(op, a);
  require_sides(op, a, b);
  if (!(options.min_rcond >= 0 && options.min_rcond <= 1))
    ops::invalid(fmt::format("{}: {}: min_rcond is {}, a number from 0 to 1 wanted", op, a.description(),
                             options.min_rcond));
  Result x = solution(context, op, a, b);
  for_each_matrix(context, a, [&](std::int64_t i) {
    const Matrix m = a.matrix(i);
    if (m.size() == 0) return;
    const Lu lu(m);
    const double rcond = rcond_of(lu);
    if (rcond == 0 || rcond < options.min_rcond)
      ops::invalid(
          fmt::format("{}: {} is singular to working precision: its reciprocal condition is about {:.2g}, "
                      "at least {:.2g} wanted",
                      op, a.which(i), rcond, options.min_rcond));
    x.set(i, Matrix(lu.solve(b.matrix(i))));
  });
  return x.take();
}

/// Order of the first leading block without a Cholesky factor; there is one.
Eigen::Index first_bad_block(const Matrix& m) {
  Eigen::Index good = 0, bad = m.rows();
  while (bad - good > 1) {
    const Eigen::Index middle = good + (bad - good) / 2;
    const bool factors = Eigen::LLT<Matrix>(m.topLeftCorner(middle, middle)).info() == Eigen::Success;
    (factors ? good : bad) = middle;
  }
  return bad;
}

}  // namespace

Tensor solve(const ExecutionContext& context, const Tensor& a, const Tensor& b, const SolveOptions& options) {
  return with_context("solve", [&] {
    constexpr std::string_view kOp = "a·x = b";
    return solve_all(context, kOp, Batch(context, kOp, "a", a),
                     Batch(context, kOp, "b", b, a.shape().rank() == 2), options);
  });
}

Tensor inverse(const ExecutionContext& context, const Tensor& a, const SolveOptions& options) {
  return with_context("inverse", [&] {
    constexpr std::string_view kOp = "a·x = 1";
    const Batch batch(context, kOp, "a", a);
    require_square(kOp, batch);
    Tensor identity(DType::kF32, a.shape(), context.memory());
    const auto values = identity.span<float>();
    const std::int64_t n = batch.rows();
    for (std::int64_t i = 0; i < batch.count(); ++i)
      for (std::int64_t d = 0; d < n; ++d) values[static_cast<std::size_t>((i * n + d) * n + d)] = 1;
    return solve_all(context, kOp, batch, Batch(context, kOp, "1", identity), options);
  });
}

Tensor cholesky(const ExecutionContext& context, const Tensor& a) {
  return with_context("cholesky", [&] {
    constexpr std::string_view kOp = "l·lᵀ = a";
    const Batch batch(context, kOp, "a", a);
    require_square(kOp, batch);
    Result l(context, kOp, "l", batch, {batch.rows(), batch.cols()});
    for_each_matrix(context, batch, [&](std::int64_t i) {
      const Matrix m = batch.matrix(i);
      if (m.size() == 0) return;
      require_symmetric(kOp, batch, i, m);
      const Eigen::LLT<Matrix> llt(m);
      if (llt.info() != Eigen::Success)
        ops::invalid(fmt::format("{}: {} is not positive definite: its leading block of order {} is not", kOp,
                                 batch.which(i), first_bad_block(m)));
      l.set(i, Matrix(llt.matrixL()));
    });
    return l.take();
  });
}

double rcond_estimate(const Tensor& a) {
  return with_context("rcond_estimate", [&] {
    const Batch batch(ops::one_thread(), "matrix", "a", a);
    require_square("matrix", batch);
    if (!batch.batch().empty())
      ops::invalid(fmt::format("matrix: {} is a batch; take one matrix of it", batch.description()));
    return rcond_of(Lu(batch.matrix(0)));
  });
}

}  // namespace bitnet::linalg
