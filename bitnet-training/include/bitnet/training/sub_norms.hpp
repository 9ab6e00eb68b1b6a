#pragma once
// Training that begins with the weights of a model that is there: of the same shape, or of one without
// sub-norms, into which they are inserted (the first stage of BitDistill, arXiv:2510.13998): a norm before
// the output and one before the down projection keep the inputs of their quantisers in range. The model is
// its caller's: not thread-safe.
#include "bitnet/core/execution.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/training/language_model.hpp"

namespace bitnet::training {

/// The shape of `config` as LanguageModel trains it: family kBitNet25 with sub-norms, everything else as it
/// is (activation, head). Throws Error(kUnsupported) for a model with norms before each linear.
ModelConfig with_sub_norms(const ModelConfig& config);

/// Fills `model` from files of its shape but for sub-norms, which are ones where the files have none, and
/// refreshes it. Opened with FloatLinears::kKeep float linears become latent weights as they are; ternary
/// ones latent weights that give the same trits (latent_from_ternary()). Throws Error(kInvalidArgument)
/// naming the first field of the shape that differs, what ModelReader::read and BitLinear::set_weights throw.
void load_weights(const ExecutionContext& context, LanguageModel& model, const quant::ModelReader& reader);

}  // namespace bitnet::training
