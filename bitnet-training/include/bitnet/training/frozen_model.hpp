#pragma once
// A model whose weights do not change: the base of adapters (lora.hpp) and the teacher of distillation
// (distillation.hpp). Trits stay packed; gradients flow through it to what was put beside its linears.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/quant/bit_linear.hpp"
#include "bitnet/quant/extended_linear.hpp"
#include "bitnet/quant/int8_linear.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/training/text_model.hpp"

namespace bitnet::training {

/// One matrix: quantised, in the tiles that the engine multiplies by (quant::BitLinear, ExtendedLinear,
/// Int8Linear), or dense in f32 (tag "frozen weights"). Immutable; a tape is one thread's.
class FrozenLinear {
 public:
  /// `tensor` is a matrix. Throws what those throw, Error(kOutOfMemory).
  FrozenLinear(const ExecutionContext& context, const quant::LogicalTensor& tensor);
  FrozenLinear(const FrozenLinear&) = delete;
  FrozenLinear& operator=(const FrozenLinear&) = delete;

  /// y = W·q(x) of rows that were quantised from x, with the engine's bits, or W·x. Backward: dx += dy·W with
  /// the weights as they are stored, straight through the quantiser, 64 rows at a time as floats; of one
  /// plane without groups of columns the same bits as bit_linear(). `rows` is read now only. Throws
  /// Error(kInvalidArgument) on sizes that disagree.
  Variable forward(Tape& tape, Variable x, const quant::QuantizedRows& rows) const;
  /// Dense weights as a variable without gradient, of any tape. Throws Error(kInvalidArgument) for quantised
  /// ones.
  Variable constant() const;
  /// Whether it wants quantised rows.
  bool quantised() const noexcept { return trits_ || extended_ || int8_; }
  std::int64_t out() const noexcept { return out_; }
  std::int64_t in() const noexcept { return in_; }
  std::size_t bytes() const noexcept;  ///< of the weights as they lie in memory
  /// How the rows are to be quantised that a quantised one multiplies.
  ActivationForm activations() const noexcept { return activations_; }
  /// The packed matrix of one plane with scales of whole rows, or null.
  const quant::BitLinear* trits() const noexcept { return trits_ ? &*trits_ : nullptr; }

 private:
  void expand(std::int64_t begin, std::int64_t end, std::span<std::int8_t> trits, std::span<float> to) const;
  void multiply_transposed(Tape& tape, Variable x, const float* d) const;
  std::int64_t out_, in_;
  ActivationForm activations_;
  std::shared_ptr<HybridMemoryPool> memory_;
  std::optional<quant::BitLinear> trits_;
  std::optional<quant::ExtendedLinear> extended_;
  std::optional<quant::Int8Linear> int8_;
  MemoryArray<float> dense_;
  mutable Node node_;  ///< dense weights as a constant of any tape
};

/// What is added to a linear's output.
class LinearAddition {
 public:
  virtual ~LinearAddition() = default;
  /// y, or y and something of x (the linear's input before it is quantised).
  virtual Variable add(Tape& tape, TensorId id, Variable x, Variable y) = 0;
};

/// A decoder of any shape that model_io reads but for norms before each linear (`input_norms`): linears of
/// any kind, quantised ones with the activations that their file asks for; with or without sub-norms, squared
/// ReLU or SiLU, head tied or not. parameters() is empty. Not thread-safe.
class FrozenModel final : public TextModel {
 public:
  /// `source(id)` is called once for each of model_tensors(config). Sequences may have `positions` tokens (0:
  /// config.max_position). Throws Error(kUnsupported) for input norms, Error(kInvalidArgument) for tensors
  /// that do not fit, Error(kOutOfMemory).
  FrozenModel(const ExecutionContext& context, const ModelConfig& config,
              const std::function<quant::LogicalTensor(TensorId)>& source, std::int64_t positions = 0);
  /// The same from files; ternary where the files say so. Throws what ModelReader::open throws, too.
  static std::unique_ptr<FrozenModel> load(const ExecutionContext& context, const std::filesystem::path& path,
                                           std::int64_t positions = 0);
  ~FrozenModel() override;

  const ModelConfig& config() const noexcept override { return config_; }
  std::span<Parameter* const> parameters() const noexcept override { return {}; }
  Variable forward(Tape& tape, std::span<const std::int32_t> ids, const RowLayout& layout,
                   AttentionStates* states = nullptr) override {
    return forward_with(tape, ids, layout, states, nullptr);
  }
  void set_recompute(bool on) noexcept override { recompute_ = on; }
  /// forward() with something beside its linears.
  Variable forward_with(Tape& tape, std::span<const std::int32_t> ids, const RowLayout& layout,
                        AttentionStates* states, LinearAddition* addition);
  /// The shape, and a hash of every tensor as it was read.
  std::map<std::string, std::string> identity() const override;
  std::size_t bytes() const noexcept;  ///< of all weights as they lie in memory
  /// Null unless id is one of the seven linears of a layer.
  const FrozenLinear* linear(TensorId id) const noexcept;

 private:
  struct Layer;
  struct Parts;
  void take(const ExecutionContext& context, const quant::LogicalTensor& tensor);
  ModelConfig config_;
  std::vector<Layer> layers_;
  std::unique_ptr<FrozenLinear> embedding_, head_;
  std::vector<float> output_norm_;
  RopeTable rope_;
  quant::QuantizedRows rows_;  ///< of the linears that are being multiplied
  bool recompute_ = false;
  std::uint64_t hash_ = 14695981039346656037u;
};

}  // namespace bitnet::training
