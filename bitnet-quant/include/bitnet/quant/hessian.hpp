#pragma once
// The second moments of a linear's inputs, which say what an error of its weights costs: for an error E of
// one row the output's mean squared error is E·H·Eᵀ / n with H = XᵀX (Frantar et al. 2022, arXiv:2210.17323,
// section 3). Collected here from rows of activations; who runs the model that makes them is the caller's
// business.
#include <cstdint>
#include <span>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/quant/cancellation.hpp"

namespace bitnet::quant {

/// Σ xᵀx over the rows x of a linear's input. Takes 8 · in² bytes. Not thread-safe; the sums are the same
/// bits with any number of threads, and however the rows are cut into calls of multiples of kBlockRows.
class Hessian {
 public:
  static constexpr std::int64_t kBlockRows = 128;  ///< summed in f32 before they go to the doubles

  /// Throws Error(kInvalidArgument) unless 1 ≤ in ≤ 2^20, Error(kOutOfMemory).
  explicit Hessian(std::int64_t in);

  /// One that was saved. Throws Error(kInvalidArgument) on sizes that disagree, fewer than no rows, or values
  /// that are not finite.
  Hessian(std::int64_t in, std::int64_t n_rows, std::vector<double> values);

  /// Rows x [n, in]. Throws Error(kInvalidArgument) on a size that is no multiple of `in`, or on a value that
  /// is not finite, with its row and column; nothing is added then.
  void add(const ExecutionContext& context, std::span<const float> x);

  std::int64_t in() const noexcept { return in_; }
  std::int64_t n_rows() const noexcept { return n_rows_; }  ///< added so far
  /// [in, in], symmetric.
  std::span<const double> values() const noexcept { return values_; }

 private:
  std::int64_t in_, n_rows_ = 0;
  std::vector<double> values_;
};

/// How many directions of an input its rows reach. A plain value.
struct HessianRank {
  /// Columns that are looked at, evenly spread: the cost is that of their matrix, 2 MiB at most.
  static constexpr std::int64_t kMostColumns = 512;
  std::int64_t columns = 0;  ///< that were looked at: all, or kMostColumns
  std::int64_t unseen = 0;   ///< of those, inputs that are 0 in every row
  std::int64_t rank = 0;     ///< of those, that do not follow from others
};

/// By the pivots, the largest first, of H scaled to a diagonal of ones: a column follows from others when
/// these leave less than 1e-4 of its square. Without any damping of a method. Throws Error(kOutOfMemory).
HessianRank rank_of(const Hessian& hessian);

/// tr(M·H·Mᵀ) of M [out, in]: n_rows() times the mean squared output of a linear with these weights, or of an
/// error of them. Products in f32, summed in double. Throws Error(kInvalidArgument) on a size that does not
/// fit, Error(kCancelled).
double quadratic_form(const ExecutionContext& context, std::span<const float> m, const Hessian& hessian,
                      CancelFlag cancelled = nullptr);

}  // namespace bitnet::quant
