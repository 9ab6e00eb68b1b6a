// LoraAdapter → PEFT's directory. The config names the linears by their short names where every layer has
// them, and in full where only some have, since PEFT expects factors for all that it names.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/quant/adapter.hpp"
#include "short_name.hpp"

namespace bitnet::quant {
namespace {

namespace fs = std::filesystem;

/// "model.layers.0.self_attn.q_proj"
std::string module_name(TensorId id, const ModelConfig& config) {
  return without_weight(hf_name(id, config.family));
}

void check(const LoraAdapter& adapter, const ModelConfig& config) {
  const auto refuse = [](std::string message) {
    throw Error(ErrorCode::kInvalidArgument, std::move(message));
  };
  if (adapter.linears.empty()) refuse("an adapter without linears");
  std::set<std::pair<std::int64_t, TensorRole>> seen;
  const LoraLinear& first = adapter.linears.front();
  for (const LoraLinear& l : adapter.linears) {
    if (!is_linear(l.id.role) || l.id.layer < 0 || l.id.layer >= config.n_layers ||
        !seen.insert({l.id.layer, l.id.role}).second)
      refuse(fmt::format("an adapter of layer {}: expected each linear of {} layers at most once", l.id.layer,
                         config.n_layers));
    const Shape shape = tensor_shape(l.id, config);
    const std::string name = module_name(l.id, config);
    if (l.rank < 1 || l.a.size() != static_cast<std::size_t>(l.rank * shape[1]) ||
        l.b.size() != static_cast<std::size_t>(shape[0] * l.rank))
      refuse(fmt::format("'{}': factors of {} and {} elements: expected {} · {} and {} · {}", name,
                         l.a.size(), l.b.size(), l.rank, shape[1], shape[0], l.rank));
    if (l.rank != first.rank || l.scaling != first.scaling)
      refuse(fmt::format("'{}': rank {} and scaling {}, but the first linear has {} and {}", name, l.rank,
                         l.scaling, first.rank, first.scaling));
  }
}

/// What PEFT is told to wrap.
std::vector<std::string> target_modules(const LoraAdapter& adapter, const ModelConfig& config) {
  std::map<TensorRole, std::int64_t> layers;
  for (const LoraLinear& l : adapter.linears) ++layers[l.id.role];
  std::set<std::string> names;
  for (const LoraLinear& l : adapter.linears) {
    const std::string module = module_name(l.id, config);
    const bool everywhere = layers[l.id.role] == config.n_layers;
    names.insert(everywhere ? module.substr(module.rfind('.') + 1) : module);
  }
  return {names.begin(), names.end()};
}

std::string config_text(const LoraAdapter& adapter, const ModelConfig& config) {
  const LoraLinear& first = adapter.linears.front();
  nlohmann::ordered_json out;
  out["peft_type"] = "LORA";
  out["task_type"] = "CAUSAL_LM";
  out["base_model_name_or_path"] = adapter.base_model;
  out["r"] = first.rank;
  // As a double: scaling · rank is what the reader divides again.
  out["lora_alpha"] = static_cast<double>(first.scaling) * static_cast<double>(first.rank);
  out["lora_dropout"] = 0.0;
  out["bias"] = "none";
  out["fan_in_fan_out"] = false;
  out["inference_mode"] = true;
  out["target_modules"] = target_modules(adapter, config);
  return out.dump(2, ' ', true, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

void write_tensors(const fs::path& path, const LoraAdapter& adapter, const ModelConfig& config) {
  struct Named {
    SafeTensorInfo info;
    const std::vector<float>* values;
  };
  std::vector<Named> tensors;
  for (const LoraLinear& l : adapter.linears) {
    const Shape shape = tensor_shape(l.id, config);
    const std::string name = "base_model.model." + module_name(l.id, config);
    tensors.push_back({{name + ".lora_A.weight", SafeDType::kF32, {l.rank, shape[1]}, 0, 0, 0}, &l.a});
    tensors.push_back({{name + ".lora_B.weight", SafeDType::kF32, {shape[0], l.rank}, 0, 0, 0}, &l.b});
  }
  std::vector<SafeTensorInfo> infos;
  for (const Named& t : tensors) infos.push_back(t.info);
  SafeTensorsWriter writer(path, std::move(infos), {{"format", "pt"}});
  for (const Named& t : tensors) writer.write(t.info.name, std::as_bytes(std::span<const float>(*t.values)));
  writer.finish();
}

}  // namespace

void write_adapter(const fs::path& directory, const LoraAdapter& adapter, const ModelConfig& config) {
  with_context(fmt::format("writing adapter '{}'", directory.string()), [&] {
    check(adapter, config);
    std::error_code error;
    fs::create_directories(directory, error);
    if (error) throw Error(ErrorCode::kIo, error.message());
    write_tensors(directory / "adapter_model.safetensors", adapter, config);
    write_file(directory / "adapter_config.json", config_text(adapter, config));
  });
}

}  // namespace bitnet::quant
