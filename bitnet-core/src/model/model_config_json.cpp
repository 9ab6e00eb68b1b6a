// ModelConfig ↔ config.json. Which keys mean what, and what each public family writes:
// docs/formats/huggingface.md.
#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/model/model_config.hpp"
#include "io/json.hpp"
#include "model/float_linears.hpp"

namespace bitnet {
namespace {

using nlohmann::json;

[[noreturn]] void corrupt(std::string message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kCorruptFile, std::move(message), where);
}
[[noreturn]] void unsupported(std::string message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kUnsupported, std::move(message), where);
}

std::string shown(const json& value) { return value.dump().substr(0, 60); }

/// A JSON object whose members are typed on reading; null counts as absent, as it does in transformers.
class Object {
 public:
  explicit Object(const json& value, const char* what) : value_(value) {
    if (!value.is_object()) corrupt(fmt::format("{}: expected a JSON object, got {}", what, shown(value)));
  }
  const json* find(const char* key) const {
    const auto at = value_.find(key);
    return at == value_.end() || at->is_null() ? nullptr : &*at;
  }
  std::optional<std::int64_t> integer(const char* key) const {
    const json* v = find(key);
    if (!v) return {};
    // Above 2^53 nothing here has a meaning; the bound also keeps the conversion from unsigned exact.
    if (!v->is_number_integer() || std::abs(v->get<double>()) > 9e15)
      corrupt(fmt::format("key '{}': expected an integer, got {}", key, shown(*v)));
    return v->get<std::int64_t>();
  }
  std::int64_t required(const char* key) const {
    const auto v = integer(key);
    if (!v) corrupt(fmt::format("expected the key '{}'", key));
    return *v;
  }
  std::optional<double> number(const char* key) const {
    const json* v = find(key);
    if (!v) return {};
    if (!v->is_number()) corrupt(fmt::format("key '{}': expected a number, got {}", key, shown(*v)));
    return v->get<double>();
  }
  bool boolean(const char* key, bool absent) const {
    const json* v = find(key);
    if (!v) return absent;
    if (!v->is_boolean()) corrupt(fmt::format("key '{}': expected true or false, got {}", key, shown(*v)));
    return v->get<bool>();
  }
  std::string string(const char* key, std::string absent = {}) const {
    const json* v = find(key);
    if (!v) return absent;
    if (!v->is_string()) corrupt(fmt::format("key '{}': expected a string, got {}", key, shown(*v)));
    return v->get<std::string>();
  }

 private:
  const json& value_;
};

std::string first_architecture(const Object& root) {
  const json* list = root.find("architectures");
  if (!list) return {};
  if (!list->is_array() || list->empty() || !(*list)[0].is_string())
    corrupt(fmt::format("key 'architectures': expected an array of strings, got {}", shown(*list)));
  return (*list)[0].get<std::string>();
}

void read_family(const Object& root, ModelConfig& config) {
  const std::string type = root.string("model_type");
  config.architecture = first_architecture(root);
  const bool bitnet_class =
      config.architecture.starts_with("BitNet") || config.architecture.starts_with("Bitnet");
  const auto bits = root.integer("weight_bits"), input_bits = root.integer("input_bits");
  if (bits && *bits != 1) unsupported(fmt::format("key 'weight_bits': expected 1, got {}", *bits));
  if (input_bits && *input_bits != 8)
    unsupported(fmt::format("key 'input_bits': expected 8, got {}", *input_bits));
  if (type == "bitnet") {
    config.family = ModelFamily::kBitNet25;
  } else if (type == "llama") {
    config.family = bitnet_class || bits ? ModelFamily::kBitNetOld : ModelFamily::kLlama;
  } else {
    unsupported(fmt::format("key 'model_type': expected 'bitnet' or 'llama', got '{}'", type));
  }
  if (config.architecture.empty())
    config.architecture = type == "bitnet" ? "BitNetForCausalLM" : "LlamaForCausalLM";
  config.sub_norms = config.family != ModelFamily::kLlama;
  config.weights = config.sub_norms ? WeightKind::kTernary : WeightKind::kDense;
}

