#pragma once
// AdamW with global-norm clipping (Loshchilov & Hutter 2019, arXiv:1711.05101). Learning rates over time are
// schedule.hpp.
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
#include "bitnet/training/tape.hpp"

namespace bitnet::training {

struct AdamWOptions {
  float beta1 = 0.9f, beta2 = 0.95f, eps = 1e-8f;
};

/// Moments of a fixed list of parameters, in the context's memory pool (tag "optimizer"). Not thread-safe.
class AdamW {
 public:
  AdamW(const ExecutionContext& context, std::span<Parameter* const> parameters, const AdamWOptions& options);

  /// One step: w = w·(1 − lr·decay) − lr·m̂/(sqrt(v̂) + eps), decay only where Parameter::decay(). Gradients
  /// are first scaled so that their global norm is at most `clip` (0: no clipping), then cleared. Returns the
  /// norm before clipping; when it is not finite nothing is changed except that gradients are cleared.
  double step(const ExecutionContext& context, float lr, float decay, float clip);

  std::int64_t steps() const noexcept { return steps_; }
  void set_steps(std::int64_t steps) noexcept { steps_ = steps; }
  /// Moments of parameter `i`, for checkpoints.
  std::span<float> first_moment(std::size_t i) { return m_[i].span(); }
  std::span<float> second_moment(std::size_t i) { return v_[i].span(); }

 private:
  std::vector<Parameter*> parameters_;
  AdamWOptions options_;
  std::shared_ptr<HybridMemoryPool> memory_;
  std::vector<MemoryArray<float>> m_, v_;
  MemoryArray<double> partials_;  // of the parameter with the most
  std::int64_t steps_ = 0;
};

}  // namespace bitnet::training
