// Scales in closed form, and the error that they minimise.
#include <fmt/format.h>

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <cmath>

#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "post_training/groups.hpp"
#include "post_training/hessian_product.hpp"

namespace bitnet::quant {
namespace {

using post_training::Grid;
using post_training::rows_of;
using post_training::times_hessian;

double dot(std::span<const float> a, std::span<const float> b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return sum;
}

/// One scale a group of whole rows: α = ⟨WH, T⟩ / ⟨TH, T⟩.
void refit_rows(const ExecutionContext& context, std::span<const float> w, const Hessian& hessian,
                const Grid& grid, TernaryWeights& ternary) {
  const std::vector<float> trits(ternary.trits.begin(), ternary.trits.end());
  const std::vector<float> wh = times_hessian(context, w, grid.out, hessian),
                           th = times_hessian(context, trits, grid.out, hessian);
  context.parallel_for(static_cast<std::size_t>(grid.count()), 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t g = begin; g < end; ++g) {
      const auto group = static_cast<std::int64_t>(g);
      const auto first = static_cast<std::size_t>(grid.first_row(group) * grid.in),
                 n = static_cast<std::size_t>((grid.last_row(group) - grid.first_row(group)) * grid.in);
      const auto part = [&](const std::vector<float>& v) { return std::span(v).subspan(first, n); };
      const double along = dot(part(wh), part(trits)), norm = dot(part(th), part(trits));
      const double alpha = norm > 0 ? along / norm : 0;
      if (alpha > 0 && std::isfinite(static_cast<float>(alpha)))
        ternary.scales[g] = static_cast<float>(alpha);
    }
  });
}

/// Groups of columns: the scales a of a row solve M·a = v with M[g, h] = T_g·H·T_hᵀ and v[g] = W·H·T_gᵀ,
/// where T_g is the row with the trits of group g only.
void refit_columns(const ExecutionContext& context, std::span<const float> w, const Hessian& hessian,
                   const Grid& grid, TernaryWeights& ternary) {
  const std::int64_t groups = grid.across();
  const std::vector<float> trits(ternary.trits.begin(), ternary.trits.end());
  const std::vector<float> wh = times_hessian(context, w, grid.out, hessian);
  std::vector<double> systems(static_cast<std::size_t>(grid.out * groups * groups));
  std::vector<float> product(static_cast<std::size_t>(grid.out * grid.in));  // T_g · H of every row
  const auto of_group = [&](const std::vector<float>& m, std::size_t row, std::int64_t g) {
    return std::span(m).subspan(
        row * static_cast<std::size_t>(grid.in) + static_cast<std::size_t>(g * grid.cols),
        static_cast<std::size_t>(grid.cols));
  };
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::vector<float> rows = rows_of(hessian, g * grid.cols, grid.cols);
    gemm(context, grid.out, grid.in, grid.cols, trits.data() + g * grid.cols, grid.in, 1, rows.data(),
         grid.in, 1, product.data(), grid.in, false);
    context.parallel_for(static_cast<std::size_t>(grid.out), 8, [&](std::size_t begin, std::size_t end) {
      for (std::size_t r = begin; r < end; ++r)
        for (std::int64_t h = 0; h < groups; ++h)
          systems[(r * static_cast<std::size_t>(groups) + static_cast<std::size_t>(g)) *
                      static_cast<std::size_t>(groups) +
                  static_cast<std::size_t>(h)] = dot(of_group(product, r, h), of_group(trits, r, h));
    });
  }
  context.parallel_for(static_cast<std::size_t>(grid.out), 8, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      using Square = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
      Square m = Eigen::Map<const Square>(systems.data() + r * static_cast<std::size_t>(groups * groups),
                                          groups, groups);
      Eigen::VectorXd v(groups);
      for (std::int64_t g = 0; g < groups; ++g) {
        v[g] = dot(of_group(wh, r, g), of_group(trits, r, g));
        // An empty group, or one that no input reaches, has no equation: its scale stays 0 here and is kept.
        if (!(m(g, g) > 0)) m(g, g) = 1;
      }
      const Eigen::LDLT<Square> solver(m);
      const Eigen::VectorXd a = solver.solve(v);
      const bool sane = solver.info() == Eigen::Success && a.allFinite() && a.minCoeff() >= 0;
      for (std::int64_t g = 0; sane && g < groups; ++g) {
        const auto scale = static_cast<float>(a[g]);
        if (scale > 0 && std::isfinite(scale))
          ternary.scales[r * static_cast<std::size_t>(groups) + static_cast<std::size_t>(g)] = scale;
      }
    }
  });
}

void check(std::size_t n_weights, const Hessian& hessian, std::int64_t in) {
  if (hessian.in() != in || hessian.n_rows() < 1)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("a Hessian of {} inputs from {} rows for {} weights with {} columns",
                            hessian.in(), hessian.n_rows(), n_weights, in));
}

}  // namespace

void refit_scales(const ExecutionContext& context, std::span<const float> w, const Hessian& hessian,
                  TernaryWeights& ternary) {
  const Grid grid = post_training::grid_of(ternary);
  check(w.size(), hessian, grid.in);
  if (w.size() != ternary.trits.size() || ternary.scales.size() != static_cast<std::size_t>(grid.count()))
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} weights, {} trits and {} scales of a matrix [{}, {}]", w.size(),
                            ternary.trits.size(), ternary.scales.size(), grid.out, grid.in));
  if (grid.cols != grid.in && grid.rows != 1)
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("scales of {} rows × {} columns cannot be fitted row by row", grid.rows, grid.cols));
  if (grid.cols == grid.in) {
    refit_rows(context, w, hessian, grid, ternary);
  } else {
    refit_columns(context, w, hessian, grid, ternary);
  }
}

double output_error(const ExecutionContext& context, std::span<const float> w,
                    std::span<const float> approximation, const Hessian& hessian) {
  const std::int64_t in = hessian.in();
  check(w.size(), hessian, in);
  if (w.size() != approximation.size() || w.empty() || w.size() % static_cast<std::size_t>(in) != 0)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} and {} weights for {} inputs", w.size(), approximation.size(), in));
  std::vector<float> error(w.size());
  for (std::size_t i = 0; i < w.size(); ++i) error[i] = w[i] - approximation[i];
  const double whole = quadratic_form(context, w, hessian);
  return whole > 0 ? quadratic_form(context, error, hessian) / whole : 0;
}

}  // namespace bitnet::quant
