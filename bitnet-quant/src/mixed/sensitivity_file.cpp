// What was measured of each linear ↔ JSON, so that other budgets need no other measurement.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/sensitivity.hpp"
#include "model_io/json_file.hpp"
#include "short_name.hpp"

namespace bitnet::quant {
namespace {

constexpr int kVersion = 1;

[[noreturn]] void corrupt(std::string message) { throw Error(ErrorCode::kCorruptFile, std::move(message)); }

const nlohmann::json& key(const nlohmann::json& object, const char* name) {
  if (!object.is_object() || !object.contains(name)) corrupt(fmt::format("expected the key '{}'", name));
  return object[name];
}

double number(const nlohmann::json& object, const char* name) {
  const nlohmann::json& v = key(object, name);
  if (!v.is_number() || !std::isfinite(v.get<double>()))
    corrupt(fmt::format("'{}': expected a number", name));
  return v.get<double>();
}

std::uint64_t whole(const nlohmann::json& object, const char* name) {
  constexpr std::uint64_t kMost = std::uint64_t{1} << 52;  // sums of many stay exact in a double
  const nlohmann::json& v = key(object, name);
  if (!v.is_number_unsigned() || v.get<std::uint64_t>() > kMost)
    corrupt(fmt::format("'{}': expected a whole number", name));
  return v.get<std::uint64_t>();
}

std::string word(const nlohmann::json& object, const char* name) {
  const nlohmann::json& v = key(object, name);
  if (!v.is_string()) corrupt(fmt::format("'{}': expected text", name));
  return v.get<std::string>();
}

/// What `parse` makes of a name that to_json() wrote.
template <class Parse>
auto named(const nlohmann::json& object, const char* name, Parse&& parse) {
  const std::string text = word(object, name);
  try {
    return parse(text);
  } catch (const Error& e) {
    corrupt(fmt::format("'{}': {}", name, e.what()));
  }
}

Candidate candidate_of(const nlohmann::json& j) {
  Candidate c;
  c.plan.method = named(j, "method", weight_method_from_string);
  c.plan.scales = named(j, "scales", scale_unit_from_string);
  c.plan.activation_rule = named(j, "activation_rule", activation_rule_from_string);
  const std::uint64_t bits = whole(j, "activation_bits");
  if (bits != 8 && bits != 4) corrupt(fmt::format("'activation_bits': expected 8 or 4, got {}", bits));
  c.plan.activation_bits = static_cast<int>(bits);
  c.bytes = whole(j, "bytes");
  c.output_error = number(j, "output_error");
  c.kl = number(j, "kl");
  c.loss_change = number(j, "loss_change");
  c.cost = number(j, "cost");
  if (c.cost < 0) corrupt(fmt::format("'cost': expected 0 or more, got {}", c.cost));
  return c;
}

LinearSensitivity linear_of(const nlohmann::json& j, const ModelConfig& model) {
  const std::string name = word(j, "name");
  const auto id = tensor_from_gguf_name(name + ".weight");
  if (!id || !is_linear(id->role) || id->layer >= model.n_layers)
    corrupt(fmt::format("'{}' is no linear of this model", name));
  LinearSensitivity l{*id, {}};
  const nlohmann::json& list = key(j, "candidates");
  if (!list.is_array() || list.empty()) corrupt(fmt::format("'{}': expected a list of candidates", name));
  for (const nlohmann::json& c : list)
    l.candidates.push_back(with_context(name, [&] { return candidate_of(c); }));
  return l;
}

}  // namespace

std::string to_json(std::span<const LinearSensitivity> linears, const std::string& identity) {
  nlohmann::ordered_json root;
  root["format_version"] = kVersion;
  root["identity"] = identity;
  root["linears"] = nlohmann::ordered_json::array();
  for (const LinearSensitivity& l : linears) {
    nlohmann::ordered_json j;
    j["name"] = short_name(l.id);
    for (const Candidate& c : l.candidates)
      j["candidates"].push_back({{"method", std::string(to_string(c.plan.method))},
                                 {"scales", std::string(to_string(c.plan.scales))},
                                 {"activation_bits", c.plan.activation_bits},
                                 {"activation_rule", std::string(to_string(c.plan.activation_rule))},
                                 {"bytes", c.bytes},
                                 {"output_error", c.output_error},
                                 {"kl", c.kl},
                                 {"loss_change", c.loss_change},
                                 {"cost", c.cost}});
    root["linears"].push_back(std::move(j));
  }
  return root.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::vector<LinearSensitivity> sensitivity_from_json(const std::string& text, const std::string& identity,
                                                     const ModelConfig& model) {
  const nlohmann::json root = model_io::parse_json(text);
  if (const std::uint64_t version = whole(root, "format_version"); version != kVersion)
    throw Error(ErrorCode::kUnsupported, fmt::format("format_version {}: expected {}", version, kVersion));
  if (word(root, "identity") != identity)
    throw Error(
        ErrorCode::kInvalidArgument,
        "was measured of another model, text, configuration or other candidates: expected the same, or "
        "a file that is not there yet");
  const nlohmann::json& list = key(root, "linears");
  if (!list.is_array()) corrupt("'linears': expected a list");
  std::vector<LinearSensitivity> linears;
  for (const nlohmann::json& j : list) linears.push_back(linear_of(j, model));
  // Whole layers in file order: what is not so was not written by us.
  std::size_t at = 0;
  for (const TensorId id : model_tensors(model)) {
    if (!is_linear(id.role)) continue;
    const bool wanted = std::any_of(linears.begin(), linears.end(),
                                    [&](const LinearSensitivity& l) { return l.id.layer == id.layer; });
    if (!wanted) continue;
    if (at == linears.size() || !(linears[at].id == id))
      corrupt(fmt::format("expected the linear '{}' next", short_name(id)));
    ++at;
  }
  if (at != linears.size()) corrupt(fmt::format("'{}' is there twice", short_name(linears[at].id)));
  return linears;
}

}  // namespace bitnet::quant
