#pragma once
// A trained model as files that inference reads: Hugging Face directory and GGUF, through bitnet-quant's
// model_io. Not thread-safe as to the model.
#include <filesystem>
#include <string>

#include "bitnet/core/text/tokenizer.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/training/language_model.hpp"

namespace bitnet::training {

/// Which files hold a trained model.
struct ModelFiles {
  bool directory = false;  ///< a Hugging Face directory, of `type`
  bool gguf = false;       ///< a GGUF file as well, of I2_S, or of floats where `type` is kDense
  quant::LinearType type = quant::LinearType::kHf;
  std::string reason;  ///< why not both of them; empty where there are both
};

/// By the model's shape and quantiser: both files for b1.58's one scale a tensor, and of type kDense in full
/// precision; kExtended alone (docs/formats/extended.md) for scales by row or group; none for a Hadamard
/// transform, for 4-bit activations, and for groups that the widths do not fill. Pure.
ModelFiles model_files(const ModelConfig& config, Quantization quantization,
                       const QuantizerOptions& quantizer);

/// One tensor: as of the last refresh() for quantisers with other scales than b1.58's; else trits and scale
/// by absmean of the latent weights for a ternary model's linears (unless `latent`), the scale made
/// invertible (fake_quant.hpp) as in training; f32 values for everything else.
quant::LogicalTensor export_tensor(LanguageModel& model, TensorId id, bool latent = false);

/// Writes the model. A ternary model takes any ternary type that holds its scales (kExtended all of them),
/// bit-equal in I2_S, both forms of Hugging Face's scale and kExtended; or, with one mean a tensor, kDense
/// for its latent weights (readers ternarise them to the same trits and, within one ulp, scales when
/// `dense_type` is f32; training can go on from them). A full-precision model takes kDense only; the files
/// say that it is one, so that nobody takes its weights for latent ones. Throws like quant::write_model, and
/// Error(kUnsupported) for a ternary type of a full-precision model, for kDense of a quantiser that readers
/// would not ternarise by, and where model_files() knows none.
void export_model(const std::filesystem::path& path, LanguageModel& model, const Tokenizer* tokenizer,
                  const quant::WriteOptions& options);

}  // namespace bitnet::training
