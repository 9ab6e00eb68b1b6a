// ModelConfig ↔ the `{arch}.*` keys of a GGUF file: docs/formats/gguf.md.
#include <fmt/format.h>

#include <optional>

#include "bitnet/core/error.hpp"
#include "bitnet/core/model/model_config.hpp"
#include "model/float_linears.hpp"

namespace bitnet {
namespace {

[[noreturn]] void corrupt(std::string message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kCorruptFile, std::move(message), where);
}
[[noreturn]] void unsupported(std::string message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kUnsupported, std::move(message), where);
}

struct Architecture {
  const char* name;
  ModelFamily family;
  Activation activation;
};
// The first row of a family is the one written.
constexpr Architecture kArchitectures[] = {
    {"bitnet-b1.58", ModelFamily::kBitNet25, Activation::kRelu2},
    {"bitnet-25", ModelFamily::kBitNet25, Activation::kRelu2},
    {"bitnet", ModelFamily::kBitNetOld, Activation::kSilu},
    {"llama", ModelFamily::kLlama, Activation::kSilu},
};

const Architecture& architecture_of(const GgufMetadata& metadata) {
  const auto name = metadata.string("general.architecture");
  if (!name) corrupt("expected the key 'general.architecture'");
  for (const Architecture& a : kArchitectures)
    if (*name == a.name) return a;
  unsupported(fmt::format(
      "key 'general.architecture': expected bitnet, bitnet-25, bitnet-b1.58 or llama, got '{}'", *name));
}

/// Look-ups below `{arch}.`.
class Keys {
 public:
  Keys(const GgufMetadata& metadata, std::string prefix) : metadata_(metadata), prefix_(std::move(prefix)) {}

  std::optional<std::int64_t> integer(const char* name) const {
    const GgufValue* value = metadata_.find(prefix_ + name);
    if (value && std::holds_alternative<GgufArray>(value->data))
      unsupported(fmt::format("key '{}{}': a value per layer is not supported", prefix_, name));
    return metadata_.integer(prefix_ + name);
  }
  std::int64_t required(const char* name) const {
    const auto value = integer(name);
    if (!value) corrupt(fmt::format("expected the key '{}{}'", prefix_, name));
    return *value;
  }
  std::optional<double> number(const char* name) const { return metadata_.number(prefix_ + name); }
  std::optional<std::string> string(const char* name) const { return metadata_.string(prefix_ + name); }
  const std::string& prefix() const { return prefix_; }

 private:
  const GgufMetadata& metadata_;
  std::string prefix_;
};

void read_heads(const Keys& keys, ModelConfig& config) {
  config.n_heads = keys.required("attention.head_count");
  config.n_kv_heads = keys.integer("attention.head_count_kv").value_or(config.n_heads);
  const auto key_length = keys.integer("attention.key_length");
  if (!key_length && (config.n_heads <= 0 || config.hidden_size % config.n_heads != 0))
    corrupt(fmt::format("key '{}attention.head_count': expected a divisor of embedding_length = {}, got {}",
                        keys.prefix(), config.hidden_size, config.n_heads));
  config.head_dim = key_length ? *key_length : config.hidden_size / config.n_heads;
  for (const char* name : {"attention.value_length", "rope.dimension_count"})
    if (const auto n = keys.integer(name); n && *n != config.head_dim)
      unsupported(fmt::format("key '{}{}': expected the head's {}, got {}", keys.prefix(), name,
                              config.head_dim, *n));
}

/// llama.cpp's converter says "linear" with the factor 1 for BitNet, which scales nothing; there 0 means 1,
/// too.
void check_rope_scaling(const Keys& keys) {
  const auto type = keys.string("rope.scaling.type");
  if (type && *type != "none" && *type != "linear")
    unsupported(
        fmt::format("key '{}rope.scaling.type': expected none, or linear with a factor of 1, got '{}'",
                    keys.prefix(), *type));
  if (type && *type == "none") return;
  for (const char* name : {"rope.scaling.factor", "rope.scale_linear"})
    if (const double factor = keys.number(name).value_or(1.0); factor != 0.0 && factor != 1.0)
      unsupported(fmt::format("key '{}{}': expected no scaling (a factor of 1), got {}", keys.prefix(), name,
                              factor));
}

void read_activation(const Keys& keys, ModelConfig& config) {
  const auto name = keys.string("hidden_activation");
  if (!name) return;
  if (*name == to_string(Activation::kRelu2))
    config.activation = Activation::kRelu2;
  else if (*name == to_string(Activation::kSilu))
    config.activation = Activation::kSilu;
  else
    unsupported(
        fmt::format("key '{}hidden_activation': expected relu2 or silu, got '{}'", keys.prefix(), *name));
}

std::int64_t read_vocab_size(const GgufMetadata& metadata, const Keys& keys) {
  if (const auto n = keys.integer("vocab_size")) return *n;
  const GgufValue* tokens = metadata.find("tokenizer.ggml.tokens");
  const auto* array = tokens ? std::get_if<GgufArray>(&tokens->data) : nullptr;
  const auto* list = array ? std::get_if<std::vector<std::string>>(array) : nullptr;
  if (!list)
    corrupt(fmt::format("expected the key '{}vocab_size' or 'tokenizer.ggml.tokens'", keys.prefix()));
  return static_cast<std::int64_t>(list->size());
}

