// See memory_need.hpp. Bytes a weight are those of the vectors that live at the same time; each line names
// them in the order of the code.
#include "quantizer/memory_need.hpp"

#include <algorithm>

#include "bitnet/quant/hessian.hpp"
#include "bitnet/quant/post_training.hpp"

namespace bitnet::quant {
namespace {

/// What least_squares() and two_planes() hold of a group on each thread: `a_weight` bytes of one.
std::uint64_t scratch(const ScaleGroups& groups, std::int64_t out, std::int64_t in, std::size_t threads,
                      std::uint64_t a_weight) {
  const auto cells = static_cast<std::uint64_t>((groups.rows == 0 ? out : std::min(groups.rows, out)) *
                                                (groups.cols == 0 ? in : groups.cols));
  const std::uint64_t count = static_cast<std::uint64_t>(out * in) / cells;
  return a_weight * cells * std::min<std::uint64_t>(threads, count);
}

/// Of refit_scales(): trits and W·H as f32 [out, in], and T·H, or four bytes a weight of systems with their
/// products, one row's at least.
std::uint64_t refit(const ScaleGroups& groups, std::uint64_t n, std::uint64_t in) {
  const std::uint64_t across = groups.cols == 0 ? 1 : in / static_cast<std::uint64_t>(groups.cols);
  return 8 * n + std::max(4 * n, 4 * in + 8 * across * across);
}

std::uint64_t scale_bytes(const ScaleGroups& groups, std::int64_t out, std::int64_t in) {
  return 4 * static_cast<std::uint64_t>(groups.rows == 0 ? 1 : (out + groups.rows - 1) / groups.rows) *
         static_cast<std::uint64_t>(groups.cols == 0 ? 1 : in / groups.cols);
}

}  // namespace

LinearNeed need_of(const LinearPlan& plan, std::int64_t out, std::int64_t in, bool calibrated,
                   std::size_t threads) {
  const auto n = static_cast<std::uint64_t>(out * in), columns = static_cast<std::uint64_t>(in);
  const ScaleGroups groups = is_ternary(plan.method) ? scale_groups(plan.scales) : ScaleGroups::row();
  const std::uint64_t scales = scale_bytes(groups, out, in);
  LinearNeed need;
  std::uint64_t method = 0;  // beside the f32 weights and the result
  switch (plan.method) {
    case WeightMethod::kKeep:
      need.result = 4 * n;  // f32 at most
      break;
    case WeightMethod::kAbsmean:
      need.result = n + scales;
      break;
    case WeightMethod::kInt8:
      need.result = n + scales;
      break;
    case WeightMethod::kLeastSquares:
      need.result = n + scales;
      method = scratch(groups, out, in, threads, 4 + 1 + 4);  // values, trits, sorted sizes
      break;
    case WeightMethod::kLeastSquaresRefit:
      need.result = n + scales;
      method = std::max(scratch(groups, out, in, threads, 9), refit(groups, n, columns));
      break;
    case WeightMethod::kTwoPlane:
      need.result = 2 * (n + scales);
      method = scratch(groups, out, in, threads, 4 + 4 + 1 + 1 + 4);  // values, rest, two of trits, sizes
      break;
    case WeightMethod::kGptq: {
      // The first trits and those of a trial beside the best; then what is left of W and errors of a block.
      const std::uint64_t pass = 4 * n +
                                 4 * static_cast<std::uint64_t>(out * std::min<std::int64_t>(in, 128)) +
                                 8 * static_cast<std::uint64_t>(out);
      need.result = n + scales;
      method = 2 * (n + scales) +
               std::max({pass, refit(groups, n, columns), scratch(groups, out, in, threads, 9)});
      break;
    }
  }
  // Weights as they will run, which two planes are the sum of; with a Hessian their error and its product.
  const std::uint64_t planes = plan.method == WeightMethod::kTwoPlane ? 4 * n : 0;
  const std::uint64_t measured = 4 * n + std::max(planes, calibrated ? 8 * n : 0);
  // Before the method: the rank of the Hessian. With every product: a strip of the Hessian.
  const auto looked_at = static_cast<std::uint64_t>(std::min(in, HessianRank::kMostColumns));
  const std::uint64_t rank = needs_calibration(plan.method) ? 8 * looked_at * looked_at : 0;
  const std::uint64_t strip = calibrated ? 1024 * columns : 0;
  // The weights as they are stored are there, f32 at most, before they are f32.
  need.peak = 4 * n + std::max({4 * n, need.result + std::max({method, measured, rank}) + strip});
  return need;
}

}  // namespace bitnet::quant
