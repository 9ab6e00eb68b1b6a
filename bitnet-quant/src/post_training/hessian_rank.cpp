// How much of a Hessian the rows determined.
#include <fmt/format.h>

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/hessian.hpp"

namespace bitnet::quant {
namespace {

using Square = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

// Sums in f32 over Hessian::kBlockRows rows leave 128 · 2^-24 < 1e-5 of a diagonal of ones at most. The ridge
// is above that and makes the matrix positive definite; the pivot of a column that follows from others with
// coefficients a is then (1 + |a|²) times the ridge.
constexpr double kRidge = 1e-5, kLeastPivot = 10 * kRidge;

/// H at these columns, scaled to a diagonal of ones.
Square correlations(const Hessian& hessian, const std::vector<std::int64_t>& columns) {
  const auto n = static_cast<Eigen::Index>(columns.size());
  const auto at = [&](Eigen::Index i, Eigen::Index j) {
    return hessian.values()[static_cast<std::size_t>(columns[static_cast<std::size_t>(i)] * hessian.in() +
                                                     columns[static_cast<std::size_t>(j)])];
  };
  Eigen::VectorXd size(n);
  for (Eigen::Index i = 0; i < n; ++i) size[i] = std::sqrt(at(i, i));
  Square m(n, n);
  for (Eigen::Index i = 0; i < n; ++i)
    for (Eigen::Index j = 0; j < n; ++j) m(i, j) = at(i, j) / size[i] / size[j];
  return m;
}

}  // namespace

HessianRank rank_of(const Hessian& hessian) try {
  HessianRank r;
  r.columns = std::min(hessian.in(), HessianRank::kMostColumns);
  std::vector<std::int64_t> seen;
  for (std::int64_t i = 0; i < r.columns; ++i) {
    const std::int64_t c = i * hessian.in() / r.columns;
    if (hessian.values()[static_cast<std::size_t>(c * hessian.in() + c)] > 0)
      seen.push_back(c);
    else
      ++r.unseen;
  }
  if (seen.empty()) return r;
  for (double ridge = kRidge; ridge < 1; ridge *= 10) {
    Square m = correlations(hessian, seen);
    m.diagonal().array() += ridge;
    const Eigen::LLT<Eigen::Ref<Square>> factor(m);  // in place
    if (factor.info() != Eigen::Success) continue;
    for (Eigen::Index i = 0; i < m.rows(); ++i) r.rank += m(i, i) * m(i, i) > ridge / kRidge * kLeastPivot;
    return r;
  }
  return r;  // no second moments: not positive semidefinite
} catch (const std::bad_alloc&) {
  throw_out_of_memory(fmt::format("the rank of a Hessian of {} inputs", hessian.in()));
}

}  // namespace bitnet::quant
