#pragma once
// What the files of optimisers share: work cut into fixed pieces, AdamW's constants of a step.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <span>

#include "bitnet/core/execution.hpp"
#include "bitnet/training/optimizer.hpp"
#include "kernels/train_kernels.hpp"

namespace bitnet::training {

/// Values per partial sum and per work item: fixed, so that sums are; whole blocks of AdamW8.
inline constexpr std::size_t kOptimizerChunk = 16384;

/// Calls body(first, count) for pieces of kOptimizerChunk values, in parallel.
template <class Body>
void for_chunks(const ExecutionContext& context, std::size_t n, Body&& body) {
  context.parallel_for((n + kOptimizerChunk - 1) / kOptimizerChunk, 1,
                       [&](std::size_t begin, std::size_t end) {
                         for (std::size_t c = begin; c < end; ++c)
                           body(c * kOptimizerChunk, std::min(kOptimizerChunk, n - c * kOptimizerChunk));
                       });
}

/// Of all parameters' Σ g², in their order.
inline double global_norm(std::span<const double> squares) {
  double sum = 0;
  for (const double s : squares) sum += s;
  return std::sqrt(sum);
}

/// `step` counts from 1.
inline TrainKernels::AdamW adamw_constants(const AdamWOptions& o, std::int64_t step, float lr, float shrink,
                                           float g_scale) {
  const double bias1 = 1.0 - std::pow(o.beta1, static_cast<double>(step));
  const double bias2 = 1.0 - std::pow(o.beta2, static_cast<double>(step));
  return {o.beta1, o.beta2, o.eps, static_cast<float>(lr / bias1), static_cast<float>(1.0 / std::sqrt(bias2)),
          shrink,  g_scale};
}

}  // namespace bitnet::training
