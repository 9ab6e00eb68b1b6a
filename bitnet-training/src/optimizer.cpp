// The optimiser's bookkeeping; the element loop is kernels/train_kernels.cpp.
#include "bitnet/training/optimizer.hpp"

#include <algorithm>
#include <cmath>

#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "kernels/dispatch.hpp"

namespace bitnet::training {
namespace {

constexpr std::size_t kChunk = 16384;  // floats per partial sum and per work item: fixed, so that sums are

}  // namespace

AdamW::AdamW(const ExecutionContext& context, std::span<Parameter* const> parameters,
             const AdamWOptions& options)
    : parameters_(parameters.begin(), parameters.end()), options_(options), memory_(context.memory()) {
  std::size_t most = 0;
  for (const Parameter* p : parameters_) {
    m_.emplace_back(*memory_, p->value().size(), "optimizer", 64);
    v_.emplace_back(*memory_, p->value().size(), "optimizer", 64);
    most = std::max(most, p->value().size());
  }
  partials_ = MemoryArray<double>(*memory_, (most + kChunk - 1) / kChunk, "optimizer");
}

double AdamW::step(const ExecutionContext& context, float lr, float decay, float clip) {
  const F32Kernels& f = tested_f32_kernels(context.isa());
  double squares = 0;
  for (Parameter* p : parameters_) {
    p->finish_grad();
    const std::span<const float> g = p->grad();
    const auto partials = partials_.span().first((g.size() + kChunk - 1) / kChunk);
    context.parallel_for(partials.size(), 1, [&](std::size_t begin, std::size_t end) {
      for (std::size_t c = begin; c < end; ++c)
        partials[c] = f.sum_squares(g.data() + c * kChunk, std::min(kChunk, g.size() - c * kChunk));
    });
    for (const double s : partials) squares += s;
    p->zero_grad();
  }
  const double norm = std::sqrt(squares);
  if (!std::isfinite(norm)) return norm;

  ++steps_;
  const double bias1 = 1.0 - std::pow(options_.beta1, static_cast<double>(steps_));
  const double bias2 = 1.0 - std::pow(options_.beta2, static_cast<double>(steps_));
  TrainKernels::AdamW a{options_.beta1,
                        options_.beta2,
                        options_.eps,
                        static_cast<float>(lr / bias1),
                        static_cast<float>(1.0 / std::sqrt(bias2)),
                        1.0f,
                        clip > 0 && norm > clip ? static_cast<float>(clip / norm) : 1.0f};
  const TrainKernels& k = train_kernels(context.isa());
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& p = *parameters_[i];
    a.shrink = p.decay() ? 1.0f - lr * decay : 1.0f;
    const std::size_t size = p.value().size();
    context.parallel_for((size + kChunk - 1) / kChunk, 1, [&](std::size_t begin, std::size_t end) {
      const std::size_t at = begin * kChunk, count = std::min(end * kChunk, size) - at;
      k.adamw(a, p.grad().data() + at, p.value().data() + at, m_[i].data() + at, v_[i].data() + at, count);
    });
  }
  return norm;
}

}  // namespace bitnet::training
