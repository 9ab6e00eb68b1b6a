// Names of a configuration's values, its rules, and what it means for a model's linears. Reading and writing
// it is quant_config_yaml.cpp.
#include "bitnet/quant/quant_config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/text/suggest.hpp"
#include "bitnet/quant/linear_types.hpp"
#include "short_name.hpp"

namespace bitnet::quant {
namespace {

template <class T, std::size_t N>
using Names = std::array<std::pair<T, const char*>, N>;

constexpr Names<QuantScheme, 3> kSchemes{{{QuantScheme::kBitNet158, "bitnet158"},
                                          {QuantScheme::kAdaptive, "adaptive"},
                                          {QuantScheme::kMixedPrecision, "mixed_precision"}}};
constexpr Names<WeightMethod, 7> kMethods{{{WeightMethod::kAbsmean, "absmean"},
                                           {WeightMethod::kLeastSquares, "ls"},
                                           {WeightMethod::kLeastSquaresRefit, "ls+refit"},
                                           {WeightMethod::kGptq, "gptq"},
                                           {WeightMethod::kTwoPlane, "two-plane"},
                                           {WeightMethod::kInt8, "int8"},
                                           {WeightMethod::kKeep, "keep"}}};
constexpr Names<ScaleUnit, 6> kUnits{{{ScaleUnit::kTensor, "tensor"},
                                      {ScaleUnit::kRow, "row"},
                                      {ScaleUnit::kGroup32, "group32"},
                                      {ScaleUnit::kGroup64, "group64"},
                                      {ScaleUnit::kGroup128, "group128"},
                                      {ScaleUnit::kGroup256, "group256"}}};
constexpr Names<ActivationRule, 2> kRules{
    {{ActivationRule::kAbsmax, "absmax"}, {ActivationRule::kAbsmean, "absmean"}}};

template <class T, std::size_t N>
std::string_view name_of(const Names<T, N>& names, T value) noexcept {
  for (const auto& [v, name] : names)
    if (v == value) return name;
  return "unknown";
}

template <class T, std::size_t N>
T value_of(const Names<T, N>& names, std::string_view word, const char* what) {
  std::vector<std::string> all;
  for (const auto& [value, name] : names) {
    if (word == name) return value;
    all.emplace_back(name);
  }
  throw Error(ErrorCode::kInvalidArgument, fmt::format("unknown {} '{}'{} (there are {})", what, word,
                                                       suggestion(word, all), fmt::join(all, ", ")));
}

[[noreturn]] void refuse(std::string message) {
  throw Error(ErrorCode::kInvalidArgument, std::move(message));
}

/// "file:line: ", what begins messages of what stands there; without a line "file: ".
std::string place(const QuantConfig& c, int line = 0) {
  if (c.source.empty()) return "";
  return c.source + (line > 0 ? fmt::format(":{}", line) : "") + ": ";
}

/// Rules of one plan that need no model. `where` begins the message.
void check_plan(const std::string& where, const LinearPlan& p, QuantScheme scheme) {
  if (p.activation_bits != 8 && p.activation_bits != 4)
    refuse(fmt::format("{}: activations of {} bits: expected 8 or 4", where, p.activation_bits));
  if (p.activation_rule == ActivationRule::kAbsmean && p.activation_bits != 4)
    refuse(where + ": the rule absmean is for activations of 4 bits; of 8 bits there is absmax");
  if (p.method == WeightMethod::kAbsmean && p.scales != ScaleUnit::kTensor)
    refuse(fmt::format("{}: absmean has one scale a tensor, got {}; ls and gptq can have more", where,
                       to_string(p.scales)));
  if (scheme == QuantScheme::kMixedPrecision) return;
  if (!is_ternary(p.method) || p.method == WeightMethod::kTwoPlane)
    refuse(
        fmt::format("{}: the scheme {} has one ternary plane for each linear, got {}; mixed_precision allows "
                    "more",
                    where, to_string(scheme), to_string(p.method)));
  if (scheme == QuantScheme::kBitNet158 && p.activation_bits != 8)
    refuse(fmt::format(
        "{}: the scheme bitnet158 has activations of 8 bits, got {}; adaptive and mixed_precision "
        "allow 4",
        where, p.activation_bits));
}

LinearPlan with(LinearPlan plan, const LayerOverride& o) {
  plan.method = o.method.value_or(plan.method);
  // absmean comes with its scale, so that "method: absmean" alone can stand for a layer.
  if (o.method == WeightMethod::kAbsmean) plan.scales = ScaleUnit::kTensor;
  plan.scales = o.scales.value_or(plan.scales);
  plan.activation_bits = o.activation_bits.value_or(plan.activation_bits);
  plan.activation_rule = o.activation_rule.value_or(plan.activation_rule);
  return plan;
}

/// Glob with * and ?, by going back to the last star: linear times the stars at worst.
bool glob(std::string_view pattern, std::string_view text) {
  std::size_t p = 0, t = 0, star = std::string_view::npos, mark = 0;
  while (t < text.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || (pattern[p] == text[t] && pattern[p] != '*'))) {
      ++p;
      ++t;
    } else if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      mark = t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++mark;
    } else {
      return false;
    }
  }
  return std::all_of(pattern.begin() + static_cast<std::ptrdiff_t>(p), pattern.end(),
                     [](char c) { return c == '*'; });
}

