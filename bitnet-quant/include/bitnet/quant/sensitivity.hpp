#pragma once
// What it costs a model to store one linear in another way, measured for each linear by itself, and which
// ways for all of them keep to a budget: the knapsack is assignment.hpp. quant never runs a model: a
// TrialSource does, which bitnet-cli joins with bitnet-inference. Used by one thread at a time; the results
// are the same bits with any number of threads of the context.
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "bitnet/quant/calibration.hpp"
#include "bitnet/quant/logit_metrics.hpp"
#include "bitnet/quant/quantizer.hpp"

namespace bitnet::quant {

/// Whoever runs a model with other weights in place of some of its linears.
class TrialSource {
 public:
  /// Weights for a linear, or none: the model's own. Asked once for each linear, in file order.
  using Linears = std::function<std::optional<LogicalTensor>(TensorId linear)>;

  virtual ~TrialSource() = default;
  /// Logits over one text, always the same, from its beginning. What was returned before stays usable.
  virtual std::unique_ptr<LogitSource> run(const Linears& linears) = 0;
};

/// A way to store linears that is tried for each.
struct CandidateWay {
  WeightMethod method = WeightMethod::kAbsmean;
  std::optional<ScaleUnit> scales = {};  ///< none: the linear's plan's
};

/// "two-plane", "gptq:row" and so on. Throws Error(kInvalidArgument) as the names' functions do.
CandidateWay candidate_way_from_string(std::string_view text);

/// A way in which one linear was stored, and what that costs.
struct Candidate {
  LinearPlan plan;          ///< as it was done
  std::uint64_t bytes = 0;  ///< in files of LinearType::kExtended
  double output_error = 0;  ///< relative squared error of the output on the calibration text; 0 without one
  double kl = 0;            ///< nats a token against the original model's predictions; 0: not measured
  double loss_change = 0;   ///< nats a token: the text's cross-entropy minus the original's; 0: not measured
  /// What the assignment adds up: kl where it was measured, else output_error.
  double cost = 0;
};

struct LinearSensitivity {
  TensorId id;
  std::vector<Candidate> candidates;  ///< never empty; the first is the configuration's own plan
  /// What a person should know of the figures, as too few tokens; not in the file of to_json().
  std::vector<std::string> warnings = {};
};

struct SensitivityOptions {
  std::vector<CandidateWay> ways;            ///< beside each linear's plan
  CalibrationSource* calibration = nullptr;  ///< as of QuantizerOptions; not owned
  /// Measures the loss, a run over the text for each candidate of each linear. Null: the estimate, which
  /// runs nothing and needs `calibration`: the relative error of the linear's own output, as if every linear
  /// mattered as much as another. Not owned.
  TrialSource* trials = nullptr;
  DType float_type = DType::kF16;  ///< of linears that are kept
  /// The original's logits are kept if they fit, else the original runs beside every trial.
  std::uint64_t logit_memory = std::uint64_t{1} << 30;
  std::vector<LinearSensitivity> known = {};  ///< layers that are here whole are not measured again
  /// After each layer, with all that is known so far in file order, and how many linears there are in all.
  std::function<void(const std::vector<LinearSensitivity>&, std::size_t linears)> on_layer = {};
};

/// Each linear of a model in each way. Linears that `keep` or an override of the configuration keeps, or that
/// are ternary already, have one candidate; those that it keeps because no override names them have all.
/// `reader` as Quantizer takes it. Throws what Quantizer, the trials and compare_logits() throw;
/// Error(kInvalidArgument) with neither trials nor calibration.
std::vector<LinearSensitivity> measure_sensitivity(const ExecutionContext& context, const ModelReader& reader,
                                                   const QuantConfig& config,
                                                   const SensitivityOptions& options);

/// Which candidate for each linear.
struct BitAssignment {
  std::vector<std::size_t> chosen;  // [linears]
  std::uint64_t bytes = 0;          ///< of the linears
  double cost = 0;                  ///< summed
  bool exact = true;                ///< as of Assignment
};

/// The least cost within so many bytes of linears. Throws Error(kInvalidArgument) naming the least that would
/// do.
BitAssignment assign_within_bytes(std::span<const LinearSensitivity> linears, std::uint64_t bytes);
/// The fewest bytes at a summed cost of at most `cost`; the same error.
BitAssignment assign_within_cost(std::span<const LinearSensitivity> linears, double cost);

/// `config` with overrides by name for the linears that get another plan than it has for them, as
/// mixed_precision.
QuantConfig assigned_config(const QuantConfig& config, const ModelConfig& model,
                            std::span<const LinearSensitivity> linears, const BitAssignment& assignment);

/// The whole model as `config` quantises it, against the original.
LogitMetrics measure_config(const ExecutionContext& context, const ModelReader& reader,
                            const QuantConfig& config, CalibrationSource* calibration, TrialSource& trials);

struct PerplexityAssignment {
  BitAssignment assignment;
  LogitMetrics measured;  ///< of that assignment
  int runs = 0;           ///< of `measure`
};

/// The smallest assignment found whose perplexity, as `measure` finds it with all linears quantised together,
/// is at most `factor` times the original's: errors do not simply add up, so the budget of summed costs is
/// bisected, in at most `runs` runs (2 at least). Throws Error(kInvalidArgument) on a factor that is no
/// number, and when the best candidates exceed it, with the factor that they reach.
PerplexityAssignment assign_within_perplexity(
    const std::vector<LinearSensitivity>& linears, double factor,
    const std::function<LogitMetrics(const BitAssignment&)>& measure, int runs = 10);

/// Bytes of tensors that are no linears, in files of these options.
std::uint64_t bytes_beside_linears(const ModelConfig& model, const WriteOptions& options);

/// What was measured, for sensitivity_from_json(); `identity` says of what.
std::string to_json(std::span<const LinearSensitivity> linears, const std::string& identity);
/// Whole layers of `model`, in file order. Throws Error(kCorruptFile) on what to_json() did not write,
/// Error(kInvalidArgument) on another identity, Error(kUnsupported) on another version.
std::vector<LinearSensitivity> sensitivity_from_json(const std::string& text, const std::string& identity,
                                                     const ModelConfig& model);

}  // namespace bitnet::quant