/// Modules that stay float beside the linears: only the head may, since a mixture of both kinds has no place
/// here.
void check_not_converted(const Object& quantization) {
  const json* list = quantization.find("modules_to_not_convert");
  if (!list) return;
  if (!list->is_array())
    corrupt(fmt::format("key 'modules_to_not_convert': expected an array, got {}", shown(*list)));
  for (const json& name : *list)
    if (!name.is_string() || (name != "lm_head" && name != "embed_tokens" && name != "model.embed_tokens"))
      unsupported(
          fmt::format("key 'modules_to_not_convert': only 'lm_head' and the embedding may stay float, got {}",
                      shown(name)));
}

void read_quantization(const Object& root, ModelConfig& config) {
  config.scale_form = WeightScaleForm::kMultiply;
  const json* entry = root.find("quantization_config");
  if (root.find(kFloatLinears)) {
    if (entry)
      corrupt(fmt::format("keys '{}' and 'quantization_config' contradict each other: expected one of them",
                          kFloatLinears));
    read_float_linears(root.string(kFloatLinears), kFloatLinears, config);
  }
  if (!entry) return;
  const Object q(*entry, "quantization_config");
  const std::string method = q.string("quant_method");
  if (method == "bitnet_extended") {  // docs/formats/extended.md: the tensors say which linear is what
    const double version = q.number("format_version").value_or(0);
    if (version != 1 && version != 2)
      unsupported("key 'quantization_config.format_version': expected 1 or 2 for the method bitnet_extended");
    config.weights = WeightKind::kDense;
    return;
  }
  if (method != "bitnet")
    unsupported(fmt::format(
        "key 'quantization_config.quant_method': expected 'bitnet' or 'bitnet_extended', got '{}'", method));
  config.weights = WeightKind::kTernary;
  const std::string linear = q.string("linear_class", "bitlinear"),
                    mode = q.string("quantization_mode", "offline");
  if (linear != "bitlinear" && linear != "autobitlinear")
    unsupported(fmt::format(
        "key 'quantization_config.linear_class': expected bitlinear or autobitlinear, got '{}'", linear));
  if (mode != "offline" && mode != "online")
    unsupported(fmt::format(
        "key 'quantization_config.quantization_mode': expected offline or online, got '{}'", mode));
  config.scale_form = linear == "autobitlinear" ? WeightScaleForm::kMultiply : WeightScaleForm::kDivide;
  config.input_norms = q.boolean("use_rms_norm", false);
  check_not_converted(q);
}

/// The base of the rotary embedding; every kind of scaling is refused. transformers 5 keeps both in
/// rope_parameters. Rounded to the f32 that GGUF holds: a model gives the same from either.
double read_rope(const Object& root, double absent) {
  double theta = root.number("rope_theta").value_or(absent);
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const json* entry = root.find(key);
    if (!entry) continue;
    const Object rope(*entry, key);
    const std::string type = rope.string("rope_type", rope.string("type", "default"));
    if (type != "default" && type != "none")
      unsupported(fmt::format("key '{}': expected no scaling of the rotary embedding, got '{}'", key, type));
    theta = rope.number("rope_theta").value_or(theta);
    if (rope.number("partial_rotary_factor").value_or(1.0) != 1.0)
      unsupported(fmt::format("key '{}.partial_rotary_factor': expected 1", key));
  }
  if (root.number("partial_rotary_factor").value_or(1.0) != 1.0)
    unsupported("key 'partial_rotary_factor': expected 1");
  return static_cast<float>(theta);
}

Activation read_activation(const Object& root, bool bitnet25) {
  const std::string name = root.string("hidden_act", bitnet25 ? "relu2" : "silu");
  if (name == "relu2") return Activation::kRelu2;
  if (name == "silu" || name == "swish") return Activation::kSilu;
  unsupported(fmt::format("key 'hidden_act': expected relu2 or silu, got '{}'", name));
}

void read_tokens(const Object& root, ModelConfig& config) {
  config.bos_id = root.integer("bos_token_id").value_or(-1);
  const json* eos = root.find("eos_token_id");
  if (!eos) return;
  if (!eos->is_array()) {
    config.eos_ids.push_back(root.required("eos_token_id"));
    return;
  }
  for (const json& id : *eos) {
    if (!id.is_number_integer())
      corrupt(fmt::format("key 'eos_token_id': expected integers, got {}", shown(id)));
    config.eos_ids.push_back(id.get<std::int64_t>());
  }
}

