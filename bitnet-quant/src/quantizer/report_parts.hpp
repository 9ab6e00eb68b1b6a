#pragma once
// What the JSON and the page of a report share. Private to bitnet-quant.
#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/quant/quant_report.hpp"

namespace bitnet::quant {

/// Without ".weight".
inline std::string short_name(TensorId id) {
  std::string name = gguf_name(id);
  name.resize(name.size() - std::string_view(".weight").size());
  return name;
}

/// In the order in which they come.
inline std::vector<std::int64_t> layers_of(const QuantReport& report) {
  std::vector<std::int64_t> out;
  for (const LinearReport& r : report.linears)
    if (std::find(out.begin(), out.end(), r.id.layer) == out.end()) out.push_back(r.id.layer);
  return out;
}

/// What was lost: of the output's square where that was measured, else of the weights'.
inline double loss_of(const WeightMetrics& m) {
  const double weights = m.relative_error();
  return m.output_signal > 0 ? m.output_error() : weights * weights;
}
inline double loss_of(const LinearReport& r) { return loss_of(r.metrics); }

}  // namespace bitnet::quant
