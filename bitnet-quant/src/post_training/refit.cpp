// Scales in closed form, and the error that they minimise.
#include <fmt/format.h>

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <algorithm>
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
                const Grid& grid, TernaryWeights& ternary, CancelFlag cancelled) {
  const std::vector<float> trits(ternary.trits.begin(), ternary.trits.end());
  const std::vector<float> wh = times_hessian(context, w, grid.out, hessian, cancelled),
                           th = times_hessian(context, trits, grid.out, hessian, cancelled);
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
/// where T_g is the row with the trits of group g only. The systems of as many rows at a time as take, with
/// their products, four bytes a weight; one row's whatever they take.
class ColumnRefit {
 public:
  ColumnRefit(const ExecutionContext& context, std::span<const float> w, const Hessian& hessian,
              const Grid& grid, TernaryWeights& ternary, CancelFlag cancelled)
      : context_(context),
        hessian_(hessian),
        grid_(grid),
        groups_(static_cast<std::size_t>(grid.across())),
        ternary_(ternary),
        cancelled_(cancelled),
        trits_(ternary.trits.begin(), ternary.trits.end()),
        wh_(times_hessian(context, w, grid.out, hessian, cancelled)) {}

  void run() {
    const std::int64_t g = grid_.across();
    const std::int64_t rows =
        std::clamp<std::int64_t>(grid_.out * grid_.in / (grid_.in + 2 * g * g), 1, grid_.out);
    products_.resize(static_cast<std::size_t>(rows * grid_.in));
    systems_.resize(static_cast<std::size_t>(rows) * groups_ * groups_);
    for (std::int64_t first = 0; first < grid_.out; first += rows) {
      const std::int64_t n = std::min(rows, grid_.out - first);
      make_systems(first, n);
      context_.parallel_for(static_cast<std::size_t>(n), 8, [&](std::size_t begin, std::size_t end) {
        for (std::size_t r = begin; r < end; ++r) solve(static_cast<std::size_t>(first) + r, r);
      });
    }
  }

 private:
  using Square = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

  std::span<const float> of_group(const std::vector<float>& m, std::size_t row, std::size_t g) const {
    const auto cols = static_cast<std::size_t>(grid_.cols);
    return std::span(m).subspan(row * static_cast<std::size_t>(grid_.in) + g * cols, cols);
  }

  /// M of rows [first, first + n).
  void make_systems(std::int64_t first, std::int64_t n) {
    for (std::size_t g = 0; g < groups_; ++g) {
      throw_if_cancelled(cancelled_);
      const std::int64_t column = static_cast<std::int64_t>(g) * grid_.cols;
      const std::vector<float> rows = rows_of(hessian_, column, grid_.cols);
      // T_g · H of every row.
      gemm(context_, n, grid_.in, grid_.cols, trits_.data() + first * grid_.in + column, grid_.in, 1,
           rows.data(), grid_.in, 1, products_.data(), grid_.in, false);
      context_.parallel_for(static_cast<std::size_t>(n), 8, [&](std::size_t begin, std::size_t end) {
        for (std::size_t r = begin; r < end; ++r)
          for (std::size_t h = 0; h < groups_; ++h)
            systems_[(r * groups_ + g) * groups_ + h] =
                dot(of_group(products_, r, h), of_group(trits_, static_cast<std::size_t>(first) + r, h));
      });
    }
  }

  /// Scales of a row, whose system is the one at `place`.
  void solve(std::size_t row, std::size_t place) {
    const auto n = static_cast<Eigen::Index>(groups_);
    Eigen::Map<Square> m(systems_.data() + place * groups_ * groups_, n, n);
    Eigen::VectorXd v(n);
    for (std::size_t g = 0; g < groups_; ++g) {
      const auto i = static_cast<Eigen::Index>(g);
      v[i] = dot(of_group(wh_, row, g), of_group(trits_, row, g));
      // An empty group, or one that no input reaches, has no equation: its scale stays 0 here and is kept.
      if (!(m(i, i) > 0)) m(i, i) = 1;
    }
    const Eigen::LDLT<Eigen::Ref<Square>> solver(m);  // in place
    const Eigen::VectorXd a = solver.solve(v);
    if (solver.info() != Eigen::Success || !a.allFinite() || a.minCoeff() < 0) return;
    for (std::size_t g = 0; g < groups_; ++g) {
      const auto scale = static_cast<float>(a[static_cast<Eigen::Index>(g)]);
      if (scale > 0 && std::isfinite(scale)) ternary_.scales[row * groups_ + g] = scale;
    }
  }

  const ExecutionContext& context_;
  const Hessian& hessian_;
  const Grid& grid_;
  const std::size_t groups_;  // of a row
  TernaryWeights& ternary_;
  const CancelFlag cancelled_;
  const std::vector<float> trits_, wh_;  // [out, in]
  std::vector<float> products_;          // [rows at a time, in]
  std::vector<double> systems_;          // [rows at a time, groups, groups]
};

void check(std::size_t n_weights, const Hessian& hessian, std::int64_t in) {
  if (hessian.in() != in || hessian.n_rows() < 1)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("a Hessian of {} inputs from {} rows for {} weights with {} columns",
                            hessian.in(), hessian.n_rows(), n_weights, in));
}

}  // namespace

void refit_scales(const ExecutionContext& context, std::span<const float> w, const Hessian& hessian,
                  TernaryWeights& ternary, CancelFlag cancelled) {
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
    refit_rows(context, w, hessian, grid, ternary, cancelled);
  } else {
    ColumnRefit(context, w, hessian, grid, ternary, cancelled).run();
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
