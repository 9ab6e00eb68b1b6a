// Orthogonal factorisations: QR, SVD, symmetric eigenvalues, and least squares by SVD.
#include <Eigen/Eigenvalues>
#include <Eigen/QR>
#include <Eigen/SVD>
#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "bitnet/core/linalg.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "linalg/matrices.hpp"

namespace bitnet::linalg {
namespace {

using Decomposition = Eigen::BDCSVD<Matrix>;

Decomposition decompose(std::string_view op, const Batch& a, std::int64_t i, unsigned vectors) {
  Decomposition svd(a.matrix(i), vectors);
  if (svd.info() != Eigen::Success)
    throw Error(ErrorCode::kInternal, fmt::format("{}: {}: the iteration did not converge", op, a.which(i)));
  return svd;
}

}  // namespace

Qr qr(const ExecutionContext& context, const Tensor& a) {
  return with_context("qr", [&] {
    constexpr std::string_view kOp = "a = q·r";
    const Batch batch(context, kOp, "a", a);
    const std::int64_t k = std::min(batch.rows(), batch.cols());
    Result q(context, kOp, "q", batch, {batch.rows(), k}), r(context, kOp, "r", batch, {k, batch.cols()});
    for_each_matrix(context, batch, [&](std::int64_t i) {
      if (k == 0) return;
      const Eigen::HouseholderQR<Matrix> h(batch.matrix(i));
      Matrix thin = h.householderQ() * Matrix::Identity(batch.rows(), k);
      Matrix upper = h.matrixQR().topRows(k).triangularView<Eigen::Upper>();
      for (Eigen::Index d = 0; d < k; ++d) {
        if (upper(d, d) >= 0) continue;
        upper.row(d) *= -1;
        thin.col(d) *= -1;
      }
      q.set(i, thin);
      r.set(i, upper);
    });
    return Qr{q.take(), r.take()};
  });
}

Svd svd(const ExecutionContext& context, const Tensor& a) {
  return with_context("svd", [&] {
    constexpr std::string_view kOp = "a = u·s·vᵀ";
    const Batch batch(context, kOp, "a", a);
    const std::int64_t k = std::min(batch.rows(), batch.cols());
    Result u(context, kOp, "u", batch, {batch.rows(), k}), s(context, kOp, "s", batch, {k}),
        vt(context, kOp, "vt", batch, {k, batch.cols()});
    for_each_matrix(context, batch, [&](std::int64_t i) {
      if (k == 0) return;
      const auto d = decompose(kOp, batch, i, Eigen::ComputeThinU | Eigen::ComputeThinV);
      u.set(i, d.matrixU());
      s.set(i, d.singularValues());
      vt.set(i, Matrix(d.matrixV().transpose()));
    });
    return Svd{u.take(), s.take(), vt.take()};
  });
}

SymmetricEigen symmetric_eigen(const ExecutionContext& context, const Tensor& a) {
  return with_context("symmetric_eigen", [&] {
    constexpr std::string_view kOp = "a·v = v·λ";
    const Batch batch(context, kOp, "a", a);
    require_square(kOp, batch);
    const std::int64_t n = batch.rows();
    Result values(context, kOp, "λ", batch, {n}), vectors(context, kOp, "v", batch, {n, n});
    for_each_matrix(context, batch, [&](std::int64_t i) {
      if (n == 0) return;
      const Matrix m = batch.matrix(i);
      require_symmetric(kOp, batch, i, m);
      const Eigen::SelfAdjointEigenSolver<Matrix> solver(m);
      if (solver.info() != Eigen::Success)
        throw Error(ErrorCode::kInternal,
                    fmt::format("{}: {}: the iteration did not converge", kOp, batch.which(i)));
      values.set(i, solver.eigenvalues());
      vectors.set(i, solver.eigenvectors());
    });
    return SymmetricEigen{values.take(), vectors.take()};
  });
}

LeastSquares least_squares(const ExecutionContext& context, const Tensor& a, const Tensor& b, double rcond) {
  return with_context("least_squares", [&] {
    constexpr std::string_view kOp = "‖a·x − b‖";
    const Batch left(context, kOp, "a", a), right(context, kOp, "b", b, a.shape().rank() == 2);
    require_sides(kOp, left, right);
    if (!(rcond >= 0 && rcond < 1)) ops::invalid(fmt::format("rcond {}: 0 ≤ rcond < 1 wanted", rcond));
    Result x = solution(context, kOp, left, right);
    Tensor rank(DType::kI32, batch_shape(left, {}), context.memory());
    auto* const ranks = reinterpret_cast<std::int32_t*>(rank.data());
    for_each_matrix(context, left, [&](std::int64_t i) {
      if (left.rows() == 0 || left.cols() == 0) return;
      auto d = decompose(kOp, left, i, Eigen::ComputeThinU | Eigen::ComputeThinV);
      d.setThreshold(rcond);
      ranks[i] = static_cast<std::int32_t>(d.rank());
      x.set(i, Matrix(d.solve(right.matrix(i))));
    });
    return LeastSquares{x.take(), std::move(rank)};
  });
}

double condition(const Tensor& a) {
  return with_context("condition", [&] {
    const Batch batch(ops::one_thread(), "matrix", "a", a);
    if (!batch.batch().empty())
      ops::invalid(fmt::format("matrix: {} is a batch; take one matrix of it", batch.description()));
    if (batch.rows() == 0 || batch.cols() == 0) return 0.0;
    const Eigen::VectorXd s = decompose("matrix", batch, 0, 0).singularValues();
    const double least = s(s.size() - 1);
    return least > 0 ? s(0) / least : std::numeric_limits<double>::infinity();
  });
}

}  // namespace bitnet::linalg
