// Orthogonal factorisations: QR, SVD, symmetric eigenvalues, and least squares by SVD.
#include <Eigen/Eigenvalues>
#include <Eigen/QR>
#include <Eigen/SVD>
#include <algorithm>
#include <limits>

#include "bitnet/core/linalg.hpp"
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

Qr qr(const Tensor& a) {
  return with_context("qr", [&] {
    const Batch batch("a = q·r", "a", a);
    const std::int64_t k = std::min(batch.rows(), batch.cols());
    Result q(batch, {batch.rows(), k}), r(batch, {k, batch.cols()});
    for (std::int64_t i = 0; k > 0 && i < batch.count(); ++i) {
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
    }
    return Qr{q.take(), r.take()};
  });
}

Svd svd(const Tensor& a) {
  return with_context("svd", [&] {
    const Batch batch("a = u·s·vᵀ", "a", a);
    const std::int64_t k = std::min(batch.rows(), batch.cols());
    Result u(batch, {batch.rows(), k}), s(batch, {k}), vt(batch, {k, batch.cols()});
    for (std::int64_t i = 0; k > 0 && i < batch.count(); ++i) {
      const auto d = decompose("a = u·s·vᵀ", batch, i, Eigen::ComputeThinU | Eigen::ComputeThinV);
      u.set(i, d.matrixU());
      s.set(i, d.singularValues());
      vt.set(i, Matrix(d.matrixV().transpose()));
    }
    return Svd{u.take(), s.take(), vt.take()};
  });
}

SymmetricEigen symmetric_eigen(const Tensor& a) {
  return with_context("symmetric_eigen", [&] {
    const Batch batch("a·v = v·λ", "a", a);
    require_square("a·v = v·λ", batch);
    const std::int64_t n = batch.rows();
    Result values(batch, {n}), vectors(batch, {n, n});
    for (std::int64_t i = 0; n > 0 && i < batch.count(); ++i) {
      const Matrix m = batch.matrix(i);
      require_symmetric("a·v = v·λ", batch, i, m);
      const Eigen::SelfAdjointEigenSolver<Matrix> solver(m);
      if (solver.info() != Eigen::Success)
        throw Error(ErrorCode::kInternal,
                    fmt::format("a·v = v·λ: {}: the iteration did not converge", batch.which(i)));
      values.set(i, solver.eigenvalues());
      vectors.set(i, solver.eigenvectors());
    }
    return SymmetricEigen{values.take(), vectors.take()};
  });
}

LeastSquares least_squares(const Tensor& a, const Tensor& b, double rcond) {
  return with_context("least_squares", [&] {
    const Batch left("‖a·x − b‖", "a", a), right("‖a·x − b‖", "b", b, a.shape().rank() == 2);
    require_sides("‖a·x − b‖", left, right);
    if (!(rcond >= 0 && rcond < 1)) ops::invalid(fmt::format("rcond {}: 0 ≤ rcond < 1 wanted", rcond));
    Result x = solution(left, right);
    LeastSquares out;
    for (std::int64_t i = 0; i < left.count() && left.rows() > 0 && left.cols() > 0; ++i) {
      auto d = decompose("‖a·x − b‖", left, i, Eigen::ComputeThinU | Eigen::ComputeThinV);
      d.setThreshold(rcond);
      out.rank = d.rank();
      x.set(i, Matrix(d.solve(right.matrix(i))));
    }
    out.x = x.take();
    return out;
  });
}

double condition(const Tensor& a) {
  return with_context("condition", [&] {
    const Batch batch("matrix", "a", a);
    if (!batch.batch().empty())
      ops::invalid(fmt::format("matrix: {} is a batch; take one matrix of it", batch.description()));
    if (batch.rows() == 0 || batch.cols() == 0) return 0.0;
    const Eigen::VectorXd s = decompose("matrix", batch, 0, 0).singularValues();
    const double least = s(s.size() - 1);
    return least > 0 ? s(0) / least : std::numeric_limits<double>::infinity();
  });
}

}  // namespace bitnet::linalg
