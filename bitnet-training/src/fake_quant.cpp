// Straight-through quantisers and the ternary product. The loops are kernels/train_kernels.cpp.
#include "bitnet/training/fake_quant.hpp"

#include <algorithm>
#include <cmath>

#include "ops_common.hpp"

namespace bitnet::training {

QuantizedVariable quantize_activations(Tape& tape, Variable x) {
  Variable out = tape.make_straight_through(x);
  float* inv_scales = tape.floats(static_cast<std::size_t>(x.rows()));
  const auto cols = static_cast<std::size_t>(x.cols());
  const TrainKernels& k = train_of(tape);
  for_rows(tape, x.rows(), 16, [&](std::int64_t r) {
    const auto at = static_cast<std::size_t>(r) * cols;
    inv_scales[r] = k.quantize_row(x.value().data() + at, out.value().data() + at, cols);
  });
  return {out, inv_scales};
}

TernaryCache::TernaryCache(const ExecutionContext& context, std::int64_t out, std::int64_t in)
    : memory_(context.memory()),
      trits_(*memory_, static_cast<std::size_t>(out * in), "ternary weights", 64),
      dequantized_(*memory_, trits_.size(), "ternary weights", 64) {}

void TernaryCache::update(const ExecutionContext& context, std::span<const float> latent) {
  require_shape(latent.size() == trits_.size(), "ternarise", "the latent weights have another size");
  const TrainKernels& k = train_kernels(context.isa());
  const double sum = k.abs_sum(latent.data(), latent.size());
  if (!std::isfinite(sum))
    throw Error(ErrorCode::kInvalidArgument, "latent weights are not finite: training diverged");
  const float mean = std::max(static_cast<float>(sum / static_cast<double>(latent.size())), 1e-5f);
  scale_ = invertible_scale(mean);
  zeros_ = flips_ = 0;
  k.ternarize(latent.data(), 1.0f / mean, scale_, trits_.data(), dequantized_.data(), latent.size(), &zeros_,
              &flips_);
  if (fresh_) flips_ = 0;
  fresh_ = false;
}

Variable bit_linear(Tape& tape, const QuantizedVariable& x, Variable latent, const TernaryCache& cache) {
  const Variable integers = x.integers;
  require_shape(integers.cols() == latent.cols(), "bit_linear",
                "input " + dims(integers) + " does not fit weights " + dims(latent));
  require_shape(cache.trits().size() == latent.value().size(), "bit_linear",
                "the ternary form has another size");
  const std::int64_t n = integers.rows(), in = integers.cols(), out_dim = latent.rows();
  Variable out = tape.make(n, out_dim, integers.needs_grad() || latent.needs_grad());
  // |sum| ≤ 128 · in < 2^24 for in < 131072: floats hold every partial sum exactly.
  require_shape(in < 131072, "bit_linear", "more than 131071 inputs would not be exact");
  gemm(tape.context(), n, out_dim, in, integers.value().data(), in, 1, cache.trits().data(), 1, in,
       out.value().data(), out_dim, false);
  const float* inv_scales = x.inv_scales;
  for_rows(tape, n, 16, [&](std::int64_t r) {
    f32_of(tape).scale(cache.scale() * inv_scales[r], out.value().data() + r * out_dim,
                       static_cast<std::size_t>(out_dim));
  });
  Tape* t = &tape;
  const TernaryCache* weights = &cache;
  tape.on_backward(out, [t, integers, latent, weights, inv_scales, out, n, in, out_dim] {
    float* d = out.grad().data();
    if (integers.needs_grad()) {
      const auto dx = t->grad_target(integers);
      gemm(t->context(), n, in, out_dim, d, out_dim, 1, weights->dequantized().data(), in, 1, dx.data, in,
           dx.accumulate);
    }
    if (latent.needs_grad()) {
      // dYᵀ·(integers · inv_scale): the scales go into dY, which nobody reads after this step.
      for_rows(*t, n, 16, [&](std::int64_t r) {
        f32_of(*t).scale(inv_scales[r], d + r * out_dim, static_cast<std::size_t>(out_dim));
      });
      const auto dw = t->grad_target(latent);
      gemm(t->context(), out_dim, in, n, d, 1, out_dim, integers.value().data(), in, 1, dw.data, in,
           dw.accumulate);
    }
  });
  return out;
}

}  // namespace bitnet::training
