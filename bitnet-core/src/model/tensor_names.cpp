// The table of tensor names and shapes. Every reader and writer of models asks here.
#include "bitnet/core/model/tensor_names.hpp"

#include <fmt/format.h>

#include <array>
#include <charconv>

#include "bitnet/core/error.hpp"

namespace bitnet {
namespace {

struct NameRow {
  TensorRole role;
  std::string_view hf;      // below "model.layers.N." for per-layer roles
  std::string_view hf_old;  // 1bitLLM's name where it differs
  std::string_view gguf;    // below "blk.N."
};

constexpr std::array<NameRow, kTensorRoleCount> kNames = {{
    {TensorRole::kTokenEmbedding, "model.embed_tokens.weight", "", "token_embd.weight"},
    {TensorRole::kOutputNorm, "model.norm.weight", "", "output_norm.weight"},
    {TensorRole::kOutputHead, "lm_head.weight", "", "output.weight"},
    {TensorRole::kAttnNorm, "input_layernorm.weight", "", "attn_norm.weight"},
    {TensorRole::kAttnQ, "self_attn.q_proj.weight", "", "attn_q.weight"},
    {TensorRole::kAttnK, "self_attn.k_proj.weight", "", "attn_k.weight"},
    {TensorRole::kAttnV, "self_attn.v_proj.weight", "", "attn_v.weight"},
    {TensorRole::kAttnSubNorm, "self_attn.attn_sub_norm.weight", "self_attn.inner_attn_ln.weight",
     "attn_sub_norm.weight"},
    {TensorRole::kAttnOutput, "self_attn.o_proj.weight", "", "attn_output.weight"},
    {TensorRole::kFfnNorm, "post_attention_layernorm.weight", "", "ffn_norm.weight"},
    {TensorRole::kFfnGate, "mlp.gate_proj.weight", "", "ffn_gate.weight"},
    {TensorRole::kFfnUp, "mlp.up_proj.weight", "", "ffn_up.weight"},
    {TensorRole::kFfnSubNorm, "mlp.ffn_sub_norm.weight", "mlp.ffn_layernorm.weight", "ffn_sub_norm.weight"},
    {TensorRole::kFfnDown, "mlp.down_proj.weight", "", "ffn_down.weight"},
}};

const NameRow& row_of(TensorRole role) { return kNames[static_cast<std::size_t>(role)]; }

/// Takes "N." off the front of `name`; empty unless N is a plain decimal number of at most six digits.
std::optional<std::int64_t> take_layer(std::string_view& name) {
  const std::size_t dot = name.find('.');
  if (dot == std::string_view::npos || dot == 0 || dot > 6 || (dot > 1 && name[0] == '0')) return {};
  std::int64_t layer = 0;
  const auto [end, error] = std::from_chars(name.data(), name.data() + dot, layer);
  if (error != std::errc() || end != name.data() + dot || layer < 0) return {};
  name.remove_prefix(dot + 1);
  return layer;
}

template <class Matches>
std::optional<TensorId> find(std::string_view name, std::string_view layer_prefix, Matches&& matches) {
  std::int64_t layer = -1;
  if (name.starts_with(layer_prefix)) {
    name.remove_prefix(layer_prefix.size());
    const auto number = take_layer(name);
    if (!number) return {};
    layer = *number;
  }
  for (const NameRow& row : kNames)
    if (is_per_layer(row.role) == (layer >= 0) && matches(row, name)) return TensorId{row.role, layer};
  return {};
}

}  // namespace

std::string hf_name(TensorId id, ModelFamily family) {
  const NameRow& row = row_of(id.role);
  const auto name = family == ModelFamily::kBitNetOld && !row.hf_old.empty() ? row.hf_old : row.hf;
  return is_per_layer(id.role) ? fmt::format("model.layers.{}.{}", id.layer, name) : std::string(name);
}

std::string gguf_name(TensorId id) {
  const NameRow& row = row_of(id.role);
  return is_per_layer(id.role) ? fmt::format("blk.{}.{}", id.layer, row.gguf) : std::string(row.gguf);
}

std::optional<TensorId> tensor_from_hf_name(std::string_view name) {
  return find(name, "model.layers.", [](const NameRow& row, std::string_view n) {
    return n == row.hf || (!row.hf_old.empty() && n == row.hf_old);
  });
}

std::optional<TensorId> tensor_from_gguf_name(std::string_view name) {
  return find(name, "blk.", [](const NameRow& row, std::string_view n) { return n == row.gguf; });
}

Shape tensor_shape(TensorId id, const ModelConfig& c) {
  switch (id.role) {
    case TensorRole::kTokenEmbedding:
    case TensorRole::kOutputHead:
      return {c.vocab_size, c.hidden_size};
    case TensorRole::kOutputNorm:
    case TensorRole::kAttnNorm:
    case TensorRole::kFfnNorm:
      return {c.hidden_size};
    case TensorRole::kAttnQ:
      return {c.q_dim(), c.hidden_size};
    case TensorRole::kAttnK:
    case TensorRole::kAttnV:
      return {c.kv_dim(), c.hidden_size};
    case TensorRole::kAttnSubNorm:
      return {c.q_dim()};
    case TensorRole::kAttnOutput:
      return {c.hidden_size, c.q_dim()};
    case TensorRole::kFfnGate:
    case TensorRole::kFfnUp:
      return {c.intermediate_size, c.hidden_size};
    case TensorRole::kFfnSubNorm:
      return {c.intermediate_size};
    case TensorRole::kFfnDown:
      return {c.hidden_size, c.intermediate_size};
  }
  throw Error(ErrorCode::kInternal, "tensor_shape: unknown role");
}

std::vector<TensorId> model_tensors(const ModelConfig& config) {
  std::vector<TensorId> ids = {{TensorRole::kTokenEmbedding, -1}};
  for (std::int64_t layer = 0; layer < config.n_layers; ++layer) {
    for (const NameRow& row : kNames) {
      const bool sub_norm = row.role == TensorRole::kAttnSubNorm || row.role == TensorRole::kFfnSubNorm;
      if (is_per_layer(row.role) && (config.sub_norms || !sub_norm)) ids.push_back({row.role, layer});
    }
  }
  ids.push_back({TensorRole::kOutputNorm, -1});
  if (!config.tied_embeddings) ids.push_back({TensorRole::kOutputHead, -1});
  return ids;
}

}  // namespace bitnet
