// Bar charts and line charts; histograms are histogram.cpp, what they are drawn with svg.cpp, the page around
// them page.cpp.
#include "bitnet/core/report/chart.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

#include "report/svg.hpp"

namespace bitnet::report {
namespace {

constexpr int kMostTicks = 6;

std::string value_text(const Bar& bar) {
  std::string text = number(bar.value);
  if (bar.spread > 0 && std::isfinite(bar.spread)) text += " ± " + number(bar.spread, 2);
  return text;
}

bool drawable(const std::optional<Bar>& bar) { return bar && std::isfinite(bar->value); }

/// The bars of one group from y on; returns how high it is.
double draw_group(Drawing& d, const BarChart::Group& group, double left, double scale, double end, double y) {
  constexpr double kBar = 15, kPitch = 18;
  double at = y;
  for (std::size_t s = 0; s < group.bars.size(); ++s) {
    if (!drawable(group.bars[s])) continue;
    const Bar& bar = *group.bars[s];
    const double value = std::clamp(bar.value, 0.0, end), middle = at + kBar / 2;
    d.rect(left, at, std::max(value * scale, 0.5), kBar, colour(s));
    double right = left + value * scale;
    if (bar.spread > 0 && std::isfinite(bar.spread)) {
      const double low = left + std::clamp(bar.value - bar.spread, 0.0, end) * scale;
      const double high = left + std::clamp(bar.value + bar.spread, 0.0, end) * scale;
      d.line(low, middle, high, middle, kInk, 1.4);
      d.line(low, middle - 4, low, middle + 4, kInk, 1.4);
      d.line(high, middle - 4, high, middle + 4, kInk, 1.4);
      right = high;
    }
    d.text(right + 6, middle + 4, value_text(bar), Anchor::kStart, kSmall);
    at += kPitch;
  }
  if (at == y) at += kPitch;  // a label without a bar
  d.text(left - 8, (y + at - kPitch + kBar) / 2 + 4, fit(group.label, left - 24), Anchor::kEnd);
  return at - y;
}

struct Extent {
  double x0 = INFINITY, x1 = -INFINITY, y0 = INFINITY, y1 = -INFINITY;
};

std::vector<LineChart::Point> finite_points(const LineChart::Series& series) {
  std::vector<LineChart::Point> points;
  for (const LineChart::Point& p : series.points)
    if (std::isfinite(p.x) && std::isfinite(p.y)) points.push_back(p);
  std::sort(points.begin(), points.end(),
            [](const LineChart::Point& a, const LineChart::Point& b) { return a.x < b.x; });
  return points;
}

double usable_spread(const LineChart::Point& p) {
  return std::isfinite(p.spread) && p.spread > 0 ? p.spread : 0;
}

Extent extent_of(const LineChart& chart) {
  Extent e;
  for (const LineChart::Series& series : chart.series) {
    for (const LineChart::Point& p : finite_points(series)) {
      const double spread = usable_spread(p);
      e.x0 = std::min(e.x0, p.x);
      e.x1 = std::max(e.x1, p.x);
      e.y0 = std::min(e.y0, p.y - spread);
      e.y1 = std::max(e.y1, p.y + spread);
    }
  }
  if (chart.y_from_zero) {
    e.y0 = std::min(e.y0, 0.0);
    e.y1 = std::max(e.y1, 0.0);
  }
  return e;
}

/// Where data is on the drawing.
struct Frame {
  double left, right, top, bottom;
  Axis x, y;
  double px(double v) const { return left + (right - left) * (v - x.begin) / (x.end - x.begin); }
  double py(double v) const { return bottom - (bottom - top) * (v - y.begin) / (y.end - y.begin); }
};

/// [low, high] with some room where both are the same.
Axis axis_of(double low, double high) {
  if (high > low) return round_axis(low, high, kMostTicks);
  const double room = std::max(std::abs(low) * 0.1, 1e-6);
  return round_axis(low - room, high + room, kMostTicks);
}

void draw_frame(Drawing& d, const Frame& f, const LineChart& chart) {
  for (const double v : f.y.ticks()) {
    d.line(f.left, f.py(v), f.right, f.py(v), kGrid);
    d.text(f.left - 8, f.py(v) + 4, number(v), Anchor::kEnd);
  }
  for (const double v : f.x.ticks()) {
    d.line(f.px(v), f.bottom, f.px(v), f.bottom + 4, kInk);
    d.text(f.px(v), f.bottom + 18, number(v), Anchor::kMiddle);
  }
  d.line(f.left, f.bottom, f.right, f.bottom, kInk);
  d.text((f.left + f.right) / 2, f.bottom + 38, chart.x_label, Anchor::kMiddle);
  d.upward_text(16, (f.top + f.bottom) / 2, chart.y_label);
}

void draw_series(Drawing& d, const Frame& f, const LineChart::Series& series, std::size_t i) {
  constexpr std::size_t kMarked = 40;  // with more points than this a curve is only a line
  const auto points = finite_points(series);
  std::vector<std::pair<double, double>> path;
  for (const LineChart::Point& p : points) path.emplace_back(f.px(p.x), f.py(p.y));
  d.polyline(path, colour(i), series.dashed);
  if (points.size() > kMarked || series.dashed) return;
  for (const LineChart::Point& p : points) {
    const double spread = usable_spread(p), x = f.px(p.x);
    if (spread > 0) d.line(x, f.py(p.y - spread), x, f.py(p.y + spread), colour(i), 1.2);
    d.circle(x, f.py(p.y), 3, colour(i));
  }
}

}  // namespace

std::string svg(const BarChart& chart) {
  double largest = 0, label_width = 0;
  bool any = false;
  for (const BarChart::Group& group : chart.groups) {
    label_width = std::max(label_width, text_width(group.label));
    for (const auto& bar : group.bars) {
      any = any || drawable(bar);
      if (drawable(bar)) largest = std::max(largest, bar->value);
    }
  }
  if (!any) return empty_chart(chart.title);
  if (chart.axis_end) largest = *chart.axis_end;
  const Axis axis = round_axis(0, largest > 0 ? largest : 1, kMostTicks);
  const double end = chart.axis_end && *chart.axis_end > 0 ? *chart.axis_end : axis.end;
  const double left = std::clamp(label_width + 32, 60.0, 300.0), right = kWidth - 120;  // values stand there
  const double scale = (right - left) / end;

  Drawing d, bars;
  std::vector<std::pair<std::string, bool>> names;
  for (const std::string& name : chart.series) names.emplace_back(name, false);
  d.text(16, 22, fit(chart.title, kWidth - 32), Anchor::kStart, kTitleStyle);
  const double top = draw_legend(d, names, kTitleHeight + 10) + 4;
  double y = top + 6;
  for (const BarChart::Group& group : chart.groups) y += draw_group(bars, group, left, scale, end, y) + 8;

  for (const double v : axis.ticks()) {
    if (v > end * (1 + 1e-9)) continue;
    d.line(left + v * scale, top, left + v * scale, y, v == 0 ? kInk : kGrid);
    d.text(left + v * scale, y + 16, number(v), Anchor::kMiddle);
  }
  d.text((left + right) / 2, y + 36, chart.unit, Anchor::kMiddle);
  d.append(bars);
  return d.finish(y + 48, chart.title);
}

std::string svg(const LineChart& chart) {
  const Extent e = extent_of(chart);
  if (!(e.x0 <= e.x1)) return empty_chart(chart.title);
  Drawing d;
  d.text(16, 22, fit(chart.title, kWidth - 32), Anchor::kStart, kTitleStyle);
  std::vector<std::pair<std::string, bool>> names;
  for (const LineChart::Series& s : chart.series) names.emplace_back(s.name, s.dashed);
  const double top = draw_legend(d, names, kTitleHeight + 10) + 8;
  Axis x = axis_of(e.x0, e.x1);
  if (chart.whole_x && x.step < 1) x = {std::floor(e.x0), std::max(std::ceil(e.x1), std::floor(e.x0) + 1), 1};
  const Frame frame{70, kWidth - 24, top, top + 290, x, axis_of(e.y0, e.y1)};
  draw_frame(d, frame, chart);
  for (std::size_t i = 0; i < chart.series.size(); ++i) draw_series(d, frame, chart.series[i], i);
  return d.finish(frame.bottom + 50, chart.title);
}

}  // namespace bitnet::report