void read_tokens(const GgufMetadata& metadata, ModelConfig& config) {
  // Files without such a token write -1, as 32 bits without a sign; other ids outside are errors
  // (validate()).
  const auto token = [&](const char* key) -> std::optional<std::int64_t> {
    const auto id = metadata.integer(key);
    return id == -1 || id == 0xffffffffll ? std::nullopt : id;
  };
  config.bos_id = token("tokenizer.ggml.bos_token_id").value_or(-1);
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"}) {
    const auto id = token(key);
    if (id && (config.eos_ids.empty() || config.eos_ids[0] != *id)) config.eos_ids.push_back(*id);
  }
  // All of them, where there are more than those two keys hold; Ollama writes the same key.
  if (auto ids = metadata.integers("tokenizer.ggml.eos_token_ids")) config.eos_ids = std::move(*ids);
  config.chat_template = metadata.string("tokenizer.chat_template").value_or("");
}

/// general.file_type of files whose linears are ternary: TQ1_0, TQ2_0, I2_S.
bool ternary_file_type(const GgufMetadata& metadata) {
  const auto type = metadata.integer("general.file_type").value_or(0);
  return type == 36 || type == 37 || type == 40;
}

}  // namespace

ModelConfig ModelConfig::from_gguf(const GgufMetadata& metadata) {
  const Architecture& arch = architecture_of(metadata);
  const Keys keys(metadata, std::string(arch.name) + ".");
  ModelConfig config;
  config.family = arch.family;
  config.architecture = arch.name;
  config.sub_norms = arch.family != ModelFamily::kLlama;
  config.weights =
      config.sub_norms || ternary_file_type(metadata) ? WeightKind::kTernary : WeightKind::kDense;
  read_float_linears(keys.string(kFloatLinears), keys.prefix() + kFloatLinears, config);
  if (config.weights == WeightKind::kDense && ternary_file_type(metadata))
    corrupt(fmt::format("key '{}{}': the file's type is a ternary one", keys.prefix(), kFloatLinears));
  config.activation = arch.activation;
  read_activation(keys, config);
  config.vocab_size = read_vocab_size(metadata, keys);
  config.hidden_size = keys.required("embedding_length");
  config.intermediate_size = keys.required("feed_forward_length");
  config.n_layers = keys.required("block_count");
  read_heads(keys, config);
  config.max_position = keys.required("context_length");
  const auto eps = keys.number("attention.layer_norm_rms_epsilon");
  if (!eps) corrupt(fmt::format("expected the key '{}attention.layer_norm_rms_epsilon'", keys.prefix()));
  config.rms_norm_eps = static_cast<float>(*eps);
  config.rope_theta = static_cast<float>(keys.number("rope.freq_base").value_or(10000.0));
  check_rope_scaling(keys);
  if (keys.integer("expert_count").value_or(0) != 0)
    unsupported(fmt::format("key '{}expert_count': mixtures of experts are not supported", keys.prefix()));
  read_tokens(metadata, config);
  try {
    config.validate();
  } catch (const Error& e) {
    corrupt(fmt::format("keys '{}*': {}", keys.prefix(), e.what()));
  }
  return config;
}

void ModelConfig::to_gguf(GgufMetadata& metadata) const {
  validate();
  if (input_norms) unsupported("GGUF has no names for the linears' own input norms (use_rms_norm)");
  if (sub_norms != (family != ModelFamily::kLlama))
    unsupported(fmt::format("sub_norms = {}: GGUF cannot say so for this family", sub_norms));
  const Architecture* arch = kArchitectures;
  while (arch->family != family) ++arch;
  const std::string prefix = std::string(arch->name) + ".";
  const auto set = [&](const char* name, std::int64_t v) {
    metadata.set_u32(prefix + name, static_cast<std::uint32_t>(v));
  };
  metadata.set_string("general.architecture", arch->name);
  set("vocab_size", vocab_size);
  set("context_length", max_position);
  set("embedding_length", hidden_size);
  set("block_count", n_layers);
  set("feed_forward_length", intermediate_size);
  set("rope.dimension_count", head_dim);
  metadata.set_f32(prefix + "rope.freq_base", static_cast<float>(rope_theta));
  set("attention.head_count", n_heads);
  set("attention.head_count_kv", n_kv_heads);
  set("attention.key_length", head_dim);
  set("attention.value_length", head_dim);
  metadata.set_f32(prefix + "attention.layer_norm_rms_epsilon", rms_norm_eps);
  if (says_full_precision(*this)) metadata.set_string(prefix + kFloatLinears, kFullPrecision);
  if (activation != arch->activation)
    metadata.set_string(prefix + "hidden_activation", std::string(to_string(activation)));
  if (bos_id >= 0) metadata.set_u32("tokenizer.ggml.bos_token_id", static_cast<std::uint32_t>(bos_id));
  if (!eos_ids.empty())
    metadata.set_u32("tokenizer.ggml.eos_token_id", static_cast<std::uint32_t>(eos_ids[0]));
  if (eos_ids.size() > 1)
    metadata.set_u32("tokenizer.ggml.eot_token_id", static_cast<std::uint32_t>(eos_ids[1]));
  if (eos_ids.size() > 2)
    metadata.set_i32s("tokenizer.ggml.eos_token_ids",
                      std::vector<std::int32_t>(eos_ids.begin(), eos_ids.end()));
  if (!chat_template.empty()) metadata.set_string("tokenizer.chat_template", chat_template);
}

}  // namespace bitnet
