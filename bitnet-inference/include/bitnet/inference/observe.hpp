#pragma once
// What a model's linears are given on a text: the hook that calibration of bitnet-quant is fed through (its
// ActivationSource; bitnet-cli joins the two). Not thread-safe as to the model: ops of its backend are issued
// by one thread at a time.
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/inference/cancellation.hpp"
#include "bitnet/inference/model.hpp"

namespace bitnet::inference {

struct ObserveOptions {
  std::int64_t chunk_rows = 256;      ///< rows of one forward pass, and of one call
  std::optional<DType> kv_type = {};  ///< of the KV cache; none: what the model's policy says
  std::function<void(std::int64_t done, std::int64_t total)> progress = {};  ///< tokens
  CancellationToken cancellation = {};
};

/// Rows [n, in] that the linears with this input are given, as f32 before they are quantised; valid during
/// the call. `input`: the linear that stands for all with the same one (input_role()).
using LinearObserver = std::function<void(TensorId input, std::span<const float> rows)>;

/// Evaluates each sequence from an empty cache and shows the inputs that `wanted` asks for, in the order of
/// the tokens; layers behind the last one that is wanted do not run. What is computed is the same bits as
/// without an observer. Throws Error(kInvalidArgument) on an empty sequence or an id outside the vocabulary,
/// Error(kCancelled), Error(kOutOfMemory | kDevice), and what the observer throws.
void observe_linear_inputs(const std::shared_ptr<const Model>& model,
                           std::span<const std::vector<TokenId>> sequences,
                           const std::function<bool(TensorId input)>& wanted, const LinearObserver& observer,
                           const ObserveOptions& options = {});

}  // namespace bitnet::inference
