#pragma once
// What the trainer, checkpoints and distillation ask of a model of text, whatever of it is trained. All
// weights are language_model.hpp, adapters on a frozen base lora.hpp, none frozen_model.hpp.
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/model/model_config.hpp"
#include "bitnet/training/ops.hpp"
#include "bitnet/training/quantizer.hpp"
#include "bitnet/training/tape.hpp"

namespace bitnet::training {

/// The projections of one layer's attention in a forward pass, before they are rotated.
struct AttentionStates {
  std::int64_t layer = -1;  ///< which one to keep, given by the caller
  Variable input;           ///< of the layer, before its norm: [rows, hidden]
  Variable q, k, v;         ///< before they are rotated: [rows, heads · head_dim]; of the tape of the pass
};

/// Trits of all linears that are zero, that changed in the last refresh, and all (0 without trained trits).
struct TritCounts {
  std::int64_t zeros = 0, flips = 0, all = 0;
};

/// A decoder. Not thread-safe.
class TextModel {
 public:
  TextModel() = default;
  TextModel(const TextModel&) = delete;
  TextModel& operator=(const TextModel&) = delete;
  virtual ~TextModel() = default;

  virtual const ModelConfig& config() const noexcept = 0;
  /// What is trained, always in the same order.
  virtual std::span<Parameter* const> parameters() const noexcept = 0;
  /// Logits [ids.size(), vocab] of sequences of layout.length ids one after the other. Tokens attend within
  /// their document only. Fills `states` of its layer where one is given; Error(kInvalidArgument) for a layer
  /// that there is not.
  virtual Variable forward(Tape& tape, std::span<const std::int32_t> ids, const RowLayout& layout,
                           AttentionStates* states = nullptr) = 0;
  /// Called before each recorded pass: what is random in it depends on these and the seed alone, so that a
  /// resumed run goes on with the same bits.
  virtual void begin_pass(std::int64_t /*step*/, std::int64_t /*first_sequence*/) {}
  /// Whether recorded passes keep no activations of a layer but its output, and compute the others again on
  /// the way back (recompute.hpp); the layer of `states` is kept. No bit changes; a step takes a forward pass
  /// more.
  virtual void set_recompute(bool on) noexcept = 0;
  /// λ of every layer's quantisers at this step; refresh() makes it hold.
  virtual void set_lambda(const QuantizerSchedule&, std::int64_t /*step*/) {}
  /// Makes ternary forms anew; called after weights have changed.
  virtual void refresh(const ExecutionContext&) {}
  virtual TritCounts trit_counts() const noexcept { return {}; }
  /// Of each layer the mean of its linears' scales; empty without trained trits.
  virtual std::vector<double> layer_scales() const { return {}; }
  /// What must agree for a checkpoint to belong to this model, by name.
  virtual std::map<std::string, std::string> identity() const = 0;

  /// Numbers in parameters().
  std::int64_t parameter_count() const noexcept;
};

/// identity() of a shape: sizes and constants of the architecture.
std::map<std::string, std::string> identity_of_shape(const ModelConfig& config);

}  // namespace bitnet::training
