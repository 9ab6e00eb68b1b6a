// What all optimisers share, AdamW and SGD. Muon and AdamW with 8-bit moments are muon.cpp and adamw8.cpp;
// the element loop of AdamW is kernels/train_kernels.cpp.
#include "bitnet/training/optimizer.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "kernels/dispatch.hpp"
#include "optimizer_common.hpp"

namespace bitnet::training {

Optimizer::Optimizer(const ExecutionContext& context, std::span<Parameter* const> parameters)
    : parameters_(parameters.begin(), parameters.end()), memory_(context.memory()) {
  std::size_t most = 0;
  for (const Parameter* p : parameters_) most = std::max(most, p->value().size());
  partials_ = MemoryArray<double>(*memory_, (most + kOptimizerChunk - 1) / kOptimizerChunk, "optimizer");
  squares_ = MemoryArray<double>(*memory_, parameters_.size(), "optimizer");
}

MemoryResource& Optimizer::memory() const noexcept { return *memory_; }

MemoryArray<float> Optimizer::values_like(std::size_t i) const {
  return MemoryArray<float>(*memory_, parameters_[i]->value().size(), "optimizer", 64);
}

OptimizerState Optimizer::state_of(const char* kind, std::size_t i, std::span<float> values) const {
  const Parameter& p = *parameters_[i];
  return {kind + ("/" + p.name()), std::as_writable_bytes(values), true, {p.rows(), p.cols()}};
}

double Optimizer::step(const ExecutionContext& context, float lr, float decay, float clip) {
  sum_squares(context, squares_.span());
  const double norm = global_norm(squares_.span());
  if (std::isfinite(norm)) apply(context, norm, lr, decay, clip);
  return norm;
}

void Optimizer::sum_squares(const ExecutionContext& context, std::span<double> squares) {
  const F32Kernels& f = tested_f32_kernels(context.isa());
  for (std::size_t i = 0; i < parameters_.size(); ++i) {
    Parameter& p = *parameters_[i];
    p.finish_grad();
    const std::span<const float> g = p.grad();
    const auto partials = partials_.span().first((g.size() + kOptimizerChunk - 1) / kOptimizerChunk);
    for_chunks(context, g.size(), [&](std::size_t at, std::size_t count) {
      partials[at / kOptimizerChunk] = f.sum_squares(g.data() + at, count);
    });
    squares[i] = std::accumulate(partials.begin(), partials.end(), 0.0);
    p.zero_grad();
  }
}

void Optimizer::apply(const ExecutionContext& context, double norm, float lr, float decay, float clip) {
  ++steps_;
  const float g_scale = clip > 0 && norm > clip ? static_cast<float>(clip / norm) : 1.0f;
  for (std::size_t i = 0; i < parameters_.size(); ++i)
    update(context, i, {lr, parameters_[i]->decay() ? 1.0f - lr * decay : 1.0f, g_scale});
}

AdamW::AdamW(const ExecutionContext& context, std::span<Parameter* const> parameters,
             const AdamWOptions& options)
    : Optimizer(context, parameters), options_(options) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    m_.push_back(values_like(i));
    v_.push_back(values_like(i));
  }
}

std::vector<OptimizerState> AdamW::state() {
  std::vector<OptimizerState> all;
  for (std::size_t i = 0; i < m_.size(); ++i) {
    all.push_back(state_of("moment1", i, m_[i].span()));
    all.push_back(state_of("moment2", i, v_[i].span()));
  }
  return all;
}

void AdamW::update(const ExecutionContext& context, std::size_t i, const Update& u) {
  Parameter& p = *parameters()[i];
  const TrainKernels& k = train_kernels(context.isa());
  const TrainKernels::AdamW a = adamw_constants(options_, steps(), u.lr, u.shrink, u.g_scale);
  float *g = p.grad().data(), *w = p.value().data(), *m = m_[i].data(), *v = v_[i].data();
  for_chunks(context, p.value().size(),
             [&](std::size_t at, std::size_t count) { k.adamw(a, g + at, w + at, m + at, v + at, count); });
}

Sgd::Sgd(const ExecutionContext& context, std::span<Parameter* const> parameters, const SgdOptions& options)
    : Optimizer(context, parameters), options_(options) {
  if (!(options.momentum >= 0 && options.momentum < 1))
    throw Error(ErrorCode::kInvalidArgument,
                "a momentum of " + std::to_string(options.momentum) + ": expected at least 0 and below 1");
  for (std::size_t i = 0; i < parameters.size(); ++i) v_.push_back(values_like(i));
}

std::vector<OptimizerState> Sgd::state() {
  std::vector<OptimizerState> all;
  for (std::size_t i = 0; i < v_.size(); ++i) all.push_back(state_of("momentum", i, v_[i].span()));
  return all;
}

void Sgd::update(const ExecutionContext& context, std::size_t i, const Update& u) {
  Parameter& p = *parameters()[i];
  const F32Kernels& f = tested_f32_kernels(context.isa());
  const float mu = options_.momentum;
  float *g = p.grad().data(), *w = p.value().data(), *v = v_[i].data();
  for_chunks(context, p.value().size(), [&](std::size_t at, std::size_t count) {
    f.scale(mu, v + at, count);
    f.axpy(u.g_scale, g + at, v + at, count);
    f.scale(u.shrink, w + at, count);
    if (options_.nesterov) {
      f.axpy(-u.lr * u.g_scale, g + at, w + at, count);
      f.axpy(-u.lr * mu, v + at, w + at, count);
    } else {
      f.axpy(-u.lr, v + at, w + at, count);
    }
  });
}

}  // namespace bitnet::training
