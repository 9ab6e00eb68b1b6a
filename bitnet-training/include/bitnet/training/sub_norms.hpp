#pragma once
// Training that begins with the weights of a model that is there: of the same shape, or of one without
// sub-norms, into which they are inserted (the first stage of BitDistill, arXiv:2510.13998): a norm before
// the output and one before the down projection keep the inputs of their quantisers in range. The model is
// its caller's: not thread-safe.
#include <cstdint>
#include <optional>

#include "bitnet/core/execution.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/training/language_model.hpp"

namespace bitnet::training {

/// The shape of `config` as LanguageModel trains it: family kBitNet25 with sub-norms, everything else as it
/// is (activation, head). Throws Error(kUnsupported) for a model with norms before each linear.
ModelConfig with_sub_norms(const ModelConfig& config);

/// What the linears of a base are to a model that begins with it. A plain value.
struct BaseLinears {
  std::int64_t trits = 0;        ///< ternary, taken with their trits and scales
  std::int64_t dequantised = 0;  ///< of two planes, int8, or ternary with scales that the quantiser has not:
                                 ///< taken as the floats that they stand for
  std::int64_t floats = 0;       ///< taken as they are
  bool latent = false;  ///< floats are a BitNet's latent weights, ternary already in what they compute
  /// The coarsest scales that those of every ternary linear can be; of two planes and int8 alone by tensor.
  ScaleGranularity scales = ScaleGranularity::kTensor;

  /// Quantised ones whose activations have 4 bits by absmax, and by absmean, which training does not have.
  std::int64_t four_bits = 0, four_bits_absmean = 0;

  /// Of a run that does not choose: 4 where every quantised linear has 4 by absmax.
  int activation_bits() const noexcept { return four_bits > 0 && four_bits == trits + dequantised ? 4 : 8; }
  /// Quantised ones whose activations are others than those of so many bits by absmax.
  std::int64_t other_activations(int bits) const noexcept {
    return bits == 4 ? trits + dequantised - four_bits : four_bits + four_bits_absmean;
  }
  /// Whether some linear has to be rounded anew, so that quantisation had better grow.
  bool rounds() const noexcept { return dequantised + (latent ? 0 : floats) > 0; }
};

/// What load_weights() will make of the linears of `reader` by scales of `granularity` (none: by those that
/// fit best). Opened with FloatLinears::kKeep. Throws what ModelReader::rows throws.
BaseLinears base_linears(const quant::ModelReader& reader, std::optional<ScaleGranularity> granularity = {});

/// Fills `model` from files of its shape but for sub-norms, which are ones where the files have none, and
/// refreshes it. Opened with FloatLinears::kKeep float linears become latent weights as they are; ternary
/// ones latent weights that give the same trits (latent_from_ternary()), and keep λ = 1
/// (LanguageModel::keep_whole()); linears of other kinds, and ternary ones whose scales the quantiser has
/// not, the floats that they stand for. With `original`, the model that the base was made of, opened in the
/// same way, latent weights of all linears are the original's, learned scales begin as the base's, and
/// everything else comes from the base. Throws Error(kInvalidArgument) naming the first field of the shape
/// that differs and for an original that is not in full precision, what ModelReader::read and
/// BitLinear::set_weights throw.
void load_weights(const ExecutionContext& context, LanguageModel& model, const quant::ModelReader& reader,
                  const quant::ModelReader* original = nullptr);

}  // namespace bitnet::training
