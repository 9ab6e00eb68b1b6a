// PEFT's LoRA directories → LoraAdapter: what adapter_config.json says of the scaling, and the factors of
// adapter_model.safetensors under the names of the model's linears. Facts: docs/formats/lora.md.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/quant/adapter.hpp"
#include "model_io/json_file.hpp"
#include "model_io/stored_tensor.hpp"

namespace bitnet::quant {
namespace model_io {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

[[noreturn]] void corrupt(std::string message) { throw Error(ErrorCode::kCorruptFile, std::move(message)); }
[[noreturn]] void unsupported(std::string message) {
  throw Error(ErrorCode::kUnsupported, std::move(message));
}

std::string shown(const Json& value) { return value.dump(-1, ' ', true).substr(0, 60); }

/// A number of `config`, or `otherwise` where the key is not there. Throws Error(kCorruptFile).
double number(const Json& config, const char* key, std::optional<double> otherwise = {}) {
  const auto at = config.find(key);
  if (at == config.end() && otherwise) return *otherwise;
  if (at == config.end()) corrupt(fmt::format("expected the key '{}'", key));
  if (!at->is_number() || !std::isfinite(at->get<double>()))
    corrupt(fmt::format("key '{}': expected a number, got {}", key, shown(*at)));
  return at->get<double>();
}

bool is_set(const Json& config, const char* key) {
  const auto at = config.find(key);
  return at != config.end() && !at->is_null() && *at != false && !(at->is_structured() && at->empty());
}

/// Far beyond any that was trained; products with it stay floats.
constexpr double kMostScaling = 1e6;

/// What an adapter's config says of all its linears.
struct Scalings {
  double alpha = 0;
  bool rank_stabilised = false;                          // Kalajdzievski 2023, arXiv:2312.03732
  std::vector<std::pair<std::string, double>> patterns;  // a module's name or its end → its alpha

