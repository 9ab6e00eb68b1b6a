// How much of a Hessian the rows determined.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <new>
#include <numeric>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/hessian.hpp"

namespace bitnet::quant {
namespace {

// Sums in f32 over Hessian::kBlockRows rows leave 128 · 2^-24 < 1e-5 of a diagonal of ones at most: what is
// less than some of those may be nothing but roundings.
constexpr double kLeastPivot = 1e-4;

/// Pivots above the least of H at these columns, scaled to a diagonal of ones: a Cholesky factor L, one
/// column at a time, the next pivot being the largest of what is left of the diagonal.
std::int64_t count_pivots(const Hessian& hessian, const std::vector<std::int64_t>& columns) {
  const std::size_t n = columns.size();
  const auto h = [&](std::size_t i, std::size_t j) {
    return hessian.values()[static_cast<std::size_t>(columns[i] * hessian.in() + columns[j])];
  };
  std::vector<double> left(n, 1.0), size(n), factor(n * n);  // factor: [n, pivots so far]
  for (std::size_t i = 0; i < n; ++i) size[i] = std::sqrt(h(i, i));
  for (std::size_t k = 0; k < n; ++k) {
    const auto p = static_cast<std::size_t>(std::max_element(left.begin(), left.end()) - left.begin());
    if (!(left[p] > kLeastPivot)) return static_cast<std::int64_t>(k);
    const double root = std::sqrt(left[p]);
    const double* const of_p = factor.data() + p * n;
    for (std::size_t i = 0; i < n; ++i) {
      double* const of_i = factor.data() + i * n;
      const double known = std::inner_product(of_i, of_i + k, of_p, 0.0);
      const double l = (h(i, p) / size[i] / size[p] - known) / root;
      if (i != p) of_i[k] = l;
      left[i] -= l * l;
    }
    factor[p * n + k] = root;
    left[p] = 0;
  }
  return static_cast<std::int64_t>(n);
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
  r.rank = count_pivots(hessian, seen);
  return r;
} catch (const std::bad_alloc&) {
  throw_out_of_memory(fmt::format("the rank of a Hessian of {} inputs", hessian.in()));
}

}  // namespace bitnet::quant
