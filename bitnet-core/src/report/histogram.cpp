// Small histograms side by side; what they are drawn with is svg.cpp.
#include <algorithm>
#include <cmath>
#include <utility>

#include "bitnet/core/report/chart.hpp"
#include "report/svg.hpp"

namespace bitnet::report {
namespace {

constexpr std::size_t kColumns = 3;
constexpr double kLeft = 12, kGap = 20, kPanelWidth = (kWidth - 2 * kLeft - (kColumns - 1) * kGap) / kColumns;
constexpr double kLabelHeight = 20, kPlotHeight = 110, kPitch = kLabelHeight + kPlotHeight + 36;
constexpr int kMostTicks = 8;

double usable(double count) { return std::isfinite(count) && count > 0 ? count : 0; }

std::size_t bins_of(const HistogramGrid::Panel& panel) {
  std::size_t n = 0;
  for (const auto& series : panel.counts) n = std::max(n, series.size());
  return n;
}

/// The height of a bin's column, in counts.
double column(const HistogramGrid::Panel& panel, std::size_t bin) {
  double sum = 0;
  for (const auto& series : panel.counts) sum += bin < series.size() ? usable(series[bin]) : 0;
  return sum;
}

/// One panel with its upper left corner at (x, y).
void draw_panel(Drawing& d, const HistogramGrid& chart, const HistogramGrid::Panel& panel, double x,
                double y) {
  const double top = y + kLabelHeight, bottom = top + kPlotHeight;
  d.text(x, y + 13, fit(panel.label, kPanelWidth));
  const std::size_t bins = bins_of(panel);
  double most = 0;
  for (std::size_t b = 0; b < bins; ++b) most = std::max(most, column(panel, b));
  const double width = bins > 0 ? kPanelWidth / static_cast<double>(bins) : 0;
  for (std::size_t b = 0; b < bins && most > 0; ++b) {
    double from = bottom;
    for (std::size_t s = 0; s < panel.counts.size(); ++s) {
      const double count = b < panel.counts[s].size() ? usable(panel.counts[s][b]) : 0;
      if (count == 0) continue;
      const double height = count / most * kPlotHeight;
      d.rect(x + static_cast<double>(b) * width, from - height, width + 0.2, height, colour(s));  // no seams
      from -= height;
    }
  }
  const auto at = [&](double v) { return x + (v - chart.low) / (chart.high - chart.low) * kPanelWidth; };
  for (const double v : panel.marks)
    if (v >= chart.low && v <= chart.high) d.line(at(v), top, at(v), bottom, kInk, 1.2, true);
  d.line(x, bottom, x + kPanelWidth, bottom, kInk);
  for (const double v : round_axis(chart.low, chart.high, kMostTicks).ticks()) {
    if (v < chart.low || v > chart.high) continue;
    d.line(at(v), bottom, at(v), bottom + 4, kInk);
    d.text(at(v), bottom + 16, number(v), Anchor::kMiddle, kSmall);
  }
}

}  // namespace

std::string svg(const HistogramGrid& chart) {
  if (chart.panels.empty() || !(chart.low < chart.high) || !std::isfinite(chart.high - chart.low))
    return empty_chart(chart.title);
  Drawing d;
  d.text(16, 22, fit(chart.title, kWidth - 32), Anchor::kStart, kTitleStyle);
  std::vector<std::pair<std::string, bool>> names;
  for (const std::string& name : chart.series) names.emplace_back(name, false);
  double y = draw_legend(d, names, kTitleHeight + 10);
  if (!chart.marks_name.empty()) {
    d.line(16, y, 38, y, kInk, 1.2, true);
    d.text(44, y + 4, fit(chart.marks_name, kWidth - 80));
    y += 16;
  }
  y += 4;
  for (std::size_t i = 0; i < chart.panels.size(); ++i)
    draw_panel(d, chart, chart.panels[i], kLeft + static_cast<double>(i % kColumns) * (kPanelWidth + kGap),
               y + static_cast<double>(i / kColumns) * kPitch);
  y += static_cast<double>((chart.panels.size() + kColumns - 1) / kColumns) * kPitch;
  d.text(kWidth / 2, y + 6, chart.x_label, Anchor::kMiddle);
  return d.finish(y + 18, chart.title);
}

}  // namespace bitnet::report
