// GPTQ with ternary rounding. Rounding column j leaves an error that the columns after it can make up for as
// far as the inputs of both are related: with H = U·Uᵀ, U upper triangular, and R = U⁻¹ (so H⁻¹ = RᵀR), the
// weights behind j change by −e·R[j, k], e = (w_j − q_j) / R[j, j]. Then Σ e² over a row is (w − q)·H·(w −
// q)ᵀ.
#include <fmt/format.h>

#include <Eigen/Cholesky>
#include <Eigen/Core>
#include <cmath>
#include <limits>
#include <numeric>

#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "post_training/groups.hpp"

namespace bitnet::quant {
namespace {

using post_training::Grid;
using Square = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr std::int64_t kBlock = 128;  // columns whose errors are spread at once
constexpr std::int64_t kPanel = 64;   // columns of a factor between two looks at whether to stop

std::vector<std::int64_t> column_order(const Hessian& hessian, bool by_activation) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(hessian.in()));
  std::iota(order.begin(), order.end(), 0);
  const auto diagonal = [&](std::int64_t c) {
    return hessian.values()[static_cast<std::size_t>(c * hessian.in() + c)];
  };
  if (by_activation)
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return diagonal(a) > diagonal(b); });
  return order;
}

/// H with its columns in `order` and `share` times its mean diagonal added, turned about both axes: the lower
/// factor of that is U turned about. Inputs that are always zero get a diagonal of their own.
Square damped(const Hessian& hessian, const std::vector<std::int64_t>& order, double mean, double share) {
  const std::int64_t n = hessian.in();
  const auto place = [&](std::int64_t i) { return order[static_cast<std::size_t>(n - 1 - i)]; };
  Square turned(n, n);
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < n; ++j)
      turned(i, j) = hessian.values()[static_cast<std::size_t>(place(i) * n + place(j))];
  for (std::int64_t i = 0; i < n; ++i)
    turned(i, i) = turned(i, i) > 0 ? turned(i, i) + share * mean : std::max(mean, 1.0);
  return turned;
}

/// Its lower triangle becomes L with M = L·Lᵀ, a panel of columns at a time; false where M is not positive
/// definite.
bool cholesky(Square& m, CancelFlag cancelled) {
  const Eigen::Index n = m.rows();
  for (Eigen::Index k = 0; k < n; k += kPanel) {
    throw_if_cancelled(cancelled);
    const Eigen::Index width = std::min<Eigen::Index>(kPanel, n - k), below = n - k - width;
    auto panel = m.block(k, k, n - k, width);
    if (k > 0) panel.noalias() -= m.block(k, 0, n - k, k) * m.block(k, 0, width, k).transpose();
    const Eigen::LLT<Square> corner(m.block(k, k, width, width));
    if (corner.info() != Eigen::Success) return false;
    m.block(k, k, width, width) = corner.matrixLLT();
    if (below > 0) {
      auto rest = m.block(k + width, k, below, width);
      corner.matrixU().solveInPlace<Eigen::OnTheRight>(rest);
    }
  }
  return true;
}

/// R, turned back: R[n − 1 − i, n − 1 − j] = L⁻¹[i, j], a panel of columns j at a time.
std::vector<float> turned_inverse(const Square& l, CancelFlag cancelled) {
  const Eigen::Index n = l.rows();
  std::vector<float> to(static_cast<std::size_t>(n * n));
  for (Eigen::Index k = 0; k < n; k += kPanel) {
    throw_if_cancelled(cancelled);
    const Eigen::Index width = std::min<Eigen::Index>(kPanel, n - k);
    Square columns = Square::Identity(n - k, width);
    l.block(k, k, n - k, n - k).triangularView<Eigen::Lower>().solveInPlace(columns);
    for (Eigen::Index i = k; i < n; ++i)
      for (Eigen::Index j = k; j < std::min(k + width, i + 1); ++j)
        to[static_cast<std::size_t>((n - 1 - i) * n + n - 1 - j)] = static_cast<float>(columns(i - k, j - k));
  }
  return to;
}

/// One pass over the columns with fixed scales.
class Pass {
 public:
  Pass(const ExecutionContext& context, const Grid& grid, const std::vector<std::int64_t>& order,
       const std::vector<float>& factor, CancelFlag cancelled)
      : context_(context), grid_(grid), order_(order), factor_(factor), cancelled_(cancelled) {}

  /// Trits for to.scales; returns Σ e², the damped H's error.
  double operator()(std::span<const float> w, TernaryWeights& to) const {
    const std::int64_t in = grid_.in, out = grid_.out;
    std::vector<float> rest(w.size()), errors(static_cast<std::size_t>(out * std::min(kBlock, in)));
    for (std::int64_t r = 0; r < out; ++r)
      for (std::int64_t c = 0; c < in; ++c)
        rest[static_cast<std::size_t>(r * in + c)] =
            w[static_cast<std::size_t>(r * in + order_[static_cast<std::size_t>(c)])];
    std::vector<double> sums(static_cast<std::size_t>(out));
    for (std::int64_t begin = 0; begin < in; begin += kBlock) {
      throw_if_cancelled(cancelled_);
      const std::int64_t n = std::min(kBlock, in - begin), behind = in - begin - n;
      context_.parallel_for(static_cast<std::size_t>(out), 4, [&](std::size_t first, std::size_t last) {
        for (std::size_t r = first; r < last; ++r)
          sums[r] += round_block(static_cast<std::int64_t>(r), begin, n, rest, errors, to);
      });
      if (behind > 0)
        gemm(context_, out, behind, n, errors.data(), n, 1, factor_.data() + begin * in + begin + n, in, 1,
             rest.data() + begin + n, in, true);
    }
    return std::accumulate(sums.begin(), sums.end(), 0.0);
  }

