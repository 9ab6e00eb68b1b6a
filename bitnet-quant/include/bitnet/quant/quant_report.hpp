#pragma once
// The result of a quantisation for people and programs: every linear, every layer, the whole, and what could
// be tried. A plain value; the functions are pure and thread-safe.
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bitnet/quant/input_report.hpp"
#include "bitnet/quant/logit_metrics.hpp"
#include "bitnet/quant/quantizer.hpp"

namespace bitnet::quant {

/// Scales and norms trained towards the original's predictions after everything else (bitnet-training's
/// tuning.hpp), in figures of the text that it was done on. A plain value.
struct TuningFigures {
  std::int64_t steps = 0, tokens = 0;
  double loss_before = 0, loss_after = 0;              ///< nats a token
  double perplexity_before = 0, perplexity_after = 0;  ///< of the quantised model
  bool kept = false;  ///< the loss did not fall: scales and norms are as they were
};

struct QuantReport {
  std::string model;  ///< what was quantised, for people
  QuantConfig config;
  std::vector<LinearReport> linears;
  std::vector<InputReport> inputs;      ///< what calibration saw of them; none without
  std::optional<TuningFigures> tuning;  ///< then `linears` are those before it
  std::optional<LogitMetrics> logits;   ///< of the result against the original, if both were run

  WeightMetrics total() const noexcept;
  /// Of one layer's linears.
  WeightMetrics layer(std::int64_t index) const noexcept;
  /// Of one layer's linears, or of all.
  double bits_per_weight(std::optional<std::int64_t> layer = {}) const noexcept;
};

/// What to try against what was lost, each naming the option, the key of a plan or the command that does it;
/// the most useful first. Each has reasons of its own: what linears lost, how far the predictions went from
/// the original's (`logits`), a calibration text that was too little. None where there is nothing to mend.
std::vector<std::string> mitigation_hints(const QuantReport& report);

/// format_version, model, config (yaml), linears, layers, total, tuning and logits (null without) and hints;
/// numbers that are not finite are null. Keys: docs/guides/quantization.md.
std::string to_json(const QuantReport& report);

/// The same as one page of HTML that needs no other file: totals, hints, charts of the layers and linears
/// that lost the most, of the error against depth and of the weights with the thresholds, and tables.
std::string to_html(const QuantReport& report);

}  // namespace bitnet::quant
