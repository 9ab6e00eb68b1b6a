#pragma once
// LoRA on a base that stays as it is (Hu et al. 2021, arXiv:2106.09685; on quantised weights: QLoRA, Dettmers
// et al. 2023, arXiv:2305.14314): y = W·q(x) + scaling · B·(A·dropout(x)). Only A and B have gradients and
// optimiser state. Adapters as files are bitnet-quant's adapter.hpp.
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/quant/adapter.hpp"
#include "bitnet/training/frozen_model.hpp"
#include "bitnet/training/text_model.hpp"

namespace bitnet::training {

struct LoraOptions {
  std::int64_t rank = 8;
  double alpha = 16;
  double dropout = 0;  ///< of the input of A, in training only
  bool rslora =
      false;  ///< scaling alpha / √rank (Kalajdzievski 2023, arXiv:2312.03732) instead of alpha / rank
  /// Linears of every layer that get an adapter.
  std::vector<TensorRole> targets = {TensorRole::kAttnQ,      TensorRole::kAttnK,   TensorRole::kAttnV,
                                     TensorRole::kAttnOutput, TensorRole::kFfnGate, TensorRole::kFfnUp,
                                     TensorRole::kFfnDown};

  /// Throws Error(kInvalidArgument) naming the option and what it may be.
  void validate() const;
  float scaling() const noexcept;
};

/// "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj".
std::string_view target_name(TensorRole role) noexcept;
/// The reverse; Error(kInvalidArgument) lists the names.
TensorRole target_from_string(std::string_view name);

/// A frozen base and the factors that are trained, "….lora_A" [rank, in] and "….lora_B" [out, rank]. A begins
/// uniform in ±1 / √in as in PEFT, B with zeros: at first the model is its base. Not thread-safe.
class LoraModel final : public TextModel, private LinearAddition {
 public:
  /// Throws as LoraOptions::validate(), Error(kOutOfMemory).
  LoraModel(const ExecutionContext& context, std::unique_ptr<FrozenModel> base, const LoraOptions& options,
            std::uint64_t seed);

  const ModelConfig& config() const noexcept override { return base_->config(); }
  std::span<Parameter* const> parameters() const noexcept override { return parameters_; }
  Variable forward(Tape& tape, std::span<const std::int32_t> ids, const RowLayout& layout,
                   AttentionStates* states = nullptr) override {
    return base_->forward_with(tape, ids, layout, states, this);
  }
  void set_recompute(bool on) noexcept override { base_->set_recompute(on); }
  /// Which dropout the next pass has.
  void begin_pass(std::int64_t step, std::int64_t first_sequence) override;
  /// The base's, and what the adapter is.
  std::map<std::string, std::string> identity() const override;

  /// A copy of the factors, for write_adapter().
  quant::LoraAdapter adapter(std::string base_name = {}) const;
  /// Takes factors to go on from. Throws Error(kInvalidArgument) unless they are of the same linears, rank
  /// and scaling.
  void set_adapter(const quant::LoraAdapter& adapter);
  const FrozenModel& base() const noexcept { return *base_; }
  const LoraOptions& options() const noexcept { return options_; }

 private:
  struct Factors {
    TensorId id;
    std::unique_ptr<Parameter> a, b;
  };
  Variable add(Tape& tape, TensorId id, Variable x, Variable y) override;
  Factors* find(TensorId id) noexcept;
  std::unique_ptr<FrozenModel> base_;
  LoraOptions options_;
  std::uint64_t seed_, pass_key_;
  std::vector<Factors> factors_;  // ascending by layer, targets in their order
  std::vector<Parameter*> parameters_;
};

}  // namespace bitnet::training
