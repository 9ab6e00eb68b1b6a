// RFC 4180 reader and writer; see csv.hpp.
#include "csv.hpp"

#include <algorithm>

namespace bitnet::cli {
namespace {

/// Reads the field at `at` and leaves `at` on the comma, line end or end of text behind it. Returns what is
/// wrong with its quoting, or nothing.
std::string read_field(std::string_view text, std::size_t& at, std::string& field) {
  field.clear();
  if (at >= text.size() || text[at] != '"') {
    const std::size_t end = std::min(text.find_first_of(",\n", at), text.size());
    field = text.substr(at, end - at);
    at = end;
    const bool line_end = end == text.size() || text[end] == '\n';
    if (line_end && field.ends_with('\r')) field.pop_back();
    return "";
  }
  ++at;
  while (true) {
    const std::size_t quote = text.find('"', at);
    if (quote == std::string_view::npos) return "a quoted field is never closed";
    field += text.substr(at, quote - at);
    at = quote + 1;
    if (at < text.size() && text[at] == '"') {
      field += '"';
      ++at;
      continue;
    }
    if (at < text.size() && text[at] == '\r' && (at + 1 == text.size() || text[at + 1] == '\n')) ++at;
    if (at < text.size() && text[at] != ',' && text[at] != '\n')
      return "text after the closing quote of a field";
    return "";
  }
}

}  // namespace

std::vector<CsvRow> parse_csv(std::string_view text) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  std::vector<CsvRow> rows;
  std::size_t at = 0, line = 1;
  while (at < text.size()) {
    const std::size_t begin = at;
    CsvRow row;
    row.line = line;
    std::string field;
    while (true) {
      row.error = read_field(text, at, field);
      if (!row.error.empty()) break;
      row.fields.push_back(field);
      if (at >= text.size() || text[at] == '\n') break;
      ++at;  // the comma
    }
    if (!row.error.empty()) {
      row.fields.clear();
      at = std::min(text.find('\n', begin), text.size());
    }
    at = std::min(at + 1, text.size());
    line += static_cast<std::size_t>(std::count(text.begin() + static_cast<std::ptrdiff_t>(begin),
                                                text.begin() + static_cast<std::ptrdiff_t>(at), '\n'));
    const bool is_blank =
        row.error.empty() && row.fields.size() == 1 && row.fields[0].empty() && text[begin] != '"';
    if (!is_blank) rows.push_back(std::move(row));
  }
  return rows;
}

std::string csv_line(const std::vector<std::string>& fields) {
  std::string line;
  for (std::size_t i = 0; i < fields.size(); ++i) {
    if (i > 0) line += ',';
    if (fields[i].find_first_of(",\"\r\n") == std::string::npos) {
      line += fields[i];
      continue;
    }
    line += '"';
    for (const char c : fields[i]) {
      if (c == '"') line += '"';
      line += c;
    }
    line += '"';
  }
  return line + '\n';
}

}  // namespace bitnet::cli