  /// `module`: "model.layers.0.self_attn.q_proj". The first pattern that fits counts, as in PEFT.
  float of(const std::string& module, std::int64_t rank) const {
    const auto fits = [&](const auto& p) { return module == p.first || module.ends_with("." + p.first); };
    const auto own = std::find_if(patterns.begin(), patterns.end(), fits);
    const double a = own == patterns.end() ? alpha : own->second;
    const auto r = static_cast<double>(rank);
    const double scaling = a / (rank_stabilised ? std::sqrt(r) : r);
    if (!(std::abs(scaling) <= kMostScaling))
      corrupt(fmt::format("alpha {} of '{}' makes a scaling beyond {}", a, module, kMostScaling));
    return static_cast<float>(scaling);
  }
};

Scalings read_scalings(const Json& config) {
  Scalings s;
  s.alpha = number(config, "lora_alpha");
  s.rank_stabilised = is_set(config, "use_rslora");
  if (!is_set(config, "alpha_pattern")) return s;
  const Json& patterns = config["alpha_pattern"];
  if (!patterns.is_object()) corrupt("key 'alpha_pattern': expected an object");
  for (const auto& [name, value] : patterns.items()) {
    if (name.find_first_of("*+?()[]{}|\\^$") != std::string::npos)
      unsupported(
          fmt::format("alpha_pattern '{}': regular expressions are not supported", name.substr(0, 60)));
    s.patterns.emplace_back(name, number(patterns, name.c_str()));
  }
  return s;
}

void check_method(const Json& config) {
  if (!config.is_object()) corrupt("expected a JSON object");
  const auto type = config.find("peft_type");
  if (type == config.end() || *type != "LORA")
    unsupported(fmt::format("expected \"peft_type\": \"LORA\", got {}",
                            type == config.end() ? "none" : shown(*type)));
  for (const char* key : {"use_dora", "modules_to_save", "fan_in_fan_out", "lora_bias", "use_qalora"})
    if (is_set(config, key)) unsupported(fmt::format("\"{}\" is not supported", key));
  if (is_set(config, "bias") && config["bias"] != "none")
    unsupported(fmt::format("\"bias\": {}: biases are not supported", shown(config["bias"])));
}

/// The two factors of a linear, as their file has them.
struct Factors {
  const SafeTensorInfo* a = nullptr;
  const SafeTensorInfo* b = nullptr;
};

/// "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" → the linear, and which factor.
struct FactorName {
  std::string module;  // "model.layers.0.self_attn.q_proj"
  TensorId id;
  bool is_a = false;
};

std::optional<FactorName> parse_name(std::string_view name) {
  constexpr std::string_view kPrefix = "base_model.model.";
  if (name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
  for (const bool is_a : {true, false}) {
    for (const std::string_view end :
         is_a ? std::array<std::string_view, 2>{".lora_A.weight", ".lora_A.default.weight"}
              : std::array<std::string_view, 2>{".lora_B.weight", ".lora_B.default.weight"}) {
      if (!name.ends_with(end)) continue;
      std::string module(name.substr(0, name.size() - end.size()));
      const auto id = tensor_from_hf_name(module + ".weight");
      if (!id || !is_linear(id->role)) return std::nullopt;
      return FactorName{std::move(module), *id, is_a};
    }
  }
  return std::nullopt;
}

std::vector<float> read_factor(const SafeTensors& files, const SafeTensorInfo& info, std::int64_t rows,
                               std::int64_t cols) {
  return with_context(fmt::format("tensor '{}'", info.name), [&] {
    const auto encoding = float_encoding(info.dtype);
    if (!encoding) unsupported(fmt::format("expected dtype F32, F16 or BF16, got {}", to_string(info.dtype)));
    if (info.shape != std::vector<std::int64_t>{rows, cols})
      corrupt(fmt::format("expected shape [{}, {}], got [{}]", rows, cols, fmt::join(info.shape, ", ")));
    auto values = decode_floats(*encoding, files.data(info), static_cast<std::size_t>(rows * cols));
    const auto bad = std::find_if(values.begin(), values.end(), [](float v) { return !std::isfinite(v); });
    if (bad != values.end()) corrupt(fmt::format("element {} is {}", bad - values.begin(), *bad));
    return values;
  });
}

class Reader {
 public:
  Reader(const fs::path& directory, const ModelConfig& config) : config_(config) {
    const fs::path path = directory / "adapter_config.json";
    const Json root = with_context(fmt::format("reading '{}'", path.string()), [&] {
      const Json json = read_json(path, 1 << 20);
      check_method(json);
      scalings_ = read_scalings(json);
      return json;
    });
    const auto base = root.find("base_model_name_or_path");
    if (base != root.end() && base->is_string()) adapter_.base_model = base->get<std::string>();
    const fs::path tensors = directory / "adapter_model.safetensors";
    std::error_code ignored;
    if (!fs::exists(tensors, ignored) && fs::exists(directory / "adapter_model.bin", ignored))
      unsupported(
          fmt::format("'{}' holds its tensors as adapter_model.bin (a pickle, which can run code); "
                      "expected adapter_model.safetensors",
                      directory.string()));
    files_ = SafeTensors::open(tensors);
    with_context(fmt::format("adapter '{}'", directory.string()), [&] { read(); });
  }

  LoraAdapter take() { return std::move(adapter_); }

 private:
  void read() {
    for (const SafeTensorInfo& info : files_->tensors()) sort_in(info);
    if (factors_.empty()) corrupt("it has no LoRA tensors");
    for (const auto& [at, found] : factors_) add(found.first, found.second);
  }

  void sort_in(const SafeTensorInfo& info) {
    const auto name = parse_name(info.name);
    if (!name)
      unsupported(
          fmt::format("tensor '{}' is no LoRA factor (lora_A, lora_B) of a linear: q_proj, k_proj, "
                      "v_proj, o_proj, gate_proj, up_proj, down_proj",
                      info.name));
    if (name->id.layer >= config_.n_layers)
      corrupt(fmt::format("tensor '{}': the model has {} layers", info.name, config_.n_layers));
    // By layer, then in the table's order of roles.
    auto& [module, factors] = factors_[{name->id.layer, name->id.role}];
    module = *name;
    const SafeTensorInfo*& slot = name->is_a ? factors.a : factors.b;
    if (slot != nullptr)
      corrupt(fmt::format("tensors '{}' and '{}' are the same one", slot->name, info.name));
    slot = &info;
  }

  void add(const FactorName& name, const Factors& factors) {
    if (factors.a == nullptr || factors.b == nullptr)
      corrupt(fmt::format("'{}' has no {}", name.module, factors.a == nullptr ? "lora_A" : "lora_B"));
    const Shape shape = tensor_shape(name.id, config_);
    LoraLinear linear;
    linear.id = name.id;
    linear.rank = factors.a->shape.empty() ? 0 : factors.a->shape[0];
    if (linear.rank < 1) corrupt(fmt::format("tensor '{}': expected a rank of at least 1", factors.a->name));
    linear.scaling = scalings_.of(name.module, linear.rank);
    linear.a = read_factor(*files_, *factors.a, linear.rank, shape[1]);
    linear.b = read_factor(*files_, *factors.b, shape[0], linear.rank);
    adapter_.linears.push_back(std::move(linear));
  }

  const ModelConfig& config_;
  Scalings scalings_;
  std::shared_ptr<const SafeTensors> files_;
  std::map<std::pair<std::int64_t, TensorRole>, std::pair<FactorName, Factors>> factors_;
  LoraAdapter adapter_;
};

}  // namespace
}  // namespace model_io

LoraAdapter read_adapter(const std::filesystem::path& directory, const ModelConfig& config) {
  std::error_code problem, ignored;
  if (!std::filesystem::is_directory(directory, ignored)) {
    const bool missing = !std::filesystem::exists(directory, problem) && !problem;
    throw Error(missing ? ErrorCode::kNotFound : ErrorCode::kInvalidArgument,
                fmt::format("'{}': expected an adapter's directory (adapter_config.json and "
                            "adapter_model.safetensors)",
                            directory.string()));
  }
  return model_io::Reader(directory, config).take();
}

}  // namespace bitnet::quant
