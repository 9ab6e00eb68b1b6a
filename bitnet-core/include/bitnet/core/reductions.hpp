#pragma once
// Reductions over axes, arg max and min, softmax and norms of tensors. Elementwise ops are ops.hpp, whose
// rules (strides, dtypes, bits, errors) hold here too. Float sums run over 16 lanes and one fold
// (docs/numerics.md): the error of a sum of n is at most γ(⌈n/16⌉ + 5) · Σ|terms|. f16 and bf16 are summed in
// f32 and rounded once. The forms in place write to x, give the same bits, and allow the other operands to
// share its memory; x must not name one place twice (a broadcast view). Thread-safe where a tensor that is
// written to in place is no other thread's meanwhile.
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string_view>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/tensor.hpp"

namespace bitnet::ops {

enum class Reduction : std::uint8_t {
  kSum,      ///< 0 for no elements; integers → i32, an Error when the sum does not fit
  kMean,     ///< NaN for no elements
  kMax,      ///< NaN if one is NaN; of zeros +0; Error for no elements
  kMin,      ///< the same
  kVar,      ///< mean of (x − mean)², NaN for no elements
  kNormL1,   ///< Σ |x|
  kNormL2,   ///< sqrt(Σ x²), without scaling: overflows beyond 1.8e19
  kNormMax,  ///< max |x|; 0 for no elements; NaN if one is NaN
};
std::string_view to_string(Reduction op) noexcept;  ///< "sum", …

/// Which axes go, and whether they stay as axes of size 1.
struct Axes {
  Axes() = default;  ///< all
  Axes(std::initializer_list<std::int64_t> which, bool keep = false)
      : all(false), keep_dims(keep), list(which.begin(), which.end()) {}
  bool all = true, keep_dims = false;
  std::vector<std::int64_t> list;  ///< negative ones count from the end; none twice
};

/// Reduces x over `axes`. kSum, kMax and kMin take integers; the others only floats.
Tensor reduce(const ExecutionContext& context, Reduction op, const Tensor& x, const Axes& axes = {});

/// i32 index of the first largest (smallest) element along `axis`; a NaN counts as it. Throws
/// Error(kInvalidArgument) for an axis of size 0 or above 2^31 − 1.
Tensor argmax(const ExecutionContext& context, const Tensor& x, std::int64_t axis);
Tensor argmin(const ExecutionContext& context, const Tensor& x, std::int64_t axis);

/// e^(x − max) / Σ e^(x − max) along `axis`; floats. A slice with NaN or ∞, or all −∞, is all NaN.
Tensor softmax(const ExecutionContext& context, const Tensor& x, std::int64_t axis);
void softmax_in_place(const ExecutionContext& context, Tensor& x, std::int64_t axis);
/// x − max − log Σ e^(x − max) along `axis`.
Tensor log_softmax(const ExecutionContext& context, const Tensor& x, std::int64_t axis);

/// x / sqrt(mean x² + eps) · w over the last axis; w [size of it] of x's dtype; eps ≥ 0 and finite.
Tensor rms_norm(const ExecutionContext& context, const Tensor& x, const Tensor& w, float eps);
void rms_norm_in_place(const ExecutionContext& context, Tensor& x, const Tensor& w, float eps);
/// (x − mean) / sqrt(var + eps) · w + b over the last axis; w and b as above.
Tensor layer_norm(const ExecutionContext& context, const Tensor& x, const Tensor& w, const Tensor& b,
                  float eps);
void layer_norm_in_place(const ExecutionContext& context, Tensor& x, const Tensor& w, const Tensor& b,
                         float eps);

}  // namespace bitnet::ops
