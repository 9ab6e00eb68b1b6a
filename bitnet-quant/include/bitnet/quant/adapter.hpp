#pragma once
// LoRA adapters: low-rank updates W + scaling · B·A of a model's linears (Hu et al. 2021, arXiv:2106.09685,
// section 4.1), in the files and under the names of PEFT; and merging them into the weights. Running them
// beside the weights is bitnet-inference's adapter_set.hpp. Format facts: docs/formats/lora.md.
// Plain values; the functions are thread-safe, but for two that write to one directory.
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/model/model_config.hpp"
#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/quant/model_io.hpp"

namespace bitnet::quant {

/// The update of one linear [out, in].
struct LoraLinear {
  TensorId id;
  std::int64_t rank = 0;  ///< ≥ 1
  float scaling = 1;      ///< lora_alpha / rank, or lora_alpha / √rank (rsLoRA)
  std::vector<float> a;   // [rank, in]
  std::vector<float> b;   // [out, rank]
};

struct LoraAdapter {
  std::string base_model;           ///< what the file names as its base; perhaps empty, never checked
  std::vector<LoraLinear> linears;  ///< of one model each at most once; ascending by layer
  std::vector<std::string> notes;   ///< remarks for people
};

/// An adapter's directory: adapter_config.json and adapter_model.safetensors. Every tensor must be a LoRA
/// factor of one of `config`'s linears, in pairs whose shapes fit, f32, f16 or bf16, finite. Throws
/// Error(kNotFound | kIo | kCorruptFile), naming file and tensor, Error(kUnsupported) for what PEFT has
/// besides (DoRA, biases, embeddings, modules_to_save, other methods).
LoraAdapter read_adapter(const std::filesystem::path& directory, const ModelConfig& config);

/// Writes such a directory, f32, each file atomically, the config last. Creates the directory. Throws
/// Error(kInvalidArgument) on factors whose sizes do not fit `config`, or ranks or scalings that differ from
/// linear to linear; Error(kIo).
void write_adapter(const std::filesystem::path& directory, const LoraAdapter& adapter,
                   const ModelConfig& config);

/// One of several adapters that act together, and how strongly.
struct WeightedAdapter {
  const LoraAdapter* adapter = nullptr;
  float weight = 1;
};

/// What merging did to one linear. W is the weight before, Δ = Σ weight · scaling · B·A, M what was stored.
struct MergeReport {
  TensorId id;
  double update = 0;  ///< ‖Δ‖ / ‖W‖ (Frobenius), 0 for W = 0
  double kept = 0;  ///< ⟨M − W, Δ⟩ / ⟨Δ, Δ⟩: 1 when M = W + Δ, 0 when nothing of Δ came through
  double error = 0;          ///< ‖M − (W + Δ)‖ / ‖W + Δ‖
  std::int64_t trits = 0;    ///< that there are, in both planes; 0 for int8 and floats
  std::int64_t flips = 0;    ///< of those changed
  std::int64_t weights = 0;  ///< out · in
};

/// `tensor` with Δ of its id added, of the kind that it was. A ternary one: trit = clamp(round_half_even((W +
/// Δ) / s), −1, 1) with the scale s that it had (absmean of W + Δ would shrink it by the zeros), then s by
/// least squares for these trits, whatever groups scales have; only what moves a weight past s / 2 comes
/// through. Of two planes the pair of trits nearest to W + Δ, then both scales. Rows of int8 that Δ touches
/// get the scale of their largest weight. A dense one is rounded to its type. A tensor that no adapter
/// touches is left as it is, without a report. Sums are in double, in the order of the adapters: bits do not
/// depend on threads. Throws Error(kInvalidArgument) on sizes that do not fit or a sum that is not finite,
/// Error(kUnsupported) for two planes with different groups of scales.
LogicalTensor merge(const LogicalTensor& tensor, std::span<const WeightedAdapter> adapters,
                    std::vector<MergeReport>& reports);

}  // namespace bitnet::quant
