// See bench_report.hpp.
#include "bench_report.hpp"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "bitnet/core/statistics.hpp"
#include "common.hpp"
#include "csv.hpp"
#include "device_report.hpp"

namespace bitnet::cli {
namespace {

using Json = nlohmann::ordered_json;
using inference::Bound;

std::string megabytes(double bytes) { return fixed(bytes / 1e6, bytes < 1e7 ? 2 : 1) + " MB"; }

std::string or_none(const std::optional<double>& value, int digits) {
  return value ? fixed(*value, digits) : "n/a";
}

/// Enough digits that a slow machine's rates are told apart.
std::string rate_text(double tokens_per_second, double like) {
  return fixed(tokens_per_second, like < 10 ? 3 : like < 1000 ? 2 : 1);
}

std::string_view bound_name(Bound bound) {
  switch (bound) {
    case Bound::kBandwidth:
      return "bandwidth";
    case Bound::kInteger:
      return "int8";
    case Bound::kUnknown:
      break;
  }
  return "n/a";
}

/// The limits with the most threads: the machine's.
const BenchLimits& machine_limits(const BenchReport& report) {
  return *std::max_element(report.limits.begin(), report.limits.end(),
                           [](const BenchLimits& a, const BenchLimits& b) { return a.threads < b.threads; });
}

Json or_null(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

Json limits_json(const BenchLimits& l) {
  return {{"threads", l.threads},
          {"read_gbps", or_null(l.read_gbps)},
          {"int8_gops", or_null(l.int8_gops)},
          {"f32_gflops", or_null(l.f32_gflops)},
          {"read_loop", l.read_loop.empty() ? Json(nullptr) : Json(l.read_loop)}};
}

Json peaks_json(const std::optional<BenchPeaks>& p) {
  if (!p) return nullptr;
  return {{"copy_gbps", p->copy_gbps},
          {"int8_gops", p->int8_gops},
          {"enqueue_seconds", p->enqueue_seconds},
          {"launch_seconds", p->launch_seconds}};
}

/// What a device's launches cost beside what they compute.
std::string launches_markdown(const BenchReport& r) {
  if (!r.peaks) return {};
  const auto micro = [](double seconds) { return fixed(seconds * 1e6, 2) + " µs"; };
  std::string out = "\n" + r.device + ": copies " + fixed(r.peaks->copy_gbps, 1) +
                    " GB/s (read and written), small integers " + fixed(r.peaks->int8_gops, 0) +
                    " GOP/s; a launch takes the host " + micro(r.peaks->enqueue_seconds) +
                    " to enqueue, and alone " + micro(r.peaks->launch_seconds) + "\n";
  for (const BenchRow& row : r.rows) {
    if (row.launches == 0) continue;
    const bool prompt = row.test.kind == inference::ThroughputTest::Kind::kPrompt;
    const double least = row.least_seconds_of_a_pass(*r.peaks);
    out += "- " + row.test.name() + ": " + fixed(row.launches, 1) + " launches a " +
           (prompt ? "prompt" : "step") + ", " + micro(row.launches * r.peaks->enqueue_seconds) +
           " to enqueue them; its bytes as fast as copies and its launches one by one: " + micro(least) +
           ", " + fixed(100 * least / row.seconds_of_a_pass(), 1) + " % of what it took\n";
  }
  return out;
}

}  // namespace

double BenchRow::mean() const { return bitnet::mean(samples); }
double BenchRow::median() const { return bitnet::median(samples); }
double BenchRow::stddev() const { return standard_deviation(samples); }

std::optional<double> BenchRow::fraction() const {
  if (!limit.tokens_per_second) return std::nullopt;
  return mean() / *limit.tokens_per_second;
}

double BenchRow::tokens_of_a_pass(const inference::ThroughputTest& test) {
  const bool prompt = test.kind == inference::ThroughputTest::Kind::kPrompt;
  return static_cast<double>(prompt ? test.total_tokens() : test.sequences);
}

double BenchRow::seconds_of_a_pass() const { return tokens_of_a_pass(test) / mean(); }

double BenchRow::least_seconds_of_a_pass(const BenchPeaks& peaks) const {
  const double bytes = limit.bytes_per_token * tokens_of_a_pass(test);
  return bytes / (peaks.copy_gbps * 1e9) + launches * peaks.launch_seconds;
}

std::string bench_markdown(const BenchReport& r) {
  const inference::WeightCost& w = r.weights;
  std::string out = r.build + "; " + r.cpu + "; " + r.isa + "; " + r.device + ": " + r.device_description;
  out += "\n" + std::filesystem::path(r.path).filename().string() + ": " + grouped(r.parameters) +
         " parameters, " + (r.ternary ? "ternary" : "dense") + " linears of " + fixed(w.bits_per_weight, 2) +
         " bits a weight as prepared, file " + megabytes(static_cast<double>(r.file_bytes)) + ", loaded in " +
         fixed(r.load_seconds, 2) + " s, first token of a 16-token prompt after " +
         fixed(r.first_token_seconds, 2) + " s, peak memory " +
         megabytes(static_cast<double>(r.peak_rss_bytes));
  out += "\nread in a step: linears " + megabytes(static_cast<double>(w.linear_bytes)) + ", head (" +
         r.head_type + ") " + megabytes(static_cast<double>(w.head_bytes)) + ", norms " +
         megabytes(static_cast<double>(w.norm_bytes)) + "; keys and values (" + r.kv_type + ") " +
         grouped(static_cast<std::int64_t>(r.kv_bytes_per_position)) + " bytes a position\n\n";
  out += "| threads | read GB/s | int8 GOP/s | f32 GFLOP/s |\n|--:|--:|--:|--:|\n";
  for (const BenchLimits& l : r.limits) {
    out += "| " + std::to_string(l.threads) + " | " + or_none(l.read_gbps, 1) + " | " +
           or_none(l.int8_gops, 0) + " | " + or_none(l.f32_gflops, 0) + " |\n";
  }
  out += "\n| test | threads | tokens/s | median | limit | of limit | bound by | bytes/token |\n";
  out += "|:--|--:|--:|--:|--:|--:|:--|--:|\n";
  for (const BenchRow& row : r.rows) {
    const auto fraction = row.fraction();
    const double mean = row.mean();
    const std::string limit =
        row.limit.tokens_per_second ? rate_text(*row.limit.tokens_per_second, mean) : "n/a";
    out += "| " + row.test.name() + " | " + std::to_string(row.threads) + " | " + rate_text(mean, mean) +
           " ± " + rate_text(row.stddev(), mean) + " | " + rate_text(row.median(), mean) + " | " + limit +
           " | " + (fraction ? fixed(100 * *fraction, 1) + " %" : "n/a") + " | " +
           std::string(bound_name(row.limit.bound)) + " | " + megabytes(row.limit.bytes_per_token) + " |\n";
  }
  return out + launches_markdown(r);
}

std::string bench_csv(const BenchReport& r) {
  std::string out = csv_line({"test",
                              "threads",
                              "tokens_per_second",
                              "stddev",
                              "median_tokens_per_second",
                              "limit_tokens_per_second",
                              "fraction_of_limit",
                              "bound",
                              "bytes_per_token",
                              "read_gbps",
                              "int8_gops",
                              "f32_gflops",
                              "isa",
                              "device",
                              "cpu",
                              "build",
                              "model",
                              "weight_bits",
                              "head_type",
                              "kv_type"});
  const auto number = [](const std::optional<double>& v) { return v ? Json(*v).dump() : std::string(); };
  for (const BenchRow& row : r.rows) {
    const auto limits = std::find_if(r.limits.begin(), r.limits.end(),
                                     [&](const BenchLimits& l) { return l.threads == row.threads; });
    out += csv_line({row.test.name(),
                     std::to_string(row.threads),
                     number(row.mean()),
                     number(row.stddev()),
                     number(row.median()),
                     number(row.limit.tokens_per_second),
                     number(row.fraction()),
                     row.limit.bound == Bound::kUnknown ? "" : std::string(bound_name(row.limit.bound)),
                     number(row.limit.bytes_per_token),
                     number(limits->read_gbps),
                     number(limits->int8_gops),
                     number(limits->f32_gflops),
                     r.isa,
                     r.device,
                     r.cpu,
                     r.build,
                     r.path,
                     number(r.weights.bits_per_weight),
                     r.head_type,
                     r.kv_type});
  }
  return out;
}

std::string bench_json(const BenchReport& r) {
  const BenchLimits& best = machine_limits(r);
  Json results = Json::array(), tests = Json::array(), limits = Json::array();
  for (const BenchRow& row : r.rows) {
    results.push_back({{"test", row.test.name()},
                       {"threads", row.threads},
                       {"tokens_per_second", row.mean()},
                       {"stddev", row.stddev()},
                       {"samples", row.samples},
                       {"limit_tokens_per_second", or_null(row.limit.tokens_per_second)},
                       {"fraction_of_limit", or_null(row.fraction())}});
    tests.push_back(
        {{"test", row.test.name()},
         {"threads", row.threads},
         {"bytes_per_token", row.limit.bytes_per_token},
         {"launches", row.launches},
         {"enqueue_seconds", r.peaks ? Json(row.launches * r.peaks->enqueue_seconds) : Json(nullptr)},
         {"least_seconds", r.peaks ? Json(row.least_seconds_of_a_pass(*r.peaks)) : Json(nullptr)},
         {"fraction_of_least",
          r.peaks ? Json(row.least_seconds_of_a_pass(*r.peaks) / row.seconds_of_a_pass()) : Json(nullptr)},
         {"bound", row.limit.bound == Bound::kUnknown ? Json(nullptr) : Json(bound_name(row.limit.bound))}});
  }
  for (const BenchLimits& l : r.limits) limits.push_back(limits_json(l));
  const inference::WeightCost& w = r.weights;
  const Json j{
      {"machine",
       {{"cpu", r.cpu},
        {"isa", r.isa},
        {"threads", best.threads},
        {"read_gbps", or_null(best.read_gbps)},
        {"int8_gops", or_null(best.int8_gops)},
        {"f32_gflops", or_null(best.f32_gflops)},
        {"build", r.build},
        {"device", r.device}}},
      {"model",
       {{"path", r.path},
        {"parameters", r.parameters},
        {"file_bytes", r.file_bytes},
        {"weight_bits", w.bits_per_weight},
        {"peak_rss_bytes", r.peak_rss_bytes},
        {"load_seconds", r.load_seconds}}},
      {"results", results},
      {"details",
       {{"device_description", r.device_description},
        {"ternary", r.ternary},
        {"head_type", r.head_type},
        {"ternary_weights", w.ternary_weights},
        {"asked_ternary_weights", w.asked_ternary_weights},
        {"linear_bytes", w.linear_bytes},
        {"asked_linear_bytes", w.asked_linear_bytes},
        {"head_bytes", w.head_bytes},
        {"norm_bytes", w.norm_bytes},
        {"kv_type", r.kv_type},
        {"kv_bytes_per_position", r.kv_bytes_per_position},
        {"first_token_seconds", r.first_token_seconds},
        {"probe_bytes", r.probe_bytes},
        {"device_peaks", peaks_json(r.peaks)},
        {"device_statistics", device_json(r.device_statistics)},
        {"limits", limits},
        {"tests", tests}}},
  };
  return j.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace bitnet::cli
