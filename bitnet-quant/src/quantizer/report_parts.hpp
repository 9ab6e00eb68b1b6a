#pragma once
// What the JSON, the hints and the page of a report share. Private to bitnet-quant.
#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/quant/quant_report.hpp"
#include "short_name.hpp"

namespace bitnet::quant {

/// In the order in which they come.
inline std::vector<std::int64_t> layers_of(const QuantReport& report) {
  std::vector<std::int64_t> out;
  for (const LinearReport& r : report.linears)
    if (std::find(out.begin(), out.end(), r.id.layer) == out.end()) out.push_back(r.id.layer);
  return out;
}

/// Whether a report's losses are those of the outputs, on the calibration text; else they are those of the
/// weights.
inline bool by_output(const QuantReport& report) { return report.total().output_signal > 0; }

/// The share of the square that was lost, of the output or of the weights. None where there is no output to
/// compare with: the inputs were all 0, or unknown. One report's losses are of one kind, or they would not
/// compare.
inline std::optional<double> loss_of(const WeightMetrics& m, bool of_output) {
  if (of_output) return m.output_signal > 0 ? std::optional(m.output_error()) : std::nullopt;
  const double weights = m.relative_error();
  return weights * weights;
}

/// The linears that have a loss, the worst first; of equals the first in the report.
inline std::vector<std::pair<const LinearReport*, double>> worst_first(const QuantReport& report) {
  std::vector<std::pair<const LinearReport*, double>> all;
  const bool of_output = by_output(report);
  for (const LinearReport& r : report.linears)
    if (const auto loss = loss_of(r.metrics, of_output)) all.emplace_back(&r, *loss);
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  return all;
}

}  // namespace bitnet::quant
