#pragma once
// The one table of tensor names: what each tensor of a transformer is called in Hugging Face directories and
// in GGUF files. Pure functions, thread-safe.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/model/model_config.hpp"
#include "bitnet/core/shape.hpp"

namespace bitnet {

/// What a tensor is for. The per-layer roles follow kAttnNorm.
enum class TensorRole : std::uint8_t {
  kTokenEmbedding,  ///< [vocab, hidden]
  kOutputNorm,      ///< [hidden]
  kOutputHead,      ///< [vocab, hidden], absent when tied
  kAttnNorm,        ///< [hidden]
  kAttnQ,           ///< [q_dim, hidden]
  kAttnK,           ///< [kv_dim, hidden]
  kAttnV,           ///< [kv_dim, hidden]
  kAttnSubNorm,     ///< [q_dim]
  kAttnOutput,      ///< [hidden, q_dim]
  kFfnNorm,         ///< [hidden]
  kFfnGate,         ///< [intermediate, hidden]
  kFfnUp,           ///< [intermediate, hidden]
  kFfnSubNorm,      ///< [intermediate]
  kFfnDown,         ///< [hidden, intermediate]
};
inline constexpr std::uint8_t kTensorRoleCount = 14;

/// A role and, for per-layer roles, the layer.
struct TensorId {
  TensorRole role{};
  std::int64_t layer = -1;  ///< −1 for roles outside the layers
  friend bool operator==(const TensorId&, const TensorId&) = default;
};

constexpr bool is_per_layer(TensorRole role) noexcept { return role >= TensorRole::kAttnNorm; }
/// The seven roles that BitNet ternarises.
constexpr bool is_linear(TensorRole role) noexcept {
  return role == TensorRole::kAttnQ || role == TensorRole::kAttnK || role == TensorRole::kAttnV ||
         role == TensorRole::kAttnOutput || role == TensorRole::kFfnGate || role == TensorRole::kFfnUp ||
         role == TensorRole::kFfnDown;
}
/// Of the linears of a layer that have the same input, the one that stands for it: q for q, k and v, gate for
/// gate and up, every other one for itself.
constexpr TensorRole input_role(TensorRole linear) noexcept {
  if (linear == TensorRole::kAttnK || linear == TensorRole::kAttnV) return TensorRole::kAttnQ;
  return linear == TensorRole::kFfnUp ? TensorRole::kFfnGate : linear;
}
constexpr bool is_norm(TensorRole role) noexcept {
  return role == TensorRole::kOutputNorm || role == TensorRole::kAttnNorm ||
         role == TensorRole::kAttnSubNorm || role == TensorRole::kFfnNorm || role == TensorRole::kFfnSubNorm;
}

/// "model.layers.3.self_attn.q_proj.weight"; the sub-norms' names depend on the family.
std::string hf_name(TensorId id, ModelFamily family);
/// "blk.3.attn_q.weight"
std::string gguf_name(TensorId id);
/// Inverse of both; empty for a name that is not in the table (`…weight_scale` names included).
std::optional<TensorId> tensor_from_hf_name(std::string_view name);
std::optional<TensorId> tensor_from_gguf_name(std::string_view name);

/// Expected shape as [out, in] or [n].
Shape tensor_shape(TensorId id, const ModelConfig& config);
/// Every tensor that a model of this config has, in file order (embedding, layers, norm, head).
std::vector<TensorId> model_tensors(const ModelConfig& config);

}  // namespace bitnet
