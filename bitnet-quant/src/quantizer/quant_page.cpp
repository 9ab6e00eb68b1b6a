// A quantisation's report as a page: what is on it, in which order. How charts are drawn is bitnet-core's
// report.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <span>
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
  const bool of_output = by_output(report);
  page.heading("Where it was lost");
  if (std::any_of(report.linears.begin(), report.linears.end(),
                  [](const LinearReport& r) { return r.master_weights; }))
    page.paragraph(
        "Float master weights of a BitNet model are rounded whenever it runs: their errors are how far they "
        "were from what it computes with, and no loss.");
  page.paragraph(
      of_output ? "Errors of the outputs are those on the calibration text: what an error of the weights "
                  "does where the inputs are large counts more."
                : "Without a calibration text only the weights can be compared; with one (--calibrate) "
                  "the errors of the outputs are here.");
  std::vector<std::pair<std::string, double>> bars;
  const std::vector<std::int64_t> layers = layers_of(report);
  if (layers.size() > 1) {
    for (const std::int64_t layer : layers)
      if (const auto loss = loss_of(report.layer(layer), of_output))
        bars.emplace_back(fmt::format("layer {}", layer), *loss);
    page.chart(worst(report, "Layers, the worst first", std::move(bars)));
    bars.clear();
  }
  std::string without;
  for (const LinearReport& r : report.linears) {
    if (const auto loss = loss_of(r.metrics, of_output))
      bars.emplace_back(short_name(r.id), *loss);
    else
      without += (without.empty() ? "" : ", ") + short_name(r.id);
  }
  page.chart(worst(report, "Linears, the worst first", std::move(bars)));
  if (!without.empty())
    page.paragraph(
        "Without an output on the calibration text, which an error could be compared with: " + without + ".");
  if (layers.size() < 2) return;
  LineChart depth{"Error against depth", "layer", loss_name(report), {}, true, true};
  std::map<TensorRole, std::size_t> series;
  for (const LinearReport& r : report.linears) {
    const auto loss = loss_of(r.metrics, of_output);
    if (!loss) continue;
    const auto [at, is_new] = series.try_emplace(r.id.role, depth.series.size());
    if (is_new) depth.series.push_back({role_name(r.id), {}, false});
    depth.series[at->second].points.push_back({static_cast<double>(r.id.layer), *loss, 0});
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
  g.series = {"stored as −1", "stored as 0", "stored as 1", "not ternary"};
  g.marks_name = "threshold";
  return g;
}

/// Sums over the layers, of what has one unit: the ternary linears.
void put_roles(const QuantReport& report, Page& page) {
  struct Role {
    std::string name;
    WeightHistogram sum;
    int ternary = 0, all = 0;
  };
  std::map<TensorRole, Role> roles;
  for (const LinearReport& r : report.linears) {
    Role& role = roles[r.id.role];
    role.name = role_name(r.id);
    ++role.all;
    if (!r.histogram.ternary) continue;
    ++role.ternary;
    role.sum.add(r.histogram);
  }
  HistogramGrid by_role = grid("All layers, by kind of linear");
  for (const auto& [unused, role] : roles) {
    if (role.ternary == 0) continue;
    const bool some = role.ternary < role.all;
    by_role.panels.push_back(
        panel(role.name + (some ? fmt::format(" ({} of {})", role.ternary, role.all) : ""), role.sum));
  }
  page.chart(by_role);
}

void put_histograms(const QuantReport& report, Page& page) {
  page.heading("The weights");
  page.paragraph(
      "Each weight divided by its scale, so that −1, 0 and 1 are what is stored; the dashed lines are where "
      "0 "
      "becomes ±1. Where the colours overlap the method moved weights over the threshold to make up for the "
      "errors of others. Of two planes this is the first. What is not ternary is divided by its root mean "
      "square, has a colour of its own and no part in the sums. The columns at the ends hold what is beyond "
      "them.");
  if (layers_of(report).size() > 1) put_roles(report, page);
  std::vector<const LinearReport*> all;
  for (const auto& [r, unused] : worst_first(report)) all.push_back(r);
  for (const LinearReport& r : report.linears)
    if (std::find(all.begin(), all.end(), &r) == all.end()) all.push_back(&r);
  HistogramGrid worst_ones =
      grid(all.size() > kMostPanels ? "The linears that lost the most" : "The linears");
  for (std::size_t i = 0; i < std::min(kMostPanels, all.size()); ++i)
    worst_ones.panels.push_back(panel(short_name(all[i]->id), all[i]->histogram));
  page.chart(worst_ones);
}

