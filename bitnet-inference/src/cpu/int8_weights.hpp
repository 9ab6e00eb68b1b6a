#pragma once
// Embeddings and output heads as int8 with a scale a row: look-ups, and products with rows quantised as those
// of a BitLinear are. The same matrices in their own float type are dense.hpp.
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/execution.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/quant/int8_linear.hpp"

namespace bitnet::inference::cpu {

/// A dense [out, in] matrix rounded to int8.
class Int8Weights final : public PreparedWeights {
 public:
  Int8Weights(quant::Int8Linear linear, ActivationForm activations)
      : PreparedWeights(linear.out(), linear.in(), false, linear.bytes()),
        linear_(std::move(linear)),
        activations_(activations) {}
  /// Rounds the rows of `weights` (dense) on the threads of `context`. Throws as Int8Linear does.
  static std::shared_ptr<const Int8Weights> make(const ExecutionContext& context, const F32Kernels& kernels,
                                                 const LinearWeights& weights);

  /// y[i, out] = x[rows[i]] · Wᵀ, each row of x quantised by itself, into `scratch`.
  void multiply(const ExecutionContext& context, const float* x, std::span<const std::int32_t> rows,
                quant::QuantizedRows& scratch, float* y) const;
  /// y = x · Wᵀ for all of x [n_rows, in].
  void multiply(const ExecutionContext& context, std::span<const float> x, std::int64_t n_rows,
                quant::QuantizedRows& scratch, float* y) const;
  /// Row `index` as f32.
  void row(std::int64_t index, float* to) const { linear_.row(index, {to, static_cast<std::size_t>(in())}); }

 private:
  quant::Int8Linear linear_;
  ActivationForm activations_;  // of the rows that it multiplies
};

}  // namespace bitnet::inference::cpu
