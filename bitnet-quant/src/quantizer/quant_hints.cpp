// What to try against what a quantisation lost: which hint for what.
#include <fmt/format.h>

#include <algorithm>

#include "quantizer/report_parts.hpp"

namespace bitnet::quant {
namespace {

/// Of the squared output, or of the squared weights: about what gptq leaves of the output at one plane.
constexpr double kMuch = 0.1;
/// Nats a token: one in a hundred of the perplexity, where the text's words are what the original predicts.
constexpr double kMuchKl = 0.01;
constexpr double kMuchPerplexity = 1.05;

/// Whether the whole model, as it was evaluated, predicts other words than before.
bool predictions_changed(const QuantReport& report) {
  return report.logits &&
         (report.logits->mean_kl() > kMuchKl ||
          report.logits->perplexity_other() > kMuchPerplexity * report.logits->perplexity_original());
}

/// Whether a warning says that the calibration text was too little or too uniform.
bool calibrated_little(const LinearReport& r) {
  return std::any_of(r.warnings.begin(), r.warnings.end(), [](const std::string& w) {
    return w.starts_with("calibrated on") || w.find("second moments") != w.npos;
  });
}

using Losses = std::vector<std::pair<const LinearReport*, double>>;

/// Of linears, the worst first, those that lost several times what the middle one did.
Losses outliers(Losses all) {
  if (all.size() < 4) return {};
  const double middle = all[all.size() / 2].second;
  constexpr double kTimes = 3;
  all.erase(std::find_if(all.begin(), all.end(), [&](const auto& l) { return l.second <= kTimes * middle; }),
            all.end());
  return all;
}

std::string two_planes_for(const Losses& worst) {
  std::string names;
  for (std::size_t i = 0; i < std::min<std::size_t>(3, worst.size()); ++i)
    names += (i > 0 ? ", " : "") + short_name(worst[i].first->id);
  return fmt::format(
      "--type extended --plan FILE, in which scheme: mixed_precision with 'layers: [{{match: [{}], method: "
      "two-plane}}]': {} lost more than three times as much as the middle one",
      names, worst.size() == 1 ? "it" : "they");
}

}  // namespace

std::vector<std::string> mitigation_hints(const QuantReport& report) {
  // What is as it was lost nothing; the floats of a BitNet model are rounded whenever it runs.
  std::vector<const LinearReport*> done;
  for (const LinearReport& r : report.linears)
    if (!r.kept && !r.master_weights) done.push_back(&r);
  const auto any = [&](auto what) {
    return std::any_of(done.begin(), done.end(), [&](const LinearReport* r) { return what(*r); });
  };
  Losses losses = worst_first(report);
  std::erase_if(losses, [](const auto& l) { return l.first->kept || l.first->master_weights; });
  const bool of_output = by_output(report), changed = !done.empty() && predictions_changed(report);
  const bool lossy = changed || (!losses.empty() && losses.front().second > kMuch);
  const auto method = [](auto... ms) {
    return [=](const LinearReport& r) { return ((r.plan.method == ms) || ...); };
  };
  std::vector<std::string> hints;
  if (lossy && any(method(WeightMethod::kAbsmean)))
    hints.emplace_back(
        "--method gptq with --calibrate TEXT (weights.method: gptq in a plan), or at least ls: absmean is "
        "right "
        "only for models that were trained with it");
  if (lossy && any(method(WeightMethod::kLeastSquares, WeightMethod::kLeastSquaresRefit)))
    hints.emplace_back(
        "--method gptq with --calibrate TEXT (weights.method: gptq in a plan) makes up for each column's "
        "error "
        "in those after it");
  if (any(calibrated_little))
    hints.emplace_back(
        "--calibration-tokens, and a longer text that says more than one thing: the warnings say what is "
        "missing");
  if (any([&](const LinearReport& r) {
        return r.plan.method == WeightMethod::kGptq && r.plan.scales == ScaleUnit::kTensor &&
               (changed || loss_of(r.metrics, of_output).value_or(0) > kMuch);
      }))
    hints.emplace_back(
        "--scales row, or group128 (weights.scales: row in a plan): more scales, which tq1_0, tq2_0 or "
        "extended "
        "hold");
  if (const auto worst = outliers(losses); lossy && !worst.empty()) hints.push_back(two_planes_for(worst));
  if (lossy && !report.tuning)
    hints.emplace_back(
        "--tune-steps 100: scales and norms trained towards the original's predictions, the format stays");
  if (!done.empty() && report.logits &&
      report.logits->perplexity_other() > 1.2 * report.logits->perplexity_original())
    hints.emplace_back(
        "`bitnet train` with this model as model.base and training.quantizer_schedule: linear recovers what "
        "rounding cannot");
  return hints;
}

}  // namespace bitnet::quant
