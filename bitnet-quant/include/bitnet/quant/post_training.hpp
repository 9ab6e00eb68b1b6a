#pragma once
// Ternary weights from a model that was not trained for them. absmean, the right one for models that were, is
// quantize.hpp; the second moments that the better methods need are hessian.hpp. All are deterministic: the
// same bits with any number of threads. Thread-safe: each writes to nothing but what it is given for that.
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/quant/hessian.hpp"
#include "bitnet/quant/quantize.hpp"

namespace bitnet::quant {

/// Which weights share a scale.
struct ScaleGroups {
  std::int64_t rows = 0;  ///< 0: all
  std::int64_t cols = 0;  ///< 0: all
  static constexpr ScaleGroups tensor() { return {0, 0}; }
  static constexpr ScaleGroups row() { return {1, 0}; }
  static constexpr ScaleGroups columns(std::int64_t n) { return {1, n}; }  ///< groups of n in each row
};

/// [out, in] of scale · trit.
std::vector<float> dequantise(const TernaryWeights& w);

/// The trits and scales that W is made of, where it is made so: in every group of `groups` the weights that
/// are not zero have one size, to a relative difference of `unit` (one in the last place of the type that
/// they are stored in), which is the scale. None for other weights, and where a weight is not finite. Throws
/// Error(kInvalidArgument) on sizes and groups that do not fit.
std::optional<TernaryWeights> exactly_ternary(std::span<const float> w, std::int64_t out, std::int64_t in,
                                              ScaleGroups groups, float unit);

/// The trits t and the scale α ≥ 0 that minimise Σ (w − α·t)² exactly: the k largest |w| get ±1, where k is
/// the largest that maximises (Σ of the k largest |w|)² / k, and α is their mean; so the threshold is α / 2.
/// By sorting and prefix sums in double. Throws Error(kInvalidArgument) on a weight that is not finite.
float least_squares(std::span<const float> w, std::span<std::int8_t> trits);

/// least_squares() of every group of a matrix [out, in]. A group of zeros has the scale 0. Throws
/// Error(kInvalidArgument) on sizes that disagree, on groups that are no divisor of `in` (the last one may be
/// smaller along the rows only), or on a weight that is not finite, with its index.
TernaryWeights least_squares(const ExecutionContext& context, std::span<const float> w, std::int64_t out,
                             std::int64_t in, ScaleGroups groups);

/// New scales for fixed trits that minimise Σ over the rows of (W − Ŵ)·H·(W − Ŵ)ᵀ: for one scale a group of
/// whole rows α = ⟨WH, T⟩ / ⟨TH, T⟩, for groups of columns the solution of one small linear system a row.
/// Groups whose trits are all zero, or which the inputs never reach, keep their scale; a scale that would be
/// negative keeps its old value, too. Takes 12 bytes a weight, for groups of columns 4 · in + 8 · (in /
/// cols)² if that is more, beside a strip of the Hessian. Throws Error(kInvalidArgument) on sizes that
/// disagree or columns that are shared by several rows, Error(kCancelled).
void refit_scales(const ExecutionContext& context, std::span<const float> w, const Hessian& hessian,
                  TernaryWeights& ternary, CancelFlag cancelled = nullptr);

struct GptqOptions {
  ScaleGroups groups;
  /// Added to H's diagonal, times its mean: ≥ 0.
  double damping = 0.01;
  /// The least-squares scales are tried times each of these, and the best by H's error is kept: what is
  /// rounded away from one column is made up for by those after it, which larger scales leave room for. Not
  /// empty, all > 0.
  std::vector<double> multipliers = {1.0, 1.2, 1.4, 1.6, 1.8, 2.0};
  bool activation_order = false;  ///< columns in descending order of H's diagonal
  bool refit = true;              ///< refit_scales() at the end
};

/// What gptq() makes of a Hessian first, and linears with the same inputs share. Takes 4 · in² bytes, and 8 ·
/// in² more while it is made. Immutable.
class GptqFactor {
 public:
  /// Throws Error(kInvalidArgument) on a Hessian without rows, or that no damping up to the mean of its
  /// diagonal makes positive definite, Error(kOutOfMemory), Error(kCancelled).
  GptqFactor(const Hessian& hessian, double damping, bool activation_order, CancelFlag cancelled = nullptr);

  std::int64_t in() const noexcept { return static_cast<std::int64_t>(order_.size()); }
  /// As asked for, or as much as it took: ten times as much each time it was too little.
  double damping() const noexcept { return damping_; }
  /// Columns in the order in which they are rounded.
  const std::vector<std::int64_t>& order() const noexcept { return order_; }
  /// R, upper triangular, with H⁻¹ = RᵀR of the damped H with its columns in that order. [in, in]
  const std::vector<float>& values() const noexcept { return values_; }

 private:
  std::vector<std::int64_t> order_;
  double damping_;
  std::vector<float> values_;
};

/// Weights rounded column by column, the error of each spread over the columns after it (Frantar et al. 2022,
/// algorithm 1). Inputs that are always zero leave their columns to plain rounding. Takes 12 · in² bytes
/// beside the Hessian, then 4 · in² and 15 a weight. Throws Error(kInvalidArgument) as least_squares() and
/// GptqFactor do, and on a Hessian of another size, Error(kCancelled).
TernaryWeights gptq(const ExecutionContext& context, std::span<const float> w, std::int64_t out,
                    std::int64_t in, const Hessian& hessian, const GptqOptions& options = {},
                    CancelFlag cancelled = nullptr);
/// The same with a factor of `hessian` that is there; the options' damping and order are the factor's.
TernaryWeights gptq(const ExecutionContext& context, std::span<const float> w, std::int64_t out,
                    std::int64_t in, const Hessian& hessian, const GptqFactor& factor,
                    const GptqOptions& options = {}, CancelFlag cancelled = nullptr);

/// Two planes (PTQTP: Xiao et al. 2025, arXiv:2509.16989): alternates between the best trits for fixed
/// scales, one of nine pairs for each weight, and the best two scales for fixed trits (a 2 × 2 system a
/// group), from least_squares() of W and of what it leaves, until nothing changes or `rounds` are over; the
/// squared error never grows. Throws as least_squares(), Error(kCancelled).
TwoPlanes two_planes(const ExecutionContext& context, std::span<const float> w, std::int64_t out,
                     std::int64_t in, ScaleGroups groups, int rounds = 50, CancelFlag cancelled = nullptr);

/// tr((W − Ŵ)·H·(W − Ŵ)ᵀ) / tr(W·H·Wᵀ): the output's relative mean squared error on the calibration inputs.
double output_error(const ExecutionContext& context, std::span<const float> w,
                    std::span<const float> approximation, const Hessian& hessian);

}  // namespace bitnet::quant
