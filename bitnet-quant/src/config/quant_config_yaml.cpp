// QuantConfig ↔ yaml. What the values mean and which go together is quant_config.cpp.
#include <fmt/format.h>
#include <yaml-cpp/depthguard.h>

#include <algorithm>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/quant/quant_config.hpp"
#include "bitnet/yaml/documents.hpp"
#include "config/yaml_map.hpp"

namespace bitnet::quant {
namespace {

using config::fail_at;
using config::line_of;
using config::YamlMap;

constexpr std::uint64_t kMaxConfigBytes = 4 << 20;  // a line and more for each linear of a large model

void read_weights(YamlMap map, QuantConfig& c) {
  map.read_word("method", c.linears.method, weight_method_from_string);
  map.read_word("scales", c.linears.scales, scale_unit_from_string);
  map.finish();
}

void read_activations(YamlMap map, QuantConfig& c) {
  constexpr const char* kBits = "8, 4 or auto";
  std::string bits;
  map.read("bits", kBits, bits);
  if (bits == "auto")
    c.adaptive_activations = true;
  else
    map.read("bits", kBits, c.linears.activation_bits);
  map.read_word("rule", c.linears.activation_rule, activation_rule_from_string);
  map.read("tolerance", "a number", c.activation_tolerance);
  map.finish();
  if (map.has("tolerance") && !c.adapts())
    map.refuse(
        "tolerance",
        "says which inputs bear 4 bits where calibration chooses them: expected the scheme adaptive, or "
        "'bits: auto' with mixed_precision");
}

LayerOverride read_override(YamlMap map, const YAML::Node& node) {
  LayerOverride o;
  o.line = line_of(node);
  map.read_words("match", o.match);
  const auto word = [&]<class T>(const char* key, std::optional<T>& to, auto parse) {
    if (!map.has(key)) {
      map.take(key);
      return;
    }
    map.read_word(key, to.emplace(), parse);
  };
  word("method", o.method, weight_method_from_string);
  word("scales", o.scales, scale_unit_from_string);
  if (map.has("activation_bits"))
    map.read("activation_bits", "8 or 4", o.activation_bits.emplace());
  else
    map.take("activation_bits");
  word("activation_rule", o.activation_rule, activation_rule_from_string);
  map.finish();
  if (o.match.empty())
    fail_at(map.file(), line_of(node),
            "an entry of 'layers' needs the key 'match', a pattern or a list of them");
  return o;
}

void read_layers(const std::string& file, const YAML::Node& list, QuantConfig& c) {
  if (!list.IsDefined() || list.IsNull()) return;
  if (!list.IsSequence()) fail_at(file, line_of(list), "'layers' must be a list of mappings with 'match'");
  for (const auto& entry : list) c.layers.push_back(read_override(YamlMap(file, "layers", entry), entry));
}

void read_gptq(YamlMap map, QuantConfig& c) {
  map.read("damping", "a number", c.gptq.damping);
  map.read_numbers("multipliers", c.gptq.multipliers);
  map.read("activation_order", "true or false", c.gptq.activation_order);
  map.read("refit", "true or false", c.gptq.refit);
  map.finish();
}

void read_two_plane(YamlMap map, QuantConfig& c) {
  map.read("rounds", "a whole number", c.two_plane_rounds);
  map.finish();
}

/// As a yaml word in double quotes, which JSON's escapes are.
std::string quoted(const std::string& s) {
  std::string out = "\"";
  for (const char ch : s) {
    if (ch == '"' || ch == '\\') out += '\\';
    if (static_cast<unsigned char>(ch) < 0x20) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned>(static_cast<unsigned char>(ch)));
    } else {
      out += ch;
    }
  }
  return out + "\"";
}

std::string quoted(const std::vector<std::string>& words) {
  std::string out = "[";
  for (const std::string& w : words) out += (out.size() > 1 ? ", " : "") + quoted(w);
  return out + "]";
}

}  // namespace

QuantConfig QuantConfig::from_yaml_file(const std::filesystem::path& path) {
  return from_yaml(read_file(path, kMaxConfigBytes, FileKind::kAny), path.string());
}

QuantConfig QuantConfig::from_yaml(std::string_view text, const std::string& name) {
  QuantConfig c;
  c.source = name;
  try {
    const std::vector<YAML::Node> documents = yaml::load_all(std::string(text));
    if (documents.size() > 1) fail_at(name, line_of(documents[1]), "a second document; expected one");
    YamlMap root(name, "", documents.empty() ? YAML::Node() : documents[0]);
    const auto section = [&](const char* key) { return YamlMap(name, key, root.take(key)); };
    root.read_word("scheme", c.scheme, quant_scheme_from_string);
    read_weights(section("weights"), c);
    read_activations(section("activations"), c);
    read_layers(name, root.take("layers"), c);
    if (const YAML::Node keep = root.take("keep"); keep.IsDefined()) c.keep_line = line_of(keep);
    root.read_words("keep", c.keep);
    root.read("protect", "true or false", c.protect);
    read_gptq(section("gptq"), c);
    read_two_plane(section("two_plane"), c);
    root.finish();
  } catch (const YAML::DeepRecursion& e) {
    fail_at(name, std::max(e.mark.line, 0) + 1, "lists or mappings within each other, too deep to be read");
  } catch (const YAML::Exception& e) {
    fail_at(name, std::max(e.mark.line, 0) + 1, e.msg);
  }
  c.validate();
  return c;
}

std::string QuantConfig::to_yaml() const {
  std::string out = fmt::format("scheme: {}\nweights:\n  method: {}\n  scales: {}\n", to_string(scheme),
                                to_string(linears.method), to_string(linears.scales));
  out += fmt::format("activations:\n  bits: {}\n  rule: {}\n",
                     adapts() ? "auto" : std::to_string(linears.activation_bits),
                     to_string(linears.activation_rule));
  if (adapts()) out += fmt::format("  tolerance: {}\n", activation_tolerance);
  if (!layers.empty()) out += "layers:\n";
  for (const LayerOverride& o : layers) {
    out += fmt::format("  - match: {}\n", quoted(o.match));
    if (o.method) out += fmt::format("    method: {}\n", to_string(*o.method));
    if (o.scales) out += fmt::format("    scales: {}\n", to_string(*o.scales));
    if (o.activation_bits) out += fmt::format("    activation_bits: {}\n", *o.activation_bits);
    if (o.activation_rule) out += fmt::format("    activation_rule: {}\n", to_string(*o.activation_rule));
  }
  if (!keep.empty()) out += fmt::format("keep: {}\n", quoted(keep));
  out += fmt::format("protect: {}\n", protect);
  out += fmt::format("gptq:\n  damping: {}\n  multipliers: [{}]\n  activation_order: {}\n  refit: {}\n",
                     gptq.damping, fmt::join(gptq.multipliers, ", "), gptq.activation_order, gptq.refit);
  return out + fmt::format("two_plane:\n  rounds: {}\n", two_plane_rounds);
}

}  // namespace bitnet::quant
