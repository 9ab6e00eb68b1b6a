// Numbers, axes and elements of SVG; see svg.hpp. The charts are chart.cpp.
#include "report/svg.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "bitnet/core/report/chart.hpp"
#include "bitnet/core/text/utf8.hpp"

namespace bitnet::report {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD
constexpr double kCharacter = 6.4;                         // mean width of one at font size 12

std::string_view anchor_name(Anchor anchor) {
  return anchor == Anchor::kStart ? "start" : anchor == Anchor::kMiddle ? "middle" : "end";
}

/// Bytes of the UTF-8 character that begins `text`, as far as its first byte tells.
std::size_t character_bytes(std::string_view text) {
  const auto first = static_cast<unsigned char>(text.front());
  const std::size_t n = first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  return std::min(n, text.size());
}

std::size_t character_count(std::string_view text) {
  std::size_t n = 0;
  for (; !text.empty(); text.remove_prefix(character_bytes(text))) ++n;
  return n;
}

}  // namespace

std::string escape(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::string_view character = text.substr(0, character_bytes(text));
    const auto first = static_cast<unsigned char>(character.front());
    if (bitnet::text::find_invalid_utf8(character) != std::string_view::npos) {
      out += kReplacement;
      text.remove_prefix(1);
      continue;
    }
    text.remove_prefix(character.size());
    if (character == "&") {
      out += "&amp;";
    } else if (character == "<") {
      out += "&lt;";
    } else if (character == ">") {
      out += "&gt;";
    } else if (character == "\"") {
      out += "&quot;";
    } else if (character == "'") {
      out += "&#39;";
    } else if ((first < 0x20 && first != '\t' && first != '\n' && first != '\r') ||
               character == "\xEF\xBF\xBE" || character == "\xEF\xBF\xBF") {  // XML has no U+FFFE, U+FFFF
      out += kReplacement;
    } else {
      out += character;
    }
  }
  return out;
}

std::string_view colour(std::size_t i) {
  static constexpr std::array<std::string_view, 8> kColours = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                               "#56b4e9", "#e69f00", "#777777", "#5e3c99"};
  return kColours.at(i % kColours.size());
}

std::string number(double v, int digits) {
  if (v == 0 || !std::isfinite(v)) return v == 0 ? "0" : "n/a";
  const int magnitude = static_cast<int>(std::floor(std::log10(std::abs(v))));
  if (magnitude >= 15 || magnitude < -6) return fmt::format("{:.{}g}", v, digits);
  std::string text = fmt::format("{:.{}f}", v, std::max(0, digits - 1 - magnitude));
  if (text.find('.') != std::string::npos) {
    text.erase(text.find_last_not_of('0') + 1);
    if (text.ends_with('.')) text.pop_back();
  }
  return text;
}

std::vector<double> Axis::ticks() const {
  std::vector<double> all;
  const auto first = std::llround(begin / step), last = std::llround(end / step);
  for (auto i = first; i <= last; ++i) all.push_back(static_cast<double>(i) * step);
  return all;
}

Axis round_axis(double low, double high, int most) {
  const double least = (high - low) / most;
  double step = std::pow(10, std::floor(std::log10(least)));
  for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
    if (step * factor < least * (1 - 1e-9)) continue;
    step *= factor;
    break;
  }
  return {std::floor(low / step + 1e-9) * step, std::ceil(high / step - 1e-9) * step, step};
}

void Drawing::line(double x1, double y1, double x2, double y2, std::string_view stroke, double width,
                   bool dashed) {
  body_ += fmt::format(
      R"(<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" stroke="{}" stroke-width="{}"{}/>)", x1, y1,
      x2, y2, stroke, width, dashed ? R"( stroke-dasharray="6 4")" : "");
  body_ += '\n';
}

void Drawing::rect(double x, double y, double width, double height, std::string_view fill) {
  body_ += fmt::format(R"(<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" fill="{}"/>)", x, y,
                       width, height, fill);
  body_ += '\n';
}

void Drawing::circle(double x, double y, double radius, std::string_view fill) {
  body_ += fmt::format(R"(<circle cx="{:.1f}" cy="{:.1f}" r="{}" fill="{}"/>)", x, y, radius, fill);
  body_ += '\n';
}

void Drawing::polyline(const std::vector<std::pair<double, double>>& points, std::string_view stroke,
                       bool dashed) {
  body_ += "<polyline points=\"";
  for (const auto& [x, y] : points) body_ += fmt::format("{:.1f},{:.1f} ", x, y);
  body_ += fmt::format(R"(" fill="none" stroke="{}" stroke-width="1.8"{}/>)", stroke,
                       dashed ? R"( stroke-dasharray="6 4")" : "");
  body_ += '\n';
}

void Drawing::text(double x, double y, std::string_view text, Anchor anchor, std::string_view style) {
  body_ += fmt::format(R"(<text x="{:.1f}" y="{:.1f}" text-anchor="{}"{}>{}</text>)", x, y,
                       anchor_name(anchor), style.empty() ? "" : " " + std::string(style), escape(text));
  body_ += '\n';
}

void Drawing::upward_text(double x, double y, std::string_view text) {
  body_ += fmt::format(
      R"x(<text x="{0:.1f}" y="{1:.1f}" transform="rotate(-90 {0:.1f} {1:.1f})" text-anchor="middle">{2}</text>)x",
      x, y, escape(text));
  body_ += '\n';
}

std::string Drawing::finish(double height, std::string_view title) const {
  std::string out = fmt::format(
      R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0} {1:.0f}" width="{0}" height="{1:.0f}" role="img" )"
      R"(font-family="sans-serif" font-size="12" fill="#222">)",
      kWidth, height);
  out += "\n<title>" + escape(title) + "</title>\n";
  out += fmt::format(R"(<rect width="{}" height="{:.0f}" fill="white"/>)", kWidth, height);
  return out + "\n" + body_ + "</svg>\n";
}

double text_width(std::string_view text) { return kCharacter * static_cast<double>(character_count(text)); }

std::string fit(std::string_view text, double width) {
  if (text_width(text) <= width) return std::string(text);
  std::string out;
  for (double used = 2 * kCharacter; used <= width && !text.empty(); used += kCharacter) {
    const std::size_t n = character_bytes(text);
    out += text.substr(0, n);
    text.remove_prefix(n);
  }
  return out + "…";
}

double draw_legend(Drawing& d, const std::vector<std::pair<std::string, bool>>& names, double y) {
  if (names.size() < 2) return y;
  double x = 16;
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::string name = fit(names[i].first, kWidth - 80);
    const double width = 30 + text_width(name) + 18;
    if (x > 16 && x + width > kWidth - 8) {
      x = 16;
      y += 18;
    }
    d.line(x, y, x + 22, y, colour(i), 4, names[i].second);
    d.text(x + 28, y + 4, name);
    x += width;
  }
  return y + 16;
}

std::string empty_chart(std::string_view title) {
  Drawing d;
  d.text(16, 22, fit(title, kWidth - 32), Anchor::kStart, kTitleStyle);
  d.text(16, 48, "nothing to draw", Anchor::kStart, kSmall);
  return d.finish(64, title);
}

}  // namespace bitnet::report