ModelConfig from_json(const json& text) {
  const Object root(text, "config.json");
  ModelConfig config;
  read_family(root, config);
  read_quantization(root, config);
  const bool bitnet25 = config.family == ModelFamily::kBitNet25;
  config.vocab_size = root.required("vocab_size");
  config.hidden_size = root.required("hidden_size");
  config.intermediate_size = root.required("intermediate_size");
  config.n_layers = root.required("num_hidden_layers");
  config.n_heads = root.required("num_attention_heads");
  config.n_kv_heads = root.integer("num_key_value_heads").value_or(config.n_heads);
  if (const auto head_dim = root.integer("head_dim")) {
    config.head_dim = *head_dim;
  } else {
    if (config.n_heads <= 0 || config.hidden_size % config.n_heads != 0)
      corrupt(fmt::format("key 'num_attention_heads': expected a divisor of hidden_size = {}, got {}",
                          config.hidden_size, config.n_heads));
    config.head_dim = config.hidden_size / config.n_heads;
  }
  config.max_position = root.integer("max_position_embeddings").value_or(2048);
  config.activation = read_activation(root, bitnet25);
  config.tied_embeddings = root.boolean("tie_word_embeddings", false);
  config.rms_norm_eps = static_cast<float>(root.number("rms_norm_eps").value_or(bitnet25 ? 1e-5 : 1e-6));
  config.rope_theta = read_rope(root, bitnet25 ? 500000.0 : 10000.0);
  for (const char* key : {"attention_bias", "mlp_bias"})
    if (root.boolean(key, false)) unsupported(fmt::format("key '{}': biases are not supported", key));
  read_tokens(root, config);
  return config;
}

}  // namespace

ModelConfig ModelConfig::from_json_file(const std::filesystem::path& path) {
  return with_context(fmt::format("reading '{}'", path.string()), [&] {
    ModelConfig config = from_json(io::parse_json(read_file(path, 1 << 24)));
    try {
      config.validate();
    } catch (const Error& e) {
      corrupt(e.what());
    }
    return config;
  });
}

std::string ModelConfig::to_json(std::optional<WeightScaleForm> form) const {
  validate();
  if (sub_norms != (family != ModelFamily::kLlama))
    unsupported(fmt::format("sub_norms = {}: config.json cannot say so for this family", sub_norms));
  nlohmann::ordered_json out;
  const bool bitnet25 = family == ModelFamily::kBitNet25, old = family == ModelFamily::kBitNetOld;
  out["architectures"] = {bitnet25 ? "BitNetForCausalLM" : old ? "BitnetForCausalLM" : "LlamaForCausalLM"};
  out["model_type"] = bitnet25 ? "bitnet" : "llama";
  if (old) {
    out["weight_bits"] = 1;
    out["input_bits"] = 8;
  }
  out["vocab_size"] = vocab_size;
  out["hidden_size"] = hidden_size;
  out["intermediate_size"] = intermediate_size;
  out["num_hidden_layers"] = n_layers;
  out["num_attention_heads"] = n_heads;
  out["num_key_value_heads"] = n_kv_heads;
  out["head_dim"] = head_dim;
  out["max_position_embeddings"] = max_position;
  out["hidden_act"] = to_string(activation);
  out["tie_word_embeddings"] = tied_embeddings;
  // The shortest decimals of the f32, so that 1e-5f is not written as 9.999999747378752e-06.
  out["rms_norm_eps"] = std::stod(fmt::format("{}", rms_norm_eps));
  out["rope_theta"] = std::stod(fmt::format("{}", static_cast<float>(rope_theta)));
  out["attention_bias"] = false;
  if (bos_id >= 0) out["bos_token_id"] = bos_id;
  if (eos_ids.size() == 1) out["eos_token_id"] = eos_ids[0];
  if (eos_ids.size() > 1) out["eos_token_id"] = eos_ids;
  if (says_full_precision(*this)) out[kFloatLinears] = kFullPrecision;
  if (weights == WeightKind::kTernary) {
    const bool divide = form == WeightScaleForm::kDivide;
    auto& q = out["quantization_config"];
    q["quant_method"] = "bitnet";
    q["linear_class"] = divide ? "bitlinear" : "autobitlinear";
    q["quantization_mode"] = form ? "offline" : "online";
    if (input_norms) q["use_rms_norm"] = true;
  }
  return out.dump(2) + "\n";
}

}  // namespace bitnet
