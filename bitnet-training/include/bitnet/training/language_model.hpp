#pragma once
// The decoder whose weights are all trained: pre-norms, sub-norms, rotary grouped-query attention, gated
// feed-forward, as 2B-4T has it. What it is made of is modules.hpp; models of other shapes become such ones
// by sub_norms.hpp.
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/model/model_config.hpp"
#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/training/attention.hpp"
#include "bitnet/training/modules.hpp"
#include "bitnet/training/quantizer.hpp"
#include "bitnet/training/text_model.hpp"

namespace bitnet::training {

/// What the linear layers compute with.
enum class Quantization : std::uint8_t {
  kTernary,  ///< BitLinear: ternary weights, int8 activations, straight-through gradients
  kNone,     ///< the same model in full precision
};

/// A decoder of ModelConfig's shape: family kBitNet25 with sub-norms, squared ReLU or SiLU, head tied or not.
/// Not thread-safe.
class LanguageModel final : public TextModel {
 public:
  /// Throws Error(kInvalidArgument | kUnsupported) naming the field that cannot be trained.
  /// Of the quantiser's options `hadamard` is for the output and the down projection (BitNet v2).
  LanguageModel(const ExecutionContext& context, const ModelConfig& config, Quantization quantization,
                const QuantizerOptions& quantizer = {});
  ~LanguageModel() override;

  /// Normal weights of standard deviation `deviation`, norms one; in the order of parameters().
  void initialize(Rng& rng, float deviation);
  void set_recompute(bool on) noexcept override { recompute_ = on; }
  Variable forward(Tape& tape, std::span<const std::int32_t> ids, const RowLayout& layout,
                   AttentionStates* states = nullptr) override;
  void set_lambda(const QuantizerSchedule& schedule, std::int64_t step) override;
  /// λ of this linear is 1 at every step: it began with trits, and there is nothing to grow.
  void keep_whole(TensorId id);
  /// Ternarises latent weights anew; call after they change. Nothing to do in full precision.
  void refresh(const ExecutionContext& context) override;

  const ModelConfig& config() const noexcept override { return config_; }
  Quantization quantization() const noexcept { return quantization_; }
  const QuantizerOptions& quantizer() const noexcept { return quantizer_; }
  /// In the order of model_tensors(config()), names as in Hugging Face files; learned scales behind them.
  std::span<Parameter* const> parameters() const noexcept override { return parameters_; }
  /// The same order, without learned scales.
  std::span<const TensorId> tensor_ids() const noexcept { return ids_; }
  /// The linear layer that holds `id`, or null.
  Linear* linear(TensorId id) const noexcept;
  TritCounts trit_counts() const noexcept override;
  std::vector<double> layer_scales() const override;
  std::map<std::string, std::string> identity() const override;

 private:
  struct Layer;
  Variable layer_forward(Tape& tape, Layer& layer, Variable x, const RowLayout& layout,
                         AttentionStates* states);
  ModelConfig config_;
  Quantization quantization_;
  bool recompute_ = false;
  QuantizerOptions quantizer_;
  std::vector<std::unique_ptr<Layer>> layers_;
  Embedding embedding_;
  std::unique_ptr<Linear> head_;  // null: tied
  RmsNorm norm_;
  RopeTable rope_;
  std::vector<Parameter*> parameters_;
  std::vector<TensorId> ids_;
  std::vector<bool> whole_;  ///< of ids_: keep_whole()
};

}  // namespace bitnet::training