 private:
  /// Rounds columns [begin, begin + n) of a row; their errors, negated, go to errors[row].
  double round_block(std::int64_t row, std::int64_t begin, std::int64_t n, std::vector<float>& rest,
                     std::vector<float>& errors, TernaryWeights& to) const {
    float* const w = rest.data() + row * grid_.in + begin;
    float* const error = errors.data() + row * n;
    double sum = 0;
    for (std::int64_t j = 0; j < n; ++j) {
      const std::int64_t column = order_[static_cast<std::size_t>(begin + j)];
      const float scale =
          to.scales[static_cast<std::size_t>(row / grid_.rows * grid_.across() + column / grid_.cols)];
      const float half = 0.5f * scale;
      const int trit = static_cast<int>(w[j] > half) - static_cast<int>(w[j] < -half);
      to.trits[static_cast<std::size_t>(row * grid_.in + column)] =
          static_cast<std::int8_t>(scale > 0 ? trit : 0);
      const float q = scale > 0 ? scale * static_cast<float>(trit) : 0.0f;
      const float* const r = factor_.data() + (begin + j) * grid_.in + begin;
      const float e = (w[j] - q) / r[j];
      for (std::int64_t k = j + 1; k < n; ++k) w[k] -= e * r[k];
      error[j] = -e;
      sum += static_cast<double>(e) * static_cast<double>(e);
    }
    return sum;
  }

  const ExecutionContext& context_;
  const Grid& grid_;
  const std::vector<std::int64_t>& order_;
  const std::vector<float>& factor_;
  CancelFlag cancelled_;
};

void check(const Hessian& hessian, const Grid& grid, const GptqOptions& options) {
  if (hessian.in() != grid.in || hessian.n_rows() < 1)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("gptq: a Hessian of {} inputs from {} rows for a matrix [{}, {}]", hessian.in(),
                            hessian.n_rows(), grid.out, grid.in));
  const auto bad = [](double m) { return !(m > 0) || !std::isfinite(m); };
  if (options.multipliers.empty() || std::any_of(options.multipliers.begin(), options.multipliers.end(), bad))
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("gptq: {} multipliers: expected at least one, all above 0", options.multipliers.size()));
}

}  // namespace

GptqFactor::GptqFactor(const Hessian& hessian, double damping, bool activation_order,
                       CancelFlag cancelled) try
    : order_(column_order(hessian, activation_order)), damping_(damping) {
  const std::int64_t n = hessian.in();
  if (hessian.n_rows() < 1 || !(damping >= 0) || !std::isfinite(damping))
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("gptq: a Hessian of {} inputs from {} rows, damping {}: expected rows, and damping "
                    "of at least 0",
                    n, hessian.n_rows(), damping));
  double mean = 0;
  for (std::int64_t i = 0; i < n; ++i)
    mean += hessian.values()[static_cast<std::size_t>(i * n + i)] / static_cast<double>(n);
  for (;; damping_ = std::max(10 * damping_, 1e-6)) {
    Square turned = damped(hessian, order_, mean, damping_);
    if (cholesky(turned, cancelled)) {
      values_ = turned_inverse(turned, cancelled);
      return;
    }
    if (damping_ >= 1)
      throw Error(
          ErrorCode::kInvalidArgument,
          fmt::format("gptq: the Hessian of {} inputs from {} rows is not positive definite, even with "
                      "its mean diagonal added: expected more calibration data, or inputs that are "
                      "not constant",
                      n, hessian.n_rows()));
  }
} catch (const std::bad_alloc&) {
  throw_out_of_memory(fmt::format("gptq's factor of a Hessian of {} inputs", hessian.in()));
}

TernaryWeights gptq(const ExecutionContext& context, std::span<const float> w, std::int64_t out,
                    std::int64_t in, const Hessian& hessian, const GptqOptions& options,
                    CancelFlag cancelled) {
  check(hessian, post_training::make_grid(w.size(), out, in, options.groups), options);
  return gptq(context, w, out, in, hessian,
              GptqFactor(hessian, options.damping, options.activation_order, cancelled), options, cancelled);
}

TernaryWeights gptq(const ExecutionContext& context, std::span<const float> w, std::int64_t out,
                    std::int64_t in, const Hessian& hessian, const GptqFactor& factor,
                    const GptqOptions& options, CancelFlag cancelled) try {
  const Grid grid = post_training::make_grid(w.size(), out, in, options.groups);
  check(hessian, grid, options);
  if (factor.in() != in)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("gptq: the factor of a Hessian of {} inputs for {} columns", factor.in(), in));
  const TernaryWeights start = least_squares(context, w, out, in, options.groups);
  const Pass pass(context, grid, factor.order(), factor.values(), cancelled);
  TernaryWeights best, tried = start;
  double least = std::numeric_limits<double>::infinity();
  for (const double m : options.multipliers) {
    for (std::size_t i = 0; i < start.scales.size(); ++i)
      tried.scales[i] = static_cast<float>(m * static_cast<double>(start.scales[i]));
    if (const double error = pass(w, tried); error < least || best.trits.empty()) {
      least = error;
      best = tried;
    }
  }
  if (options.refit && (grid.cols == grid.in || grid.rows == 1))
    refit_scales(context, w, hessian, best, cancelled);
  return best;
} catch (const std::bad_alloc&) {
  throw_out_of_memory(fmt::format("gptq of a matrix [{}, {}]", out, in));
}

}  // namespace bitnet::quant
