// QuantReport: sums, JSON. The hints are quant_hints.cpp, the page is quant_page.cpp.
#include "bitnet/quant/quant_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "calibration/input_json.hpp"
#include "quantizer/report_parts.hpp"

namespace bitnet::quant {
namespace {

using Json = nlohmann::ordered_json;

Json number(double v) { return std::isfinite(v) ? Json(v) : Json(nullptr); }

void put_metrics(const WeightMetrics& m, Json& to) {
  to["weights"] = m.weights;
  to["mse"] = number(m.mse());
  to["sqnr_db"] = number(m.sqnr_db());
  to["cosine"] = number(m.cosine());
  to["relative_error"] = number(m.relative_error());
  to["output_error"] = m.output_signal > 0 ? number(m.output_error()) : Json(nullptr);
  const bool trits = m.trits[0] + m.trits[1] + m.trits[2] > 0;
  to["zero_fraction"] = trits ? number(m.zero_fraction()) : Json(nullptr);
  to["entropy_bits"] = trits ? number(m.entropy()) : Json(nullptr);
}

Json json_of(const LinearReport& r) {
  Json j;
  j["name"] = short_name(r.id);
  j["layer"] = r.id.layer;
  j["rows"] = r.out;
  j["columns"] = r.in;
  j["method"] = std::string(to_string(r.plan.method));
  j["scales"] = std::string(to_string(r.plan.scales));
  j["activation_bits"] = r.plan.activation_bits;
  j["activation_rule"] = std::string(to_string(r.plan.activation_rule));
  j["kept"] = r.kept;
  j["master_weights"] = r.master_weights;
  j["bits_per_weight"] = number(r.bits_per_weight());
  if (r.plan.method == WeightMethod::kGptq && !r.kept) j["damping"] = number(r.damping);
  put_metrics(r.metrics, j);
  const auto threshold = r.histogram.threshold();
  j["threshold"] = threshold ? number(*threshold) : Json(nullptr);
  j["warnings"] = r.warnings;
  return j;
}

}  // namespace

WeightMetrics QuantReport::total() const noexcept {
  WeightMetrics sum;
  for (const LinearReport& r : linears) sum.add(r.metrics);
  return sum;
}

WeightMetrics QuantReport::layer(std::int64_t index) const noexcept {
  WeightMetrics sum;
  for (const LinearReport& r : linears)
    if (r.id.layer == index) sum.add(r.metrics);
  return sum;
}

double QuantReport::bits_per_weight(std::optional<std::int64_t> layer) const noexcept {
  double bits = 0, n = 0;
  for (const LinearReport& r : linears) {
    if (layer && r.id.layer != *layer) continue;
    bits += 8 * static_cast<double>(r.bytes);
    n += static_cast<double>(r.out) * static_cast<double>(r.in);
  }
  return n > 0 ? bits / n : 0;
}

std::string to_json(const QuantReport& report) {
  Json root;
  root["format_version"] = 1;
  root["model"] = report.model;
  root["config"] = report.config.to_yaml();
  root["linears"] = Json::array();
  for (const LinearReport& r : report.linears) root["linears"].push_back(json_of(r));
  root["inputs"] = json_of(report.inputs);
  root["layers"] = Json::array();
  for (const std::int64_t layer : layers_of(report)) {
    Json j;
    j["layer"] = layer;
    j["bits_per_weight"] = number(report.bits_per_weight(layer));
    put_metrics(report.layer(layer), j);
    root["layers"].push_back(std::move(j));
  }
  root["total"]["bits_per_weight"] = number(report.bits_per_weight());
  put_metrics(report.total(), root["total"]);
  root["tuning"] = nullptr;
  if (report.tuning) {
    const TuningFigures& t = *report.tuning;
    root["tuning"] = Json{{"steps", t.steps},
                          {"tokens", t.tokens},
                          {"loss_before", number(t.loss_before)},
                          {"loss_after", number(t.loss_after)},
                          {"perplexity_before", number(t.perplexity_before)},
                          {"perplexity_after", number(t.perplexity_after)},
                          {"kept", t.kept}};
  }
  root["logits"] = nullptr;
  if (report.logits) {
    const LogitMetrics& l = *report.logits;
    root["logits"] = Json{{"positions", l.positions},
                          {"mean_kl", number(l.mean_kl())},
                          {"largest_kl", number(l.largest_kl)},
                          {"top1_agreement", number(l.top1_agreement())},
                          {"perplexity_before", number(l.perplexity_original())},
                          {"perplexity_after", number(l.perplexity_other())}};
  }
  root["hints"] = mitigation_hints(report);
  return root.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace bitnet::quant
