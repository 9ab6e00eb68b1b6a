// A quantisation's report as a page: what is on it, in which order. How charts are drawn is bitnet-core's
// report.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "bitnet/core/report/chart.hpp"
#include "quantizer/report_parts.hpp"

namespace bitnet::quant {
namespace {

using report::Bar;
using report::BarChart;
using report::HistogramGrid;
using report::LineChart;
using report::Page;

constexpr std::size_t kMostBars = 16, kMostPanels = 9, kMostWarnings = 50;

std::string number(double v, int digits = 4) {
  return std::isfinite(v) ? fmt::format("{:.{}g}", v, digits) : v > 0 ? "∞" : "n/a";
}

std::string percent(double share) { return fmt::format("{:.1f} %", 100 * share); }

bool has_trits(const WeightMetrics& m) { return m.trits[0] + m.trits[1] + m.trits[2] > 0; }

/// "ffn_down" of blk.3.ffn_down
std::string role_name(TensorId id) {
  const std::string name = short_name(id);
  return name.substr(name.rfind('.') + 1);
}

/// Whether losses are those of the outputs, on the calibration text.
bool by_output(const QuantReport& report) { return report.total().output_signal > 0; }

std::string loss_name(const QuantReport& report) {
  return by_output(report) ? "relative squared error of the output" : "relative squared error of the weights";
}

const std::vector<std::string> kMetricNames = {
    "MSE", "SQNR, dB", "cosine", "error, weights", "error², outputs", "zeros", "entropy, bits"};

std::vector<std::string> metric_cells(const WeightMetrics& m) {
  return {std::isfinite(m.mse()) ? fmt::format("{:.2e}", m.mse()) : "n/a",
          std::isfinite(m.sqnr_db()) ? fmt::format("{:.2f}", m.sqnr_db()) : "∞",
          fmt::format("{:.4f}", m.cosine()),
          fmt::format("{:.4f}", m.relative_error()),
          m.output_signal > 0 ? number(m.output_error()) : "n/a",
          has_trits(m) ? percent(m.zero_fraction()) : "n/a",
          has_trits(m) ? fmt::format("{:.3f}", m.entropy()) : "n/a"};
}

/// A row of a table: `first`, then the metrics' names or values.
std::vector<std::string> row(std::vector<std::string> first, const std::vector<std::string>& metrics) {
  first.insert(first.end(), metrics.begin(), metrics.end());
  return first;
}

void put_totals(const QuantReport& report, Page& page) {
  const WeightMetrics total = report.total();
  std::int64_t kept = 0;
  for (const LinearReport& r : report.linears) kept += r.kept ? 1 : 0;
  page.heading("In all");
  std::vector<std::vector<std::string>> rows = {
      {"linears", fmt::format("{}", report.linears.size()),
       kept > 0 ? fmt::format("{} of them kept as they were", kept) : ""},
      {"millions of weights", number(static_cast<double>(total.weights) / 1e6), "in these linears"},
      {"bits a weight", fmt::format("{:.3f}", report.bits_per_weight()), "scales included"},
      {"mean squared error", metric_cells(total)[0], ""},
      {"SQNR, dB", metric_cells(total)[1], "signal to quantisation noise"},
      {"cosine", fmt::format("{:.4f}", total.cosine()), "between the weights and what stands for them"},
      {"relative error", fmt::format("{:.4f}", total.relative_error()), "of the weights: ‖W − Q‖ / ‖W‖"}};
  if (total.output_signal > 0)
    rows.push_back({"squared error of the outputs", number(total.output_error()),
                    "relative, on the calibration text (Hessian-weighted)"});
  if (has_trits(total)) {
    rows.push_back({"zeros", percent(total.zero_fraction()), "of the trits"});
    rows.push_back(
        {"entropy, bits", fmt::format("{:.3f}", total.entropy()), "that a trit carries, of 1.585 at most"});
  }
  if (report.tuning) {
    const TuningFigures& t = *report.tuning;
    rows.push_back(
        {"loss before tuning", number(t.loss_before),
         fmt::format("nats a token of the text that was tuned on; perplexity {:.4f}", t.perplexity_before)});
    rows.push_back({"loss after tuning", number(t.loss_after),
                    t.kept
                        ? "it did not fall: scales and norms are as they were"
                        : fmt::format("perplexity {:.4f} after {} steps; figures of weights are those before",
                                      t.perplexity_after, t.steps)});
  }
  if (report.logits) {
    const LogitMetrics& l = *report.logits;
    rows.push_back({"perplexity before", fmt::format("{:.4f}", l.perplexity_original()),
                    fmt::format("{} tokens", l.positions)});
    rows.push_back({"perplexity after", fmt::format("{:.4f}", l.perplexity_other()),
                    fmt::format("{:.2f} times as much", l.perplexity_other() / l.perplexity_original())});
    rows.push_back({"KL divergence", number(l.mean_kl()),
                    fmt::format("nats a token; at most {}", number(l.largest_kl))});
    rows.push_back({"same first choice", percent(l.top1_agreement()), "of the tokens"});
  }
  page.table({"figure", "value", ""}, rows);
  if (!report.logits)
    page.paragraph(
        "What the whole model lost (perplexity, KL divergence, first choices) was not measured: "
        "--evaluate TEXT does.");
}

/// The most of `bars`, worst first.
BarChart worst(const QuantReport& report, std::string title,
               std::vector<std::pair<std::string, double>> bars) {
  std::stable_sort(bars.begin(), bars.end(),
                   [](const auto& a, const auto& b) { return a.second > b.second; });
  if (bars.size() > kMostBars) {
    title += fmt::format(" ({} of {})", kMostBars, bars.size());
    bars.resize(kMostBars);
  }
  BarChart chart{std::move(title), loss_name(report), {"error"}, {}, {}};
  for (auto& [label, loss] : bars) chart.groups.push_back({std::move(label), {Bar{loss, 0}}});
  return chart;
}

void put_worst(const QuantReport& report, Page& page) {
  page.heading("Where it was lost");
  page.paragraph(
      by_output(report)
          ? "Errors of the outputs are those on the calibration text: what an error of the weights "
            "does where the inputs are large counts more."
          : "Without a calibration text only the weights can be compared; with one (--calibrate) "
            "the errors of the outputs are here.");
  std::vector<std::pair<std::string, double>> bars;
  const std::vector<std::int64_t> layers = layers_of(report);
  if (layers.size() > 1) {
    for (const std::int64_t layer : layers)
      bars.emplace_back(fmt::format("layer {}", layer), loss_of(report.layer(layer)));
    page.chart(worst(report, "Layers, the worst first", std::move(bars)));
    bars.clear();
  }
  for (const LinearReport& r : report.linears) bars.emplace_back(short_name(r.id), loss_of(r));
  page.chart(worst(report, "Linears, the worst first", std::move(bars)));
  if (layers.size() < 2) return;
  LineChart depth{"Error against depth", "layer", loss_name(report), {}, true, true};
  std::map<TensorRole, std::size_t> series;
  for (const LinearReport& r : report.linears) {
    const auto [at, is_new] = series.try_emplace(r.id.role, depth.series.size());
    if (is_new) depth.series.push_back({role_name(r.id), {}, false});
    depth.series[at->second].points.push_back({static_cast<double>(r.id.layer), loss_of(r), 0});
  }
  page.chart(depth);
}

HistogramGrid::Panel panel(std::string label, const WeightHistogram& h) {
  HistogramGrid::Panel p{std::move(label), {}, {}};
  for (const auto& counts : h.counts) {
    p.counts.emplace_back();
    for (const std::int64_t n : counts) p.counts.back().push_back(static_cast<double>(n));
  }
  if (const auto t = h.threshold()) p.marks = {-*t, *t};
  return p;
}

HistogramGrid grid(std::string title) {
  HistogramGrid g;
  g.title = std::move(title);
  g.x_label = "weight / scale";
  g.low = -WeightHistogram::kEnd;
  g.high = WeightHistogram::kEnd;
  g.series = {"stored as −1", "stored as 0", "stored as 1"};
  g.marks_name = "threshold";
  return g;
}

void put_histograms(const QuantReport& report, Page& page) {
  page.heading("The weights");
  page.paragraph(
      "Each weight divided by its scale, so that −1, 0 and 1 are what is stored; the dashed lines are where "
      "0 "
      "becomes ±1. Where the colours overlap the method moved weights over the threshold to make up for the "
      "errors of others. Of two planes this is the first; what is not ternary is divided by its root mean "
      "square. The columns at the ends hold what is beyond them.");
  std::map<TensorRole, std::pair<std::string, WeightHistogram>> roles;
  std::vector<const LinearReport*> all;
  for (const LinearReport& r : report.linears) {
    auto& [name, sum] = roles[r.id.role];
    name = role_name(r.id);
    sum.add(r.histogram);
    all.push_back(&r);
  }
  if (layers_of(report).size() > 1) {
    HistogramGrid by_role = grid("All layers, by kind of linear");
    for (const auto& [unused, named] : roles) by_role.panels.push_back(panel(named.first, named.second));
    page.chart(by_role);
  }
  std::stable_sort(all.begin(), all.end(), [](auto a, auto b) { return loss_of(*a) > loss_of(*b); });
  HistogramGrid worst_ones =
      grid(all.size() > kMostPanels ? "The linears that lost the most" : "The linears");
  for (std::size_t i = 0; i < std::min(kMostPanels, all.size()); ++i)
    worst_ones.panels.push_back(panel(short_name(all[i]->id), all[i]->histogram));
  page.chart(worst_ones);
}

void put_tables(const QuantReport& report, Page& page) {
  page.heading("Layers");
  std::vector<std::vector<std::string>> rows;
  for (const std::int64_t layer : layers_of(report))
    rows.push_back(row({fmt::format("{}", layer), fmt::format("{:.3f}", report.bits_per_weight(layer))},
                       metric_cells(report.layer(layer))));
  page.table(row({"layer", "bits a weight"}, kMetricNames), rows);
  page.heading("Linears");
  rows.clear();
  for (const LinearReport& r : report.linears) {
    std::string how = r.kept ? "kept" : std::string(to_string(r.plan.method));
    if (!r.kept && is_ternary(r.plan.method)) how += fmt::format(", {}", to_string(r.plan.scales));
    rows.push_back(row({short_name(r.id), std::move(how), fmt::format("{:.3f}", r.bits_per_weight())},
                       metric_cells(r.metrics)));
  }
  page.begin_details(fmt::format("all {}", rows.size()));
  page.table(row({"linear", "method, scales", "bits a weight"}, kMetricNames), rows);
  page.end_details();
}

void put_warnings(const QuantReport& report, Page& page) {
  std::vector<std::string> lines;
  for (const LinearReport& r : report.linears)
    for (const std::string& w : r.warnings)
      if (!r.kept) lines.push_back(fmt::format("{}: {}", short_name(r.id), w));
  if (lines.empty()) return;
  page.heading("Warnings");
  if (lines.size() > kMostWarnings) {
    const std::size_t more = lines.size() - kMostWarnings;
    lines.resize(kMostWarnings);
    lines.push_back(fmt::format("and {} more, which the JSON has", more));
  }
  page.list(lines);
}

}  // namespace

std::string to_html(const QuantReport& report) {
  Page page("Quantisation of " + report.model);
  put_totals(report, page);
  if (const auto hints = mitigation_hints(report); !hints.empty()) {
    page.heading("What to try");
    page.list(hints);
  }
  put_warnings(report, page);
  if (!report.linears.empty()) {
    put_worst(report, page);
    put_histograms(report, page);
    put_tables(report, page);
  }
  page.heading("Configuration");
  page.preformatted(report.config.to_yaml());
  return page.html();
}

}  // namespace bitnet::quant
