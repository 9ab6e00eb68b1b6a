#pragma once
// The 2B-4T decoder: pre-norms, sub-norms, rotary grouped-query attention, squared-ReLU gated feed-forward,
// tied embedding. What it is made of is modules.hpp.
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "bitnet/core/model/model_config.hpp"
#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/training/attention.hpp"
#include "bitnet/training/modules.hpp"
#include "bitnet/training/quantizer.hpp"

namespace bitnet::training {

/// What the linear layers compute with.
enum class Quantization : std::uint8_t {
  kTernary,  ///< BitLinear: ternary weights, int8 activations, straight-through gradients
  kNone,     ///< the same model in full precision
};

/// A decoder of ModelConfig's shape (family kBitNet25, relu², tied embedding). Not thread-safe.
class LanguageModel {
 public:
  /// Throws Error(kInvalidArgument | kUnsupported) naming the field that cannot be trained.
  /// Of the quantiser's options `hadamard` is for the output and the down projection (BitNet v2).
  LanguageModel(const ExecutionContext& context, const ModelConfig& config, Quantization quantization,
                const QuantizerOptions& quantizer = {});
  ~LanguageModel();

  /// Normal weights of standard deviation `deviation`, norms one; in the order of parameters().
  void initialize(Rng& rng, float deviation);
  /// Logits [ids.size(), vocab] of sequences of layout.length ids one after the other. Tokens attend within
  /// their document only.
  Variable forward(Tape& tape, std::span<const std::int32_t> ids, const RowLayout& layout);
  /// λ of every layer's quantisers at this step; refresh() makes it hold.
  void set_lambda(const QuantizerSchedule& schedule, std::int64_t step);
  /// Ternarises latent weights anew; call after they change. Nothing to do in full precision.
  void refresh(const ExecutionContext& context);

  const ModelConfig& config() const noexcept { return config_; }
  Quantization quantization() const noexcept { return quantization_; }
  const QuantizerOptions& quantizer() const noexcept { return quantizer_; }
  /// In the order of model_tensors(config()), names as in Hugging Face files; learned scales behind them.
  std::span<Parameter* const> parameters() const noexcept { return parameters_; }
  /// The same order, without learned scales.
  std::span<const TensorId> tensor_ids() const noexcept { return ids_; }
  /// The linear layer that holds `id`, or null.
  Linear* linear(TensorId id) const noexcept;
  std::int64_t parameter_count() const noexcept;
  /// Trits of all linears that are zero, that changed in the last refresh, and all (0 in full precision).
  struct TritCounts {
    std::int64_t zeros = 0, flips = 0, all = 0;
  };
  TritCounts trit_counts() const noexcept;

 private:
  struct Layer;
  Variable layer_forward(Tape& tape, Layer& layer, Variable x, const RowLayout& layout);
  ModelConfig config_;
  Quantization quantization_;
  QuantizerOptions quantizer_;
  std::vector<std::unique_ptr<Layer>> layers_;
  Embedding embedding_;
  RmsNorm norm_;
  RopeTable rope_;
  std::vector<Parameter*> parameters_;
  std::vector<TensorId> ids_;
};

}  // namespace bitnet::training
