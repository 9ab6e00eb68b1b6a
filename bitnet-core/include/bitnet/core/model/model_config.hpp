#pragma once
// What a transformer's files say about its shape: read from config.json and from GGUF keys.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/io/gguf.hpp"

namespace bitnet {

/// Activation of the gated feed-forward: down(f(gate) · up).
enum class Activation : std::uint8_t { kRelu2, kSilu };

/// How a model's linear weights are meant to be used.
enum class WeightKind : std::uint8_t {
  kDense,    ///< float weights, used as they are
  kTernary,  ///< BitNet b1.58: packed trits, or float weights that are ternarised (absmean) at load
};

/// Which way a stored `weight_scale` goes in a Hugging Face directory (docs/formats/huggingface.md).
enum class WeightScaleForm : std::uint8_t {
  kMultiply,  ///< scale = mean|W|
  kDivide,    ///< scale = 1 / mean|W|
};

/// Which family wrote the files: decides tensor names and the text of config.json on output.
enum class ModelFamily : std::uint8_t {
  kBitNet25,   ///< microsoft 2B-4T: attn_sub_norm, ffn_sub_norm
  kBitNetOld,  ///< 1bitLLM: inner_attn_ln, ffn_layernorm
  kLlama,      ///< plain Llama, no sub-norms
};

/// One model's architecture. A plain value; validate() holds for every object a reader returns.
struct ModelConfig {
  ModelFamily family = ModelFamily::kBitNet25;
  WeightKind weights = WeightKind::kTernary;
  WeightScaleForm scale_form = WeightScaleForm::kMultiply;  ///< of the files it was read from
  std::string architecture;  ///< as the file names it: "BitNetForCausalLM", "llama", "bitnet-b1.58", …
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t n_layers = 0;
  std::int64_t n_heads = 0;
  std::int64_t n_kv_heads = 0;    ///< divides n_heads
  std::int64_t head_dim = 0;      ///< even; n_heads · head_dim need not be hidden_size
  std::int64_t max_position = 0;  ///< context length trained for
  Activation activation = Activation::kRelu2;
  bool sub_norms = true;     ///< attn_sub_norm before o_proj, ffn_sub_norm before down_proj
  bool input_norms = false;  ///< use_rms_norm: an RMSNorm weight of each linear's own
  bool tied_embeddings = true;
  float rms_norm_eps = 1e-5f;
  double rope_theta = 10000.0;  ///< an f32's value in what readers return, as GGUF holds no more
  std::int64_t bos_id = -1;     ///< −1: none
  std::vector<std::int64_t> eos_ids;
  std::string chat_template;  ///< from GGUF metadata; tokenizer_config.json is the tokenizer's business

  std::int64_t q_dim() const noexcept { return n_heads * head_dim; }
  std::int64_t kv_dim() const noexcept { return n_kv_heads * head_dim; }

  /// Throws Error(kInvalidArgument) naming the field, its value and the rule that it breaks.
  void validate() const;

  /// `config.json`. Throws Error(kNotFound | kCorruptFile | kUnsupported) naming file and key.
  static ModelConfig from_json_file(const std::filesystem::path& path);
  /// Keys `{arch}.*`. Throws as above.
  static ModelConfig from_gguf(const GgufMetadata& metadata);

  /// The text of a config.json that transformers' BitNet (or Llama) class reads; packed weights in the
  /// multiply form are declared `autobitlinear`/`offline`, in the divide form `bitlinear`.
  std::string to_json(std::optional<WeightScaleForm> form) const;
  /// The `{arch}.*` keys; architecture `bitnet-b1.58` for kBitNet25, `bitnet` for kBitNetOld, `llama` for
  /// kLlama. An activation that the architecture does not imply goes into `{arch}.hidden_activation`.
  void to_gguf(GgufMetadata& metadata) const;
};

std::string_view to_string(Activation a) noexcept;
std::string_view to_string(WeightKind k) noexcept;

}  // namespace bitnet
