#pragma once
// Quantisers inside the training graph, with straight-through gradients: absmax int8 or int4 activations and
// ternary weights (Ma et al. 2024 and its "Training Tips, Code, FAQ"; the variants of quantizer.hpp).
// Definitions in bitnet/quant/quantize.hpp; with whole strength the forward product of a layer with a scale a
// tensor or a row is the same exact integer that inference computes. Not thread-safe: a tape and a cache
// belong to one thread, and use all of the context's inside.
#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "bitnet/quant/bit_linear.hpp"
#include "bitnet/quant/quantize.hpp"
#include "bitnet/training/quantizer.hpp"
#include "bitnet/training/tape.hpp"

namespace bitnet::training {

/// Rows quantised by absmax, in memory of the tape. Gradients pass straight through to the rows themselves.
struct QuantizedVariable {
  Variable rows;             ///< x; without values after normalize_quantize()
  quant::QuantizedView q{};  ///< Q(x) as int8, of 4 bits −8 … 7; without values at λ < 1
  Variable mixed{};          ///< at λ < 1 x + λ · (Q(x) − x), whose gradient is that of x
};
/// `bits` 8 or 4, else Error(kInvalidArgument).
QuantizedVariable quantize_activations(Tape& tape, Variable x, int bits = 8, float lambda = 1);
/// The same bits as quantize_activations(tape, rms_norm(tape, x, w, eps), bits), of which only the int8 rows
/// are kept: a quarter of the memory. Throws as both do.
QuantizedVariable normalize_quantize(Tape& tape, Variable x, Variable w, float eps, int bits = 8);

/// The f32 next to an absmean scale m that survives 1 / (1 / m), which one float in six does not: 1 / (1 / m)
/// itself, at most one ulp away. A model with such scales is the same to the bit in files that keep 1 / m.
inline float invertible_scale(float m) noexcept { return 1.0f / (1.0f / m); }

/// The ternary form of a latent weight matrix, made once per optimiser step, in the context's memory pool
/// (tag "ternary weights").
class TernaryCache {
 public:
  TernaryCache(const ExecutionContext& context, std::int64_t out, std::int64_t in,
               const QuantizerOptions& options = {});
  /// Scales by the options' rule, or `learned` ones; by tensor and mean the trits are bit-equal to those of
  /// quant::absmean. Scales are at least 1e-5 and made invertible. Throws Error(kInvalidArgument) for weights
  /// that are not finite and for another number of them or of scales.
  void update(const ExecutionContext& context, std::span<const float> latent, float lambda = 1,
              std::span<const float> learned = {});

  std::span<const std::int8_t> trits() const { return trits_.span(); }  // [out, in]
  std::span<const float> scales() const { return scales_.span(); }      // 1, [out] or [out, groups]
  float scale() const { return scales_[0]; }                            ///< of the tensor
  float lambda() const noexcept { return lambda_; }
  /// The weights that the layer multiplies with, w + λ · (s · trit − w), into `to`, both [out, in]. `latent`
  /// is what update() took; at λ = 1 it is not read and may be empty. They are not kept: trits are a quarter
  /// of their size.
  void effective(const ExecutionContext& context, std::span<const float> latent, std::span<float> to) const;
  const QuantizerOptions& options() const noexcept { return options_; }
  /// Weights that share scale i: `begin` counts from the matrix's first, row by row.
  struct Segment {
    std::size_t begin, count;
  };
  Segment segment(std::size_t i) const noexcept;
  /// The trits as codes of 2 bits, trit + 1, the first in the lowest bits of its byte; what is left of the
  /// last byte is 0. `codes` has code_bytes().
  void pack(const ExecutionContext& context, std::span<std::uint8_t> codes) const;
  std::size_t code_bytes() const noexcept { return (trits_.size() + 3) / 4; }
  /// Takes trits and scales from another cache of the same matrix and options, whose λ was 1: the same bits
  /// as update() there, zeros and flips included. Throws Error(kInvalidArgument) for other numbers of them.
  void assign(const ExecutionContext& context, std::span<const std::uint8_t> codes,
              std::span<const float> scales);
  /// The same packed for exact products; null at λ < 1 and for scales by group.
  const quant::BitLinear* packed() const noexcept { return packed_ && lambda_ == 1 ? &*packed_ : nullptr; }
  /// Trits and scales by themselves; a group that is a whole row is a row.
  quant::TernaryWeights weights() const;
  /// Of the last update: trits that are zero, and trits that changed (none counted in the first).
  std::int64_t zeros() const noexcept { return zeros_; }
  std::int64_t flips() const noexcept { return flips_; }

 private:
  float rule(const ExecutionContext& context, std::span<const float> latent, float* sorted) const;
  std::int64_t out_, in_;
  QuantizerOptions options_;
  std::shared_ptr<HybridMemoryPool> memory_;
  MemoryArray<std::int8_t> trits_;
  MemoryArray<float> scales_;
  std::optional<quant::BitLinear> packed_;  // not by group
  float lambda_ = 1;
  std::int64_t zeros_ = 0, flips_ = 0;
  bool fresh_ = true;
};

/// Whether scales of `options` can be those of `weights`: not where they are of fewer weights, or of columns
/// that groups would straddle.
bool holds_scales(const quant::TernaryWeights& weights, const QuantizerOptions& options);

/// Latent weights that ternarise to `weights`, trits exactly and scales within one rounding: s / (share of
/// trits that are not zero) · trit where the scale is a mean, s · trit where it is learned or a median. A
/// scale of more weights than one of `options` is each of theirs. Throws Error(kUnsupported) unless
/// holds_scales(), and where a median would be 0.
void latent_from_ternary(const quant::TernaryWeights& weights, const QuantizerOptions& options,
                         std::span<float> latent);

/// y = x_q · w_qᵀ. Where both are quantised in whole and a scale is the tensor's or the row's: exact
/// integers, scaled once; else a product of floats. Backward: dX = dY·w_q, and of d = dYᵀ·x_q the latent
/// weights' (and the scale's) share by the options' StraightThrough; λ mixes it with d itself. `latent`
/// receives dW; `cache` must hold its ternary form and outlive the step; `scale` [1, scales] is the learned
/// one's parameter.
Variable bit_linear(Tape& tape, const QuantizedVariable& x, Variable latent, const TernaryCache& cache,
                    Variable scale = Variable());

}  // namespace bitnet::training
