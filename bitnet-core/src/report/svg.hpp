#pragma once
// What the charts are drawn with: numbers as text, round axes, elements, colours.
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace bitnet::report {

inline constexpr double kWidth = 760;
inline constexpr double kTitleHeight = 34;
inline constexpr std::string_view kGrid = "#ddd", kInk = "#222";
inline constexpr std::string_view kTitleStyle = R"(font-size="15" font-weight="bold")";
inline constexpr std::string_view kSmall = R"(font-size="11" fill="#555")";

/// The colour of series `i`; they repeat after eight. Okabe and Ito's palette (2008), which most colour-blind
/// readers can tell apart, without its yellow.
std::string_view colour(std::size_t i);

/// Shortest text of `v` with at most `digits` significant digits, without an exponent below 10^15.
std::string number(double v, int digits = 4);

/// A round step (1, 2 or 5 × 10^k) that cuts [low, high] into at most `most` parts, and the axis that whole
/// steps make of it. high > low, both finite.
struct Axis {
  double begin = 0, end = 1, step = 1;
  std::vector<double> ticks() const;
};
Axis round_axis(double low, double high, int most);

enum class Anchor { kStart, kMiddle, kEnd };

/// Collects elements; coordinates are pixels with one digit behind the point.
class Drawing {
 public:
  void line(double x1, double y1, double x2, double y2, std::string_view stroke, double width = 1,
            bool dashed = false);
  void rect(double x, double y, double width, double height, std::string_view fill);
  void circle(double x, double y, double radius, std::string_view fill);
  void polyline(const std::vector<std::pair<double, double>>& points, std::string_view stroke, bool dashed);
  void text(double x, double y, std::string_view text, Anchor anchor = Anchor::kStart,
            std::string_view style = {});
  /// A text that reads upwards, centred at (x, y).
  void upward_text(double x, double y, std::string_view text);
  /// Everything of `other`, above what is there.
  void append(const Drawing& other) { body_ += other.body_; }
  /// The <svg> element; `title` is its name for screen readers.
  std::string finish(double height, std::string_view title) const;

 private:
  std::string body_;
};

/// Width of `text` in pixels at this font size, roughly: browsers have different fonts.
double text_width(std::string_view text);
/// `text` cut to `width` pixels, with an ellipsis where something is missing.
std::string fit(std::string_view text, double width);

/// Names of the series (and whether they are dashed) with their colours, in as many lines as they need;
/// returns where the chart begins. A single one needs none.
double draw_legend(Drawing& d, const std::vector<std::pair<std::string, bool>>& names, double y);

/// A chart without anything to draw.
std::string empty_chart(std::string_view title);

}  // namespace bitnet::report
