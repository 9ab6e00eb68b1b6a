// Straight-through quantisers and the ternary product. The loops are kernels/train_kernels.cpp.
#include "bitnet/training/fake_quant.hpp"

#include <algorithm>
#include <cmath>

#include "ops_common.hpp"

namespace bitnet::training {

namespace {

/// Q of [n, cols] rows, of which `row_of(r)` gives one at a time; in memory of the tape.
template <class RowOf>
quant::QuantizedView quantize_rows(Tape& tape, std::int64_t n, std::int64_t columns, int bits, RowOf row_of) {
  BITNET_REQUIRE(bits == 8 || bits == 4, "quantize_activations",
                 "activations of " + std::to_string(bits) + " bits: expected 8 or 4");
  const std::int64_t stride = quant::quantized_stride(columns);
  const auto cols = static_cast<std::size_t>(columns), count = static_cast<std::size_t>(n);
  auto* const q = static_cast<std::int8_t*>(tape.bytes(count * static_cast<std::size_t>(stride)));
  auto* const sums = static_cast<std::int32_t*>(tape.bytes(count * sizeof(std::int32_t)));
  float* const inv_scales = tape.floats(count);
  const float largest = bits == 8 ? 127.0f : 7.0f;
  const TrainKernels& k = train_of(tape);
  for_rows(tape, n, 16, [&](std::int64_t r) {
    std::int8_t* const row = q + r * stride;
    inv_scales[r] = k.quantize_row(row_of(r), largest, row, &sums[r], cols);
    std::fill(row + cols, row + stride, std::int8_t{0});
  });
  return {n, columns, stride, q, inv_scales, sums};
}

}  // namespace

QuantizedVariable quantize_activations(Tape& tape, Variable x, int bits, float lambda) {
  const auto cols = static_cast<std::size_t>(x.cols());
  const quant::QuantizedView q = quantize_rows(tape, x.rows(), x.cols(), bits, [&](std::int64_t r) {
    return x.value().data() + static_cast<std::size_t>(r) * cols;
  });
  if (lambda == 1) return {x, q, {}};
  const TrainKernels& k = train_of(tape);
  const Variable mixed = tape.make_straight_through(x);
  for_rows(tape, x.rows(), 16, [&](std::int64_t r) {
    const auto at = static_cast<std::size_t>(r) * cols;
    float* const row = mixed.value().data() + at;
    k.widen(q.values + r * q.stride, row, cols);
    k.scale_to(q.inv_scales[r], row, row, cols);
    k.blend(lambda, x.value().data() + at, row, cols);
  });
  return {x, {}, mixed};
}

QuantizedVariable normalize_quantize(Tape& tape, Variable x, Variable w, float eps, int bits) {
  const auto cols = static_cast<std::size_t>(x.cols()), count = x.value().size();
  const Variable rows = make_rms_norm(tape, x, w, eps, false);
  float* const normalized = tape.borrow(count);
  const quant::QuantizedView q = quantize_rows(tape, x.rows(), x.cols(), bits, [&](std::int64_t r) {
    const auto at = static_cast<std::size_t>(r) * cols;
    f32_of(tape).rms_norm(x.value().data() + at, w.value().data(), eps, normalized + at, cols);
    return normalized + at;
  });
  tape.give_back(normalized, count);
  return {rows, q, {}};
}

namespace {

std::size_t scales_of(ScaleGranularity granularity, std::int64_t out, std::int64_t in) {
  switch (granularity) {
    case ScaleGranularity::kTensor:
      return 1;
    case ScaleGranularity::kRow:
      return static_cast<std::size_t>(out);
    case ScaleGranularity::kGroup:
      return static_cast<std::size_t>(out * ((in + kScaleGroup - 1) / kScaleGroup));
  }
  return 1;
}

TernaryCache::Segment segment_of(ScaleGranularity granularity, std::int64_t out, std::int64_t cols,
                                 std::size_t i) noexcept {
  const auto in = static_cast<std::size_t>(cols), group = static_cast<std::size_t>(kScaleGroup);
  switch (granularity) {
    case ScaleGranularity::kTensor:
      break;
    case ScaleGranularity::kRow:
      return {i * in, in};
    case ScaleGranularity::kGroup: {
      const std::size_t groups = (in + group - 1) / group, first = i % groups * group;
      return {i / groups * in + first, std::min(group, in - first)};
    }
  }
  return {0, static_cast<std::size_t>(out) * in};
}

}  // namespace

TernaryCache::TernaryCache(const ExecutionContext& context, std::int64_t out, std::int64_t in,
                           const QuantizerOptions& options)
    : out_(out),
      in_(in),
      options_(options),
      memory_(context.memory()),
      trits_(*memory_, static_cast<std::size_t>(out * in), "ternary weights", 64),
      scales_(*memory_, scales_of(options.granularity, out, in), "ternary weights", 64) {
  options_.validate();
  if (options.granularity != ScaleGranularity::kGroup)
    packed_.emplace(context, out, in, trits_.span(), scales_.span(),
                    options.granularity == ScaleGranularity::kRow ? 1 : out, quant::TileCode::kTwoBit);
}

TernaryCache::Segment TernaryCache::segment(std::size_t i) const noexcept {
  return segment_of(options_.granularity, out_, in_, i);
}

/// `sorted`: room for |latent|, needed for medians.
float TernaryCache::rule(const ExecutionContext& context, std::span<const float> latent,
                         float* sorted) const {
  const auto n = static_cast<std::ptrdiff_t>(latent.size());
  if (options_.statistic == ScaleStatistic::kMedian) {
    std::transform(latent.begin(), latent.end(), sorted, [](float w) { return std::abs(w); });
    float* const middle = sorted + n / 2;
    std::nth_element(sorted, middle, sorted + n);
    return n % 2 ? *middle : 0.5f * (*middle + *std::max_element(sorted, middle));
  }
  return static_cast<float>(train_kernels(context.isa()).abs_sum(latent.data(), latent.size()) /
                            static_cast<double>(n));
}

void TernaryCache::update(const ExecutionContext& context, std::span<const float> latent, float lambda,
                          std::span<const float> learned) {
  BITNET_REQUIRE(latent.size() == trits_.size(), "ternarise", "the latent weights have another size");
  const bool learns = options_.gradient == StraightThrough::kLearnedScale && !learned.empty();
  BITNET_REQUIRE(learned.empty() || learned.size() == scales_.size(), "ternarise",
                 "the learned scales have another number");
  const TrainKernels& k = train_kernels(context.isa());
  const double sum = k.abs_sum(latent.data(), latent.size());
  if (!std::isfinite(sum)) throw Error(ErrorCode::kInvalidArgument, "latent weights are not finite");
  const bool sorts = !learns && options_.statistic == ScaleStatistic::kMedian;
  const bool summed = !learns && !sorts && scales_.size() == 1;
  const MemoryArray<float> room(*memory_, sorts ? segment(0).count : 0, "training scratch");
  zeros_ = flips_ = 0;
  lambda_ = lambda;
  for (std::size_t i = 0; i < scales_.size(); ++i) {
    const auto [begin, count] = segment(i);
    const float rule_scale = learns   ? std::abs(learned[i])
                             : summed ? static_cast<float>(sum / static_cast<double>(count))
                                      : rule(context, latent.subspan(begin, count), room.data());
    const float s = std::max(rule_scale, 1e-5f);
    scales_[i] = invertible_scale(s);
    k.ternarize(latent.data() + begin, 1.0f / s, trits_.data() + begin, count, &zeros_, &flips_);
  }
  if (packed()) packed_->assign(trits(), scales());
  if (fresh_) flips_ = 0;
  fresh_ = false;
}

void TernaryCache::effective(const ExecutionContext& context, std::span<const float> latent,
                             std::span<float> to) const {
  BITNET_REQUIRE(to.size() == trits_.size() && (lambda_ == 1 || latent.size() == to.size()),
                 "ternary weights", "latent or effective weights have another size");
  const TrainKernels& k = train_kernels(context.isa());
  const auto in = static_cast<std::size_t>(in_), rows = static_cast<std::size_t>(out_);
  const std::size_t per_row = scales_.size() < rows ? 1 : scales_.size() / rows;
  const std::size_t columns = per_row == 1 ? in : static_cast<std::size_t>(kScaleGroup);
  context.parallel_for(rows, 16, [&](std::size_t begin, std::size_t end) {
    for (std::size_t r = begin; r < end; ++r) {
      float* const row = to.data() + r * in;
      k.widen(trits_.data() + r * in, row, in);
      for (std::size_t g = 0; g < per_row; ++g) {
        const std::size_t first = g * columns;
        k.scale_to(scales_[scales_.size() == 1 ? 0 : r * per_row + g], row + first, row + first,
                   std::min(columns, in - first));
      }
      if (lambda_ != 1) k.blend(lambda_, latent.data() + r * in, row, in);
    }
  });
}

quant::TernaryWeights TernaryCache::weights() const {
  quant::TernaryWeights w;
  w.out = out_;
  w.in = in_;
  w.trits.assign(trits_.span().begin(), trits_.span().end());
  w.scales.assign(scales_.span().begin(), scales_.span().end());
  w.rows_per_scale = options_.granularity == ScaleGranularity::kTensor ? out_ : 1;
  if (options_.granularity == ScaleGranularity::kGroup && in_ > kScaleGroup) w.cols_per_scale = kScaleGroup;
  return w;
}

bool holds_scales(const quant::TernaryWeights& w, const QuantizerOptions& options) {
  const std::size_t wanted = scales_of(options.granularity, w.out, w.in), there = w.scales.size();
  // Groups of columns have to lie within those of the weights, which counts alone do not say.
  const bool aligned =
      w.cols_per_scale == 0 || (options.granularity == ScaleGranularity::kGroup &&
                                (w.cols_per_scale % kScaleGroup == 0 || w.cols_per_scale == w.in));
  return there != 0 && wanted % there == 0 && aligned;
}

void latent_from_ternary(const quant::TernaryWeights& w, const QuantizerOptions& options,
                         std::span<float> latent) {
  const std::size_t wanted = scales_of(options.granularity, w.out, w.in), there = w.scales.size();
  BITNET_REQUIRE(w.trits.size() == latent.size() && !latent.empty(), "latent weights",
                 std::to_string(w.trits.size()) + " trits for " + std::to_string(latent.size()) + " weights");
  const bool columns = w.cols_per_scale != 0;
  if (!holds_scales(w, options))
    throw Error(ErrorCode::kUnsupported,
                "the weights have " + std::to_string(there) + " scales" +
                    (columns ? ", one for " + std::to_string(w.cols_per_scale) + " columns of a row" : "") +
                    "; a quantiser with scales by " + std::string(to_string(options.granularity)) +
                    " cannot begin with them" +
                    (!columns                              ? ": choose model.scales: row"
                     : w.cols_per_scale % kScaleGroup == 0 ? ": choose model.scales: group"
                                                           : ""));
  for (std::size_t i = 0; i < wanted; ++i) {
    const auto [begin, count] = segment_of(options.granularity, w.out, w.in, i);
    const auto trits = std::span(w.trits).subspan(begin, count);
    const auto zeros = static_cast<std::size_t>(std::count(trits.begin(), trits.end(), 0));
    float magnitude = w.scales[i / (wanted / there)];
    if (options.gradient != StraightThrough::kLearnedScale) {
      if (options.statistic == ScaleStatistic::kMean) {
        if (zeros < count)
          magnitude = static_cast<float>(static_cast<double>(magnitude) * static_cast<double>(count) /
                                         static_cast<double>(count - zeros));
      } else if (2 * zeros >= count) {
        throw Error(ErrorCode::kUnsupported,
                    "half of the trits are zero: the median of such weights would be 0");
      }
    }
    for (std::size_t k = 0; k < count; ++k) latent[begin + k] = magnitude * static_cast<float>(trits[k]);
  }
}

namespace {

/// What one call of bit_linear needs in both passes.
struct Product {
  QuantizedVariable x;
  const float* values;  // [n, in] that were multiplied as floats, or null
  Variable latent, scale, out;
  const TernaryCache* cache;
  std::int64_t n, in, out_dim;
};

void widen_rows(const Tape& tape, const quant::QuantizedView& q, float* to) {
  const auto cols = static_cast<std::size_t>(q.cols);
  for_rows(tape, q.rows, 16, [&](std::int64_t r) {
    train_of(tape).widen(q.values + r * q.stride, to + static_cast<std::size_t>(r) * cols, cols);
  });
}

/// Row r times 1 / a of it.
void scale_rows(const Tape& tape, const quant::QuantizedView& q, float* y, std::int64_t cols) {
  for_rows(tape, q.rows, 16, [&](std::int64_t r) {
    f32_of(tape).scale(q.inv_scales[r], y + r * cols, static_cast<std::size_t>(cols));
  });
}

/// Calls multiply(weights) with the effective weights [out, in], in memory that the tape lends.
template <class Multiply>
void with_effective(Tape& tape, const Product& p, Multiply multiply) {
  const std::size_t count = p.cache->trits().size();
  float* const weights = tape.borrow(count);
  p.cache->effective(tape.context(), p.latent.value(), {weights, count});
  multiply(weights);
  tape.give_back(weights, count);
}

/// From `d` [out, in], the gradient of the effective weights, those of the latent ones and of the scales. One
/// work item a scale, so that threads change no bit.
void straight_through(Tape& tape, const Product& p, const float* d) {
  const TernaryCache& c = *p.cache;
  const TrainKernels& k = train_of(tape);
  const auto dw = tape.grad_target(p.latent);
  const bool learns = p.scale && p.scale.needs_grad();
  const Tape::GradTarget ds = learns ? tape.grad_target(p.scale) : Tape::GradTarget{nullptr, false};
  const std::size_t segments = c.scales().size();
  tape.context().parallel_for(segments, 1, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      const auto [at, count] = c.segment(i);
      const float s = c.scales()[i];
      const float* w = p.latent.value().data() + at;
      k.clip_gradient(c.options().clip * s, c.lambda(), w, d + at, dw.data + at, dw.accumulate, count);
      if (!learns) continue;
      const double sum = k.scale_gradient(s, c.options().clip, w, c.trits().data() + at, d + at, count);
      // The scale is |parameter|: beyond zero what makes it larger makes the parameter smaller.
      const double sign = std::copysign(1.0, static_cast<double>(p.scale.value()[i]));
      const auto g = static_cast<float>(sign * c.lambda() * sum / std::sqrt(static_cast<double>(count)));
      ds.data[i] = ds.accumulate ? ds.data[i] + g : g;
    }
  });
}