/// `name` with each run of digits between dots as a star: "blk.*.ffn_up".
std::string every_layer(const std::string& name) {
  std::string out;
  for (std::size_t i = 0; i < name.size(); ++i) {
    const bool digit =
        name[i] >= '0' && name[i] <= '9' && (i == 0 || name[i - 1] == '.' || out.ends_with('*'));
    if (!digit) {
      out += name[i];
    } else if (!out.ends_with('*')) {
      out += '*';
    }
  }
  return out;
}

/// Throws unless `pattern` names a tensor of the model: a linear, or any where `any`. `where` begins the
/// message.
void require_match(const std::string& where, const std::string& pattern, const ModelConfig& model, bool any) {
  std::vector<std::string> names;
  const auto add = [&](std::string name) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(std::move(name));
  };
  for (const TensorId id : model_tensors(model)) {
    if (!any && !is_linear(id.role)) continue;
    if (names_tensor(pattern, id, model.family)) return;
    for (const std::string& name : {short_name(id), without_weight(hf_name(id, model.family))})
      add(pattern.find('*') == std::string::npos ? name : every_layer(name));
  }
  const std::vector<std::string> near = near_misses(pattern, names, 3);
  const std::string hint =
      near.empty()
          ? fmt::format(
                "they are called e.g. {}",
                fmt::join(names.begin(),
                          names.begin() + static_cast<std::ptrdiff_t>(std::min<std::size_t>(4, names.size())),
                          ", "))
          : fmt::format("near ones are {}", fmt::join(near, ", "));
  refuse(fmt::format("{}the pattern '{}' names no {} of this model of {} layers; {}", where, pattern,
                     any ? "tensor" : "linear", model.n_layers, hint));
}

/// How a plan's result is stored, for messages; empty where `type` holds it.
std::string why_not(const PlannedLinear& l, std::int64_t in, LinearType type) {
  const LinearPlan& p = l.plan;
  if (p.method == WeightMethod::kKeep)
    return type == LinearType::kDense || type == LinearType::kExtended ? "" : "a linear in full precision";
  if (type == LinearType::kDense) return "trits or integers, which are not written as floats";
  if (type == LinearType::kExtended) return "";
  if (p.method == WeightMethod::kInt8) return "an int8 linear";
  if (p.method == WeightMethod::kTwoPlane) return "two ternary planes";
  if (l.adaptive) return "activations of 8 or 4 bits, as calibration says";
  if (p.activation_bits != 8) return fmt::format("activations of {} bits", p.activation_bits);
  const bool blocks = type == LinearType::kTQ1_0 || type == LinearType::kTQ2_0;
  const bool in_blocks = p.scales == ScaleUnit::kRow || p.scales == ScaleUnit::kGroup256;
  if (p.scales != ScaleUnit::kTensor && !(blocks && in_blocks))
    return fmt::format("scales by {}", to_string(p.scales));
  const std::int64_t multiple = blocks ? 256 : type == LinearType::kI2_S ? 128 : 1;
  if (in % multiple != 0) return fmt::format("{} columns, no multiple of {}", in, multiple);
  return "";
}

