#pragma once
// What is to become of each linear of a model: which method, how many scales, which activations; as yaml and
// as values. Who does it is quantizer.hpp. Plain values; the functions are thread-safe.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/model/model_config.hpp"
#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/quant/post_training.hpp"

namespace bitnet::quant {

/// What a configuration may ask for at all.
enum class QuantScheme : std::uint8_t {
  kBitNet158,       ///< every linear ternary, in one plane, on 8-bit activations
  kAdaptive,        ///< the same with activations of 8 or 4 bits, as calibration says for each input
  kMixedPrecision,  ///< any method for any linear
};

/// How weights are made what is stored.
enum class WeightMethod : std::uint8_t {
  kAbsmean,            ///< absmean(): the only right one for models that were trained with it
  kLeastSquares,       ///< least_squares()
  kLeastSquaresRefit,  ///< the same, then refit_scales()
  kGptq,               ///< gptq()
  kTwoPlane,           ///< two_planes()
  kInt8,               ///< int8 with a scale a row (Int8Linear)
  kKeep,               ///< full precision
};

/// Which weights share a scale.
enum class ScaleUnit : std::uint8_t { kTensor, kRow, kGroup32, kGroup64, kGroup128, kGroup256 };

/// How a row of activations becomes integers (docs/numerics.md).
enum class ActivationRule : std::uint8_t { kAbsmax, kAbsmean };

std::string_view to_string(QuantScheme scheme) noexcept;  ///< "bitnet158", "adaptive", "mixed_precision"
/// "absmean", "ls", "ls+refit", "gptq", "two-plane", "int8", "keep"
std::string_view to_string(WeightMethod method) noexcept;
std::string_view to_string(ScaleUnit unit) noexcept;       ///< "tensor", "row", "group32", …
std::string_view to_string(ActivationRule rule) noexcept;  ///< "absmax", "absmean"

/// Throw Error(kInvalidArgument) with the nearest word and all of them.
QuantScheme quant_scheme_from_string(std::string_view name);
WeightMethod weight_method_from_string(std::string_view name);
ScaleUnit scale_unit_from_string(std::string_view name);
ActivationRule activation_rule_from_string(std::string_view name);

ScaleGroups scale_groups(ScaleUnit unit) noexcept;
/// Whether a method's result is trits with scales: one plane, or two.
bool is_ternary(WeightMethod method) noexcept;
/// Whether it needs the second moments of the linear's inputs.
bool needs_calibration(WeightMethod method) noexcept;

/// What is done with one linear.
struct LinearPlan {
  WeightMethod method = WeightMethod::kAbsmean;
  ScaleUnit scales = ScaleUnit::kTensor;  ///< of ternary methods; int8 has a scale a row whatever this says
  int activation_bits = 8;                ///< 8 or 4
  ActivationRule activation_rule = ActivationRule::kAbsmax;  ///< kAbsmean: of 4 bits only
  friend bool operator==(const LinearPlan&, const LinearPlan&) = default;
};

/// What an engine makes of a plan's bits and rule.
ActivationForm activation_form(const LinearPlan& plan) noexcept;

/// What is different for the linears that one of the patterns names. A pattern is a tensor's name in GGUF or
/// Hugging Face files without ".weight", in which * stands for any letters and ? for one.
struct LayerOverride {
  std::vector<std::string> match;
  std::optional<WeightMethod> method;
  std::optional<ScaleUnit> scales;
  std::optional<int> activation_bits;
  std::optional<ActivationRule> activation_rule;
  int line = 0;  ///< of the file where it stands, for messages; 0: of none
};

struct QuantConfig {
  QuantScheme scheme = QuantScheme::kBitNet158;
  LinearPlan linears;                 ///< of those that no override names
  std::vector<LayerOverride> layers;  ///< later ones win
  std::vector<std::string> keep;      ///< patterns of what stays in full precision, whatever `layers` says
  bool adaptive_activations = false;  ///< kMixedPrecision with activations as kAdaptive has them
  /// Float linears of a model whose configuration says BitNet are taken for master weights and get absmean,
  /// which those were trained with. False: they are floats like any others (a BitNet architecture trained in
  /// full precision).
  bool protect = true;
  GptqOptions gptq;           ///< its `groups` are the plan's
  int two_plane_rounds = 50;  ///< at most
  /// Where adapts(): linears that no override gives activation bits get 4, by the better rule, where those
  /// make a relative squared error of their inputs of at most this on the calibration text.
  double activation_tolerance = 0.01;
  std::string source;  ///< the file that it was read from, for messages; empty: none
  int keep_line = 0;   ///< of `keep` in that file

  /// Throws Error(kNotFound | kIo) for the file and Error(kInvalidArgument) "file:line: …" for yaml that
  /// cannot be parsed, unknown or repeated keys (with the nearest known one), or a value that breaks a rule.
  static QuantConfig from_yaml_file(const std::filesystem::path& path);
  /// The same from text; `name` stands for the file in messages.
  static QuantConfig from_yaml(std::string_view text, const std::string& name);
  /// What from_yaml() makes the same values of.
  std::string to_yaml() const;
  /// Throws Error(kInvalidArgument) naming key and rule, and where it stands.
  void validate() const;
  /// Whether calibration chooses activation bits.
  bool adapts() const noexcept { return scheme == QuantScheme::kAdaptive || adaptive_activations; }
};

/// The same with the scheme kMixedPrecision, which allows more.
QuantConfig as_mixed(QuantConfig config);

struct PlannedLinear {
  TensorId id;
  LinearPlan plan;
  bool adaptive = false;  ///< calibration says whether its activations get 8 bits or 4
};

/// Whether `pattern` names a tensor.
bool names_tensor(std::string_view pattern, TensorId id, ModelFamily family);

/// The plan of each linear of a model, in file order. Throws Error(kInvalidArgument) as validate() does, for
/// a pattern that names no tensor (with near misses), and for groups that do not divide a linear's columns.
std::vector<PlannedLinear> plan_linears(const QuantConfig& config, const ModelConfig& model);

/// Throws Error(kUnsupported), naming the first linear, why, and what would do, when files with linears of
/// `type` cannot hold the plans.
void check_target(const std::vector<PlannedLinear>& plans, const ModelConfig& model, LinearType type);

}  // namespace bitnet::quant