void backward(Tape& tape, const Product& p) {
  float* d = p.out.grad().data();
  if (p.x.rows.needs_grad()) {
    const auto dx = tape.grad_target(p.x.rows);
    with_effective(tape, p, [&](const float* weights) {
      gemm(tape.context(), p.n, p.in, p.out_dim, d, p.out_dim, 1, weights, p.in, 1, dx.data, p.in,
           dx.accumulate);
    });
  }
  if (!p.latent.needs_grad()) return;
  // dYᵀ·(integers · inv_scale): the scales go into dY, which nobody reads after this step.
  if (p.x.q.values) scale_rows(tape, p.x.q, d, p.out_dim);
  const bool identity = p.cache->options().gradient == StraightThrough::kIdentity;
  const auto dw =
      identity ? tape.grad_target(p.latent) : Tape::GradTarget{tape.floats(p.latent.value().size()), false};
  const auto count = static_cast<std::size_t>(p.n * p.in);
  float* const wide = p.values ? nullptr : tape.borrow(count);
  if (wide) widen_rows(tape, p.x.q, wide);
  gemm(tape.context(), p.out_dim, p.in, p.n, d, 1, p.out_dim, wide ? wide : p.values, p.in, 1, dw.data, p.in,
       dw.accumulate);
  if (wide) tape.give_back(wide, count);
  if (!identity) straight_through(tape, p, dw.data);
}

}  // namespace

