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

// Sums in f32 over Hessian::kBlockRows rows leave 128 · 2^-24 < 1e-5 of a diagonal of ones at most: what is
// less than some of those may be nothing but roundings.
constexpr double kLeastPivot = 1e-4;

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
  Square m = correlations(hessian, seen);
  const Eigen::LDLT<Eigen::Ref<Square>> factor(m);  // in place; the largest pivot that is left comes next
  // Behind the first small one come quotients of roundings.
  while (r.rank < m.rows() && m(r.rank, r.rank) > kLeastPivot) ++r.rank;
  return r;
} catch (const std::bad_alloc&) {
  throw_out_of_memory(fmt::format("the rank of a Hessian of {} inputs", hessian.in()));
}

}  // namespace bitnet::quant
