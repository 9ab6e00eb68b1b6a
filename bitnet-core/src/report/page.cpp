// The HTML page around tables and charts.
#include <algorithm>
#include <string>
#include <utility>

#include "bitnet/core/report/chart.hpp"

namespace bitnet::report {
namespace {

constexpr std::string_view kStyle = R"(
body { font-family: sans-serif; color: #222; max-width: 860px; margin: 2em auto; padding: 0 1em; line-height: 1.4; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; }
table { border-collapse: collapse; margin: 1em 0; font-size: 0.9em; }
th, td { padding: 0.25em 0.8em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1.2em 0; } svg { max-width: 100%; min-width: 560px; height: auto; }
figure, .wide { overflow-x: auto; } h1, p, li { overflow-wrap: anywhere; }
pre { background: #f5f5f5; padding: 0.8em; overflow-x: auto; } summary { cursor: pointer; }
)";

bool is_numeric(std::string_view cell) {
  if (cell == "n/a") return true;
  const std::size_t first = cell.find_first_not_of("+-<> ");
  if (first == std::string_view::npos || cell[first] < '0' || cell[first] > '9') return false;
  for (const std::string_view sign : {"±", "%", "×"}) {
    const std::size_t at = cell.find(sign);
    if (at != std::string_view::npos && is_numeric(cell.substr(0, at)))
      return sign == "±" ? is_numeric(cell.substr(at + sign.size())) : at + sign.size() == cell.size();
  }
  return cell.find_first_not_of("0123456789.,+-<>e ") == std::string_view::npos;
}

}  // namespace

Page::Page(std::string title) : title_(std::move(title)) {}

void Page::heading(std::string_view text) { body_ += "<h2>" + escape(text) + "</h2>\n"; }

void Page::paragraph(std::string_view text) { body_ += "<p>" + escape(text) + "</p>\n"; }

void Page::list(const std::vector<std::string>& items) {
  body_ += "<ul>\n";
  for (const std::string& item : items) body_ += "<li>" + escape(item) + "</li>\n";
  body_ += "</ul>\n";
}

void Page::preformatted(std::string_view text) { body_ += "<pre>" + escape(text) + "</pre>\n"; }

void Page::begin_details(std::string_view summary) {
  body_ += "<details>\n<summary>" + escape(summary) + "</summary>\n";
}

void Page::end_details() { body_ += "</details>\n"; }

void Page::table(const std::vector<std::string>& header, const std::vector<std::vector<std::string>>& rows) {
  body_ += "<div class=\"wide\"><table>\n<thead><tr>";
  for (const std::string& cell : header) body_ += "<th>" + escape(cell) + "</th>";
  body_ += "</tr></thead>\n<tbody>\n";
  for (const auto& row : rows) {
    body_ += "<tr>";
    for (const std::string& cell : row)
      body_ += (is_numeric(cell) ? "<td class=\"n\">" : "<td>") + escape(cell) + "</td>";
    body_ += "</tr>\n";
  }
  body_ += "</tbody></table></div>\n";
}

void Page::figure(const std::string& svg) { body_ += "<figure>\n" + svg + "</figure>\n"; }

std::string Page::html() const {
  const std::string title = escape(title_);
  return "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
         "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n" +
         (refresh_seconds_ > 0
              ? "<meta http-equiv=\"refresh\" content=\"" + std::to_string(refresh_seconds_) + "\">\n"
              : "") +
         "<title>" + title + "</title>\n<style>" + std::string(kStyle) + "</style>\n</head>\n<body>\n<h1>" +
         title + "</h1>\n" + body_ + "</body>\n</html>\n";
}

}  // namespace bitnet::report