Variable bit_linear(Tape& tape, const QuantizedVariable& x, Variable latent, const TernaryCache& cache,
                    Variable scale) {
  BITNET_REQUIRE(x.rows.cols() == latent.cols(), "bit_linear",
                 "input " + dims(x.rows) + " does not fit weights " + dims(latent));
  BITNET_REQUIRE(cache.trits().size() == latent.value().size(), "bit_linear",
                 "the ternary form has another size");
  BITNET_REQUIRE(!scale || scale.value().size() == cache.scales().size(), "bit_linear",
                 "the learned scales have another number");
  const std::int64_t n = x.rows.rows(), in = x.rows.cols(), out_dim = latent.rows();
  const bool learns = scale && scale.needs_grad();
  const Variable out = tape.make(n, out_dim, x.rows.needs_grad() || latent.needs_grad() || learns);
  Product p{x, nullptr, latent, scale, out, &cache, n, in, out_dim};
  if (x.q.values && cache.packed()) {
    cache.packed()->forward(tape.context(), x.q, out.value());
  } else {
    const auto count = static_cast<std::size_t>(n * in);
    float* const wide = x.q.values ? tape.borrow(count) : nullptr;
    if (wide)
      widen_rows(tape, x.q, wide);
    else
      p.values = x.mixed.value().data();
    with_effective(tape, p, [&](const float* weights) {
      gemm(tape.context(), n, out_dim, in, wide ? wide : p.values, in, 1, weights, 1, in, out.value().data(),
           out_dim, false);
    });
    if (wide) {
      scale_rows(tape, x.q, out.value().data(), out_dim);
      tape.give_back(wide, count);
    }
  }
  Tape* t = &tape;
  tape.on_backward(out, [t, p] { backward(*t, p); });
  return out;
}

}  // namespace bitnet::training
