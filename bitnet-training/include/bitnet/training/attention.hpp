#pragma once
// The attention layer: projections of any kind around causal_attention() of ops.hpp. Not thread-safe, like
// every module.
#include <memory>
#include <vector>

#include "bitnet/training/modules.hpp"
#include "bitnet/training/ops.hpp"
#include "bitnet/training/text_model.hpp"

namespace bitnet::training {

/// Causal attention with grouped-query heads and rotary positions, of linear layers of any kind.
class Attention final : public Module {
 public:
  struct Layers {
    std::unique_ptr<Linear> q, k, v, o;
    std::unique_ptr<RmsNorm> sub_norm;  ///< before o; may be null
    std::unique_ptr<RmsNorm> norm{};    ///< before q, k and v; may be null
  };
  /// Throws Error(kInvalidArgument) when the layers' sizes are not those of the heads (length is not used).
  Attention(Layers layers, const AttentionShape& heads);
  /// `states`, where given, gets the projections.
  Variable forward(Tape& tape, Variable x, const RopeTable& table, const RowLayout& layout,
                   AttentionStates* states = nullptr);
  void parameters(std::vector<Parameter*>& all) override;
  void refresh(const ExecutionContext& context) override;
  void set_lambda(float lambda) override;
  const Layers& layers() const noexcept { return layers_; }

 private:
  Layers layers_;
  AttentionShape heads_;
};

}  // namespace bitnet::training