bool holds_all(const std::vector<PlannedLinear>& plans, const ModelConfig& model, LinearType type) {
  return std::all_of(plans.begin(), plans.end(), [&](const PlannedLinear& l) {
    return why_not(l, tensor_shape(l.id, model)[1], type).empty();
  });
}

}  // namespace

std::string_view to_string(QuantScheme scheme) noexcept { return name_of(kSchemes, scheme); }
std::string_view to_string(WeightMethod method) noexcept { return name_of(kMethods, method); }
std::string_view to_string(ScaleUnit unit) noexcept { return name_of(kUnits, unit); }
std::string_view to_string(ActivationRule rule) noexcept { return name_of(kRules, rule); }

QuantScheme quant_scheme_from_string(std::string_view name) { return value_of(kSchemes, name, "scheme"); }
WeightMethod weight_method_from_string(std::string_view name) { return value_of(kMethods, name, "method"); }
ScaleUnit scale_unit_from_string(std::string_view name) {
  return value_of(kUnits, name, "scale granularity");
}
ActivationRule activation_rule_from_string(std::string_view name) {
  return value_of(kRules, name, "activation rule");
}

ActivationForm activation_form(const LinearPlan& plan) noexcept {
  if (plan.activation_bits != 4) return ActivationForm::kInt8;
  return plan.activation_rule == ActivationRule::kAbsmean ? ActivationForm::kInt4Absmean
                                                          : ActivationForm::kInt4Absmax;
}

ScaleGroups scale_groups(ScaleUnit unit) noexcept {
  switch (unit) {
    case ScaleUnit::kTensor:
      return ScaleGroups::tensor();
    case ScaleUnit::kRow:
      return ScaleGroups::row();
    case ScaleUnit::kGroup32:
      return ScaleGroups::columns(32);
    case ScaleUnit::kGroup64:
      return ScaleGroups::columns(64);
    case ScaleUnit::kGroup128:
      return ScaleGroups::columns(128);
    default:
      return ScaleGroups::columns(256);
  }
}

bool is_ternary(WeightMethod method) noexcept {
  return method != WeightMethod::kInt8 && method != WeightMethod::kKeep;
}

bool needs_calibration(WeightMethod method) noexcept {
  return method == WeightMethod::kLeastSquaresRefit || method == WeightMethod::kGptq;
}

void QuantConfig::validate() const {
  const std::string file = place(*this);
  const auto refuse = [&](const std::string& message) { bitnet::quant::refuse(file + message); };
  check_plan(file + "weights", linears, scheme);
  if (adaptive_activations && scheme == QuantScheme::kBitNet158)
    refuse("activations.bits: the scheme bitnet158 has 8 bits; adaptive and mixed_precision allow auto");
  if (adapts() && linears.activation_bits != 8)
    refuse(fmt::format(
        "activations.bits: calibration says which inputs get 4 bits (scheme adaptive, bits auto), got {}; "
        "'activation_bits' of an entry of 'layers' says it for some",
        linears.activation_bits));
  for (const LayerOverride& o : layers) {
    if (o.match.empty()) bitnet::quant::refuse(place(*this, o.line) + "layers: an entry without a pattern");
    LinearPlan plan = with(linears, o);  // which scales and rule it goes with, other entries may say
    plan.scales = ScaleUnit::kTensor;
    plan.activation_rule = ActivationRule::kAbsmax;
    check_plan(place(*this, o.line) + fmt::format("layers '{}'", o.match.front()), plan, scheme);
  }
  if (scheme != QuantScheme::kMixedPrecision && !keep.empty())
    bitnet::quant::refuse(
        fmt::format("{}keep: the scheme {} has every linear ternary; mixed_precision allows others",
                    place(*this, keep_line), to_string(scheme)));
  const auto finite = [](double v) { return std::isfinite(v); };
  if (!finite(gptq.damping) || gptq.damping < 0 || gptq.damping > 1)
    refuse(fmt::format("gptq.damping: expected 0 … 1, got {}", gptq.damping));
  if (gptq.multipliers.empty() || gptq.multipliers.size() > 64 ||
      !std::all_of(gptq.multipliers.begin(), gptq.multipliers.end(),
                   [&](double m) { return finite(m) && m > 0; }))
    refuse("gptq.multipliers: expected 1 … 64 numbers, all above 0");
  if (two_plane_rounds < 0 || two_plane_rounds > 10000)
    refuse(fmt::format("two_plane.rounds: expected 0 … 10000, got {}", two_plane_rounds));
  if (!finite(activation_tolerance) || activation_tolerance < 0 || activation_tolerance > 1)
    refuse(fmt::format("activations.tolerance: expected 0 … 1, got {}", activation_tolerance));
}

