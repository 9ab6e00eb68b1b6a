// The page of `bitnet-benchmarks report`; see report.hpp.
#include "bitnet/benchmarks/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <utility>
#include <vector>

#include "bitnet/core/report/chart.hpp"

namespace bitnet::benchmarks {
namespace {

using report::BarChart;
using report::LineChart;

std::string spread_text(double mean, double stddev) {
  const int digits = mean < 10 ? 3 : mean < 1000 ? 2 : 1;
  return fmt::format("{:.{}f} ± {:.{}f}", mean, digits, stddev, digits);
}

bool is_bench(const ResultFile& file) { return file.kind == ResultFile::Kind::kBitnetBench; }

/// Names of the tests of all files, each once, in the order of their first appearance.
std::vector<std::string> names_of(std::span<const ResultFile> files, ResultFile::Kind kind) {
  std::vector<std::string> names;
  for (const ResultFile& file : files) {
    if (file.kind != kind) continue;
    for (const Measurement& m : file.measurements)
      if (std::find(names.begin(), names.end(), m.name) == names.end()) names.push_back(m.name);
  }
  return names;
}

/// Bars of one value of each measurement; `value` gives nothing where there is none.
template <class Value>
BarChart bars(std::span<const ResultFile> files, ResultFile::Kind kind, std::string title, std::string unit,
              Value&& value) {
  BarChart chart{std::move(title), std::move(unit), {}, {}, {}};
  std::vector<const ResultFile*> shown;
  for (const ResultFile& file : files)
    if (file.kind == kind) shown.push_back(&file);
  for (const ResultFile* file : shown) chart.series.push_back(file->name);
  for (const std::string& name : names_of(files, kind)) {
    BarChart::Group group{name, std::vector<std::optional<report::Bar>>(shown.size())};
    for (std::size_t i = 0; i < shown.size(); ++i)
      for (const Measurement& m : shown[i]->measurements)
        if (m.name == name) group.bars[i] = value(m);
    if (std::any_of(group.bars.begin(), group.bars.end(), [](const auto& b) { return b.has_value(); }))
      chart.groups.push_back(std::move(group));
  }
  return chart;
}

/// "tg128@b16" → {"tg128", 16}; "tg128" → {"tg128", 1}; prompts have no batch.
std::pair<std::string, double> batch_of(const std::string& test) {
  const std::size_t at = test.find("@b");
  if (at == std::string::npos) return {test, 1};
  double n = 0;
  std::from_chars(test.data() + at + 2, test.data() + test.size(), n);
  return {test.substr(0, at), n};
}

/// Adds series with at least two points and, dashed, their limits where there are any.
void add_series(LineChart& chart, const std::map<std::string, std::vector<LineChart::Point>>& curves,
                bool dashed) {
  for (const auto& [name, points] : curves)
    if (points.size() >= 2) chart.series.push_back({name, points, dashed});
}

std::string file_prefix(std::span<const ResultFile> files, const ResultFile& file) {
  return files.size() > 1 ? file.name + ": " : "";
}

LineChart thread_chart(std::span<const ResultFile> files) {
  LineChart chart{"Scaling over threads", "threads", "tokens/s, relative to the fewest threads", {}, true};
  std::map<std::string, std::vector<LineChart::Point>> curves;
  for (const ResultFile& file : files) {
    if (!is_bench(file)) continue;
    std::map<std::string, const Measurement*> least;
    for (const Measurement& m : file.measurements) {
      const Measurement*& first = least[m.test];
      if (first == nullptr || m.threads < first->threads) first = &m;
    }
    for (const Measurement& m : file.measurements) {
      const double base = least[m.test]->mean;
      curves[file_prefix(files, file) + m.test].push_back(
          {static_cast<double>(m.threads), m.mean / base, m.stddev / base});
    }
  }
  add_series(chart, curves, false);
  return chart;
}

LineChart batch_chart(std::span<const ResultFile> files) {
  LineChart chart{"Scaling over the batch", "sequences decoded together", "tokens/s", {}, true};
  std::map<std::string, std::vector<LineChart::Point>> curves, limits;
  for (const ResultFile& file : files) {
    if (!is_bench(file)) continue;
    for (const Measurement& m : file.measurements) {
      if (!m.test.starts_with("tg")) continue;
      const auto [test, sequences] = batch_of(m.test);
      const std::string name = fmt::format("{}{}, {} thread{}", file_prefix(files, file), test, m.threads,
                                           m.threads == 1 ? "" : "s");
      curves[name].push_back({sequences, m.mean, m.stddev});
      if (m.limit) limits["limit of " + name].push_back({sequences, *m.limit, 0});
    }
  }
  add_series(chart, curves, false);
  if (files.size() == 1) add_series(chart, limits, true);  // of several files they would hide everything
  return chart;
}

void write_facts(report::Page& page, std::span<const ResultFile> files) {
  const std::vector<std::string> keys{"model", "weight_bits", "head_type", "kv_type", "cpu",
                                      "isa",   "device",      "build",     "threads", "host_name"};
  std::vector<std::string> header{"file"}, used;
  for (const std::string& key : keys) {
    if (std::none_of(files.begin(), files.end(), [&](const ResultFile& f) { return f.facts.contains(key); }))
      continue;
    used.push_back(key);
    header.push_back(key);
  }
  std::vector<std::vector<std::string>> rows;
  for (const ResultFile& file : files) {
    std::vector<std::string> row{file.name};
    for (const std::string& key : used) {
      const auto found = file.facts.find(key);
      row.push_back(found != file.facts.end() ? found->second : "");
    }
    rows.push_back(std::move(row));
  }
  page.table(header, rows);
}

void write_bench(report::Page& page, std::span<const ResultFile> files) {
  constexpr auto kKind = ResultFile::Kind::kBitnetBench;
  page.heading("Models");
  page.paragraph(
      "tokens/s, mean ± standard deviation of the samples. pp512 is a prompt of 512 tokens, tg128 the "
      "decoding "
      "of 128, tg128@b16 that of 16 sequences together. The limit comes from the machine's read bandwidth "
      "and "
      "int8 peak, measured in the same run.");
  page.chart(bars(files, kKind, "Speed", "tokens/s", [](const Measurement& m) {
    return std::optional(report::Bar{m.mean, m.stddev});
  }));
  BarChart fractions = bars(files, kKind, "Part of the machine's limit reached", "%",
                            [](const Measurement& m) -> std::optional<report::Bar> {
                              if (!m.fraction) return std::nullopt;
                              return report::Bar{100 * *m.fraction, 100 * *m.fraction * m.stddev / m.mean};
                            });
  double largest = 100;
  for (const auto& group : fractions.groups)
    for (const auto& bar : group.bars)
      if (bar) largest = std::max(largest, bar->value);
  fractions.axis_end = largest;
  if (!fractions.groups.empty()) page.chart(fractions);
  for (const LineChart& chart : {thread_chart(files), batch_chart(files)})
    if (!chart.series.empty()) page.chart(chart);
  std::vector<std::vector<std::string>> rows;
  for (const ResultFile& file : files) {
    if (!is_bench(file)) continue;
    for (const Measurement& m : file.measurements)
      rows.push_back({file.name, m.test, std::to_string(m.threads), spread_text(m.mean, m.stddev),
                      m.limit ? fmt::format("{:.1f}", *m.limit) : "n/a",
                      m.fraction ? fmt::format("{:.1f} %", 100 * *m.fraction) : "n/a",
                      std::to_string(m.count)});
  }
  page.table({"file", "test", "threads", "tokens/s", "limit", "of limit", "samples"}, rows);
}

/// A time that a person can read.
std::string time_text(double ns) {
  if (ns < 1e3) return fmt::format("{:.1f} ns", ns);
  if (ns < 1e6) return fmt::format("{:.2f} µs", ns / 1e3);
  return ns < 1e9 ? fmt::format("{:.2f} ms", ns / 1e6) : fmt::format("{:.2f} s", ns / 1e9);
}

void write_micro(report::Page& page, std::span<const ResultFile> files) {
  constexpr auto kKind = ResultFile::Kind::kGoogleBenchmark;
  page.heading("Micro-benchmarks");
  page.paragraph("Times of one iteration, mean ± standard deviation where there are repetitions.");
  std::vector<std::string> rates;  // a chart for each
  for (const ResultFile& file : files)
    for (const Measurement& m : file.measurements)
      for (const auto& [rate, value] : m.rates)
        if (std::find(rates.begin(), rates.end(), rate) == rates.end()) rates.push_back(rate);
  for (const std::string& rate : rates) {
    page.chart(
        bars(files, kKind, rate, "10^9 " + rate, [&](const Measurement& m) -> std::optional<report::Bar> {
          const auto found = m.rates.find(rate);
          if (found == m.rates.end()) return std::nullopt;
          return report::Bar{found->second / 1e9, found->second / 1e9 * m.stddev / m.mean};
        }));
  }
  std::vector<std::string> header{"file", "benchmark", "time", "spread", "samples"};
  header.insert(header.end(), rates.begin(), rates.end());
  std::vector<std::vector<std::string>> rows;
  for (const ResultFile& file : files) {
    if (is_bench(file)) continue;
    for (const Measurement& m : file.measurements) {
      std::vector<std::string> row{file.name, m.name, time_text(m.mean),
                                   fmt::format("{:.1f} %", 100 * m.stddev / m.mean), std::to_string(m.count)};
      for (const std::string& rate : rates) {
        const auto found = m.rates.find(rate);
        row.push_back(found != m.rates.end() ? fmt::format("{:.3g}", found->second) : "");
      }
      rows.push_back(std::move(row));
    }
  }
  page.table(header, rows);
}

}  // namespace

std::string html_report(std::span<const ResultFile> files) {
  report::Page page("BitNet benchmarks");
  write_facts(page, files);
  if (std::any_of(files.begin(), files.end(), is_bench)) write_bench(page, files);
  if (!std::all_of(files.begin(), files.end(), is_bench)) write_micro(page, files);
  return page.html();
}

}  // namespace bitnet::benchmarks