/// |x| on a logarithmic axis: up to the largest, and down to where a thousandth of the values is left.
HistogramGrid input_histograms(std::span<const InputReport* const> inputs) {
  constexpr std::size_t kBins = InputStatistics::kBins;
  std::size_t first = kBins - 1, last = 0;
  for (const InputReport* const r : inputs) {
    const auto& counts = r->statistics.histogram;
    std::int64_t all = 0, below = 0;
    for (std::size_t b = 1; b < kBins; ++b) {  // the bin before these has no lower end, and the zeros
      all += counts[b];
      if (counts[b] > 0) last = std::max(last, b);
    }
    for (std::size_t b = 1; b < first; ++b)
      if ((below += counts[b]) > all / 1000) first = b;
  }
  HistogramGrid g;
  g.title = "Inputs whose largest values stand out the most";
  g.x_label = "log₂ |x|";
  g.series = {"values"};
  g.marks_name = "root mean square";
  if (first > last) return g;
  const auto edge = [](std::size_t bin) { return static_cast<double>(bin) / 2 - 20; };
  g.low = edge(first);
  g.high = edge(last + 1);
  for (const InputReport* const r : inputs) {
    HistogramGrid::Panel p{short_name(r->id), {{}}, {}};
    for (std::size_t b = first; b <= last; ++b)
      p.counts[0].push_back(static_cast<double>(r->statistics.histogram[b]));
    if (r->statistics.rms() > 0) p.marks = {std::log2(r->statistics.rms())};
    g.panels.push_back(std::move(p));
  }
  return g;
}

void put_inputs(const QuantReport& report, Page& page) {
  if (report.inputs.empty()) return;
  page.heading("The inputs");
  page.paragraph(
      "What the linears are given on the calibration text. Activations are rounded by their row's largest "
      "value: "
      "where that is many times the root mean square, the others get few steps. The errors are those of the "
      "inputs as integers of 8 and of 4 bits, relative and squared. Columns that stand out have peaks of "
      "more than "
      "four times the middle column's.");
  std::vector<const InputReport*> all;
  for (const InputReport& r : report.inputs) all.push_back(&r);
  std::stable_sort(all.begin(), all.end(), [](const auto* a, const auto* b) {
    return a->statistics.most_peak > b->statistics.most_peak;
  });
  page.chart(input_histograms(std::span(all).first(std::min(kMostPanels, all.size()))));
  std::vector<std::vector<std::string>> rows;
  for (const InputReport& r : report.inputs) {
    const InputStatistics& s = r.statistics;
    std::string columns;
    for (const ChannelPeak& c : outlier_columns(s))
      columns += fmt::format("{}{} ({}×)", columns.empty() ? "" : ", ", c.column, number(c.times, 3));
    rows.push_back(
        {short_name(r.id), fmt::format("{}", s.rows), number(s.least), number(s.most), number(s.rms()),
         number(s.most_peak, 3), number(s.relative_noise(ActivationForm::kInt8), 3),
         number(s.relative_noise(ActivationForm::kInt4Absmax), 3),
         number(s.relative_noise(ActivationForm::kInt4Absmean), 3), columns.empty() ? "–" : columns});
  }
  page.begin_details(fmt::format("all {}", rows.size()));
  page.table({"input of", "rows", "least", "most", "rms", "largest/rms", "8 bits", "4 bits absmax",
              "4 bits absmean", "outlier columns"},
             rows);
  page.end_details();
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
    put_inputs(report, page);
    put_tables(report, page);
  }
  page.heading("Configuration");
  page.preformatted(report.config.to_yaml());
  return page.html();
}

}  // namespace bitnet::quant
