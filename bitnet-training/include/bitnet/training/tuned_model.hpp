#pragma once
// A quantised model whose trits (or int8 values) stay as they are while what they are multiplied by is
// trained: scales, norms, if asked for embedding and head. The last step of post-training quantisation;
// tuning.hpp is the loop. Latent weights, whose trits change, are language_model.hpp.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/memory/memory_handle.hpp"
#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/quant/bit_linear.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/training/text_model.hpp"

namespace bitnet::training {

/// What is trained.
struct TunedParts {
  bool scales = true;
  bool norms = true;
  bool embeddings = false;  ///< and the head
};

/// A decoder of any shape that model_io reads but for norms before each linear, with linears of any kind: one
/// plane or two of trits, int8, floats (which stay), activations of 8 or 4 bits; scales by tensor, row or
/// group. A scale is what it was times e^p, every other number what it was plus the root mean square of its
/// tensor times p, where p is the parameter: all begin with 0, and a rate means the same for all of them.
/// Integers take a byte each, floats four. Not thread-safe.
class TunedModel final : public TextModel {
 public:
  /// `source(id)` is called once for each of model_tensors(config), in that order. Sequences may have
  /// `positions` tokens (0: config.max_position). Throws Error(kUnsupported) for input norms,
  /// Error(kInvalidArgument) where there is nothing to train and for tensors that do not fit,
  /// Error(kOutOfMemory).
  TunedModel(const ExecutionContext& context, const ModelConfig& config,
             const std::function<quant::LogicalTensor(TensorId)>& source, const TunedParts& parts = {},
             std::int64_t positions = 0);
  ~TunedModel() override;

  const ModelConfig& config() const noexcept override { return config_; }
  /// In the order of model_tensors(config()), names as in Hugging Face files, scales with ".scale" behind.
  std::span<Parameter* const> parameters() const noexcept override { return parameters_; }
  Variable forward(Tape& tape, std::span<const std::int32_t> ids, const RowLayout& layout,
                   AttentionStates* states = nullptr) override;
  void set_recompute(bool on) noexcept override { recompute_ = on; }
  /// Makes scales of the parameters.
  void refresh(const ExecutionContext& context) override;
  /// The shape, and a hash of every tensor as it was read.
  std::map<std::string, std::string> identity() const override;

  /// The tensor as it now is: the integers that it came with, and as it was read where nothing of it is
  /// trained; floats as f32. Throws Error(kInvalidArgument) for a tensor that the model has not.
  quant::LogicalTensor tensor(TensorId id) const;
  std::size_t bytes() const noexcept;  ///< of the weights as they lie in memory

 private:
  struct Dense;
  struct Layer;
  struct Parts;
  void take(const ExecutionContext& context, const quant::LogicalTensor& tensor, const TunedParts& parts);
  const Dense* dense(TensorId id) const noexcept;
  ModelConfig config_;
  Isa isa_;
  std::vector<Layer> layers_;
  std::unique_ptr<Dense> embedding_, head_, output_norm_;
  RopeTable rope_;
  quant::QuantizedRows rows_;  ///< while they are made floats again
  std::vector<Parameter*> parameters_;
  bool recompute_ = false;
  std::uint64_t hash_ = 14695981039346656037u;
};

}  // namespace bitnet::training
