// QuantReport: sums, hints, JSON. The page is quant_page.cpp.
#include "bitnet/quant/quant_report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

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
  j["bits_per_weight"] = number(r.bits_per_weight());
  if (r.plan.method == WeightMethod::kGptq && !r.kept) j["damping"] = number(r.damping);
  put_metrics(r.metrics, j);
  const auto threshold = r.histogram.threshold();
  j["threshold"] = threshold ? number(*threshold) : Json(nullptr);
  j["warnings"] = r.warnings;
  return j;
}

/// Linears that lost several times what the middle one did, the worst first.
std::vector<const LinearReport*> outliers(const QuantReport& report) {
  std::vector<const LinearReport*> all;
  for (const LinearReport& r : report.linears)
    if (!r.kept) all.push_back(&r);
  std::stable_sort(all.begin(), all.end(), [](auto a, auto b) { return loss_of(*a) > loss_of(*b); });
  if (all.size() < 4) return {};
  const double middle = loss_of(*all[all.size() / 2]);
  constexpr double kTimes = 3;
  const auto end =
      std::find_if(all.begin(), all.end(), [&](auto r) { return loss_of(*r) <= kTimes * middle; });
  all.erase(end, all.end());
  return all;
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

std::vector<std::string> mitigation_hints(const QuantReport& report) {
  std::vector<std::string> hints;
  const auto any = [&](auto what) {
    return std::any_of(report.linears.begin(), report.linears.end(),
                       [&](const LinearReport& r) { return !r.kept && what(r); });
  };
  const auto method = [](WeightMethod m) {
    return [m](const LinearReport& r) { return r.plan.method == m; };
  };
  constexpr double kMuch = 0.1;  // of the squared output, about what gptq leaves at one plane
  const bool lossy = any([](const LinearReport& r) { return loss_of(r) > kMuch; });
  if (!lossy) return hints;
  if (any(method(WeightMethod::kAbsmean)))
    hints.emplace_back(
        "weights.method: gptq (with calibration data), or at least ls: absmean is right only for models that "
        "were "
        "trained with it");
  if (any(method(WeightMethod::kLeastSquares)) || any(method(WeightMethod::kLeastSquaresRefit)))
    hints.emplace_back("weights.method: gptq makes up for each column's error in those after it");
  const auto calibrated_little = [](const LinearReport& r) {
    return std::any_of(r.warnings.begin(), r.warnings.end(),
                       [](const std::string& w) { return w.starts_with("calibrated on"); });
  };
  if (any(calibrated_little)) hints.emplace_back("more calibration tokens: the warnings say how many");
  if (any([](const LinearReport& r) {
        return r.plan.method == WeightMethod::kGptq && r.plan.scales == ScaleUnit::kTensor &&
               loss_of(r) > kMuch;
      }))
    hints.emplace_back("weights.scales: row, or group128: more scales, which not every format holds");
  if (const auto worst = outliers(report); !worst.empty()) {
    std::string names;
    for (std::size_t i = 0; i < std::min<std::size_t>(3, worst.size()); ++i)
      names += (i > 0 ? ", " : "") + short_name(worst[i]->id);
    hints.push_back(
        fmt::format("scheme: mixed_precision with 'layers: [{{match: [{}], method: two-plane}}]': {} lost "
                    "more than three times as much as the middle one",
                    names, worst.size() == 1 ? "it" : "they"));
  }
  if (!report.tuning)
    hints.emplace_back(
        "--tune-steps 100: scales and norms trained towards the original's predictions, the format stays");
  if (report.logits && report.logits->perplexity_other() > 1.2 * report.logits->perplexity_original())
    hints.emplace_back(
        "`bitnet train` with this model as model.base and training.quantizer_schedule: linear recovers what "
        "rounding "
        "cannot");
  return hints;
}

std::string to_json(const QuantReport& report) {
  Json root;
  root["format_version"] = 1;
  root["model"] = report.model;
  root["config"] = report.config.to_yaml();
  root["linears"] = Json::array();
  for (const LinearReport& r : report.linears) root["linears"].push_back(json_of(r));
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