QuantConfig as_mixed(QuantConfig config) {
  config.adaptive_activations = config.adapts();
  config.scheme = QuantScheme::kMixedPrecision;
  return config;
}

bool names_tensor(std::string_view pattern, TensorId id, ModelFamily family) {
  for (const std::string& name : {gguf_name(id), hf_name(id, family)})
    if (glob(pattern, without_weight(name)) || glob(pattern, name)) return true;
  return false;
}

std::vector<PlannedLinear> plan_linears(const QuantConfig& config, const ModelConfig& model) {
  config.validate();
  for (const LayerOverride& o : config.layers)
    for (const std::string& pattern : o.match) require_match(place(config, o.line), pattern, model, false);
  for (const std::string& pattern : config.keep)
    require_match(place(config, config.keep_line), pattern, model, true);
  const auto any = [&](const std::vector<std::string>& patterns, TensorId id) {
    return std::any_of(patterns.begin(), patterns.end(),
                       [&](const std::string& p) { return names_tensor(p, id, model.family); });
  };
  std::vector<PlannedLinear> plans;
  for (const TensorId id : model_tensors(model)) {
    if (!is_linear(id.role)) continue;
    LinearPlan plan = config.linears;
    bool adaptive = config.adapts();
    for (const LayerOverride& o : config.layers) {
      if (!any(o.match, id)) continue;
      plan = with(plan, o);
      adaptive = adaptive && !o.activation_bits;
    }
    if (any(config.keep, id)) plan.method = WeightMethod::kKeep;
    adaptive = adaptive && plan.method != WeightMethod::kKeep;
    const std::string where = place(config) + short_name(id);
    check_plan(where, plan, config.scheme);  // several overrides may name one linear
    const std::int64_t in = tensor_shape(id, model)[1], group = scale_groups(plan.scales).cols;
    if (is_ternary(plan.method) && group > 0 && in % group != 0)
      refuse(fmt::format("{}: its {} columns cannot be cut into groups of {}", where, in, group));
    plans.push_back({id, plan, adaptive});
  }
  return plans;
}

void check_target(const std::vector<PlannedLinear>& plans, const ModelConfig& model, LinearType type) {
  for (const PlannedLinear& l : plans) {
    const std::string why = why_not(l, tensor_shape(l.id, model)[1], type);
    if (why.empty()) continue;
    std::string others;
    for (const LinearType other : kQuantisedTypes)
      if (holds_all(plans, model, other))
        others += (others.empty() ? "" : ", ") + std::string(to_string(other));
    throw Error(
        ErrorCode::kUnsupported,
        fmt::format("{} cannot hold the plan of {}: {}; {}", to_string(type), short_name(l.id), why,
                    others.empty() ? "no type holds this configuration" : "types that would do: " + others));
  }
}

}  // namespace bitnet::quant
