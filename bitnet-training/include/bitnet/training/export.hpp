#pragma once
// A trained model as files that inference reads: Hugging Face directory and GGUF, through bitnet-quant's
// model_io. Not thread-safe as to the model.
#include <filesystem>

#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/training/language_model.hpp"

namespace bitnet::training {

/// One tensor: as of the last refresh() for quantisers with other scales than b1.58's; else trits and scale
/// by absmean of the latent weights for a ternary model's linears (unless `latent`), the scale made
/// invertible (fake_quant.hpp) as in training; f32 values for everything else.
quant::LogicalTensor export_tensor(LanguageModel& model, TensorId id, bool latent = false);

/// Writes the model. A ternary model takes any ternary type, bit-equal in I2_S and both forms of Hugging
/// Face's scale, or kDense for its latent weights (readers ternarise them to the same trits and, within one
/// ulp, scales when `dense_type` is f32; training can go on from them). A full-precision
/// model takes kDense only, and readers keep it dense only with quant::FloatLinears::kKeep. Throws like
/// quant::write_model, and Error(kUnsupported) for a ternary type of a full-precision model and
/// for quantisers that no file format knows: a Hadamard transform, 4-bit activations, scales by group.
void export_model(const std::filesystem::path& path, LanguageModel& model, const Tokenizer* tokenizer,
                  const quant::WriteOptions& options);

}  // namespace bitnet::training
