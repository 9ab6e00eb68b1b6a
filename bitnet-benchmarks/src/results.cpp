// Reading the JSON of `bitnet bench` and of Google Benchmark; see results.hpp.
#include "bitnet/benchmarks/results.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/statistics.hpp"

namespace bitnet::benchmarks {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kMostBytes = std::uint64_t{64} << 20;  // of a file; real ones have some kilobytes

[[noreturn]] void refuse(const std::string& what, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kCorruptFile, what, where);
}

const Json& member(const Json& object, const char* key, const std::string& where) {
  const auto found = object.is_object() ? object.find(key) : object.end();
  if (!object.is_object() || found == object.end()) refuse(fmt::format("{} has no '{}'", where, key));
  return *found;
}

std::string text(const Json& object, const char* key, const std::string& where) {
  const Json& value = member(object, key, where);
  if (!value.is_string()) refuse(fmt::format("{}: '{}' is no text", where, key));
  return value.get<std::string>();
}

double positive(const Json& value, const std::string& where) {
  const double v = value.is_number() ? value.get<double>() : NAN;
  if (!std::isfinite(v) || v <= 0) refuse(where + " is no positive number");
  return v;
}

std::optional<double> maybe(const Json& object, const char* key, const std::string& where) {
  const Json& value = member(object, key, where);
  if (value.is_null()) return std::nullopt;
  return positive(value, fmt::format("{}: '{}'", where, key));
}

void summarize(Measurement& m) {
  m.count = m.samples.size();
  m.mean = mean(m.samples);
  m.stddev = standard_deviation(m.samples);
}

/// Text or number as text, for facts.
std::string plain(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

void read_bitnet_bench(const Json& file, ResultFile& to) {
  to.kind = ResultFile::Kind::kBitnetBench;
  const Json &machine = member(file, "machine", "the file"), &model = member(file, "model", "the file");
  for (const char* key : {"cpu", "isa", "build", "device"}) to.facts[key] = text(machine, key, "machine");
  to.facts["model"] = std::filesystem::path(text(model, "path", "model")).filename().string();
  // Older files lack some of these.
  const auto optional_fact = [&](const Json& object, const char* key) {
    if (const auto found = object.find(key); object.is_object() && found != object.end())
      to.facts[key] = plain(*found);
  };
  optional_fact(model, "weight_bits");
  if (const auto details = file.find("details"); details != file.end())
    for (const char* key : {"head_type", "kv_type"}) optional_fact(*details, key);
  const Json& results = member(file, "results", "the file");
  if (!results.is_array()) refuse("'results' is no list");
  for (std::size_t i = 0; i < results.size(); ++i) {
    const std::string where = fmt::format("result {}", i + 1);
    Measurement m;
    m.test = text(results[i], "test", where);
    const Json& threads = member(results[i], "threads", where);
    m.threads = static_cast<std::int64_t>(positive(threads, where + ": 'threads'"));
    m.name = fmt::format("{}, {} thread{}", m.test, m.threads, m.threads == 1 ? "" : "s");
    m.unit = "tokens/s";
    const Json& samples = member(results[i], "samples", where);
    if (!samples.is_array() || samples.empty()) refuse(where + " has no samples");
    for (const Json& sample : samples) m.samples.push_back(positive(sample, where + ": a sample"));
    summarize(m);
    m.limit = maybe(results[i], "limit_tokens_per_second", where);
    m.fraction = maybe(results[i], "fraction_of_limit", where);
    to.measurements.push_back(std::move(m));
  }
}

double nanoseconds(const Json& run, const std::string& where) {
  const std::string unit = text(run, "time_unit", where);
  const double factor = unit == "ns" ? 1 : unit == "us" ? 1e3 : unit == "ms" ? 1e6 : unit == "s" ? 1e9 : 0;
  if (factor == 0) refuse(fmt::format("{}: unknown time_unit '{}'", where, unit));
  return factor;
}

Measurement& measurement_named(ResultFile& file, const std::string& name) {
  for (Measurement& m : file.measurements)
    if (m.name == name) return m;
  Measurement m;
  m.name = name;
  m.unit = "ns";
  m.higher_is_better = false;
  file.measurements.push_back(std::move(m));
  return file.measurements.back();
}

/// Rates of a run: user counters have no place of their own, but their names end so.
void read_rates(const Json& run, Measurement& to) {
  for (const auto& [key, value] : run.items())
    if (key.ends_with("/s") && value.is_number()) to.rates[key] = value.get<double>();
}

/// Only mean and deviation of a benchmark are known.
void read_aggregate(const Json& run, const std::string& where, Measurement& to) {
  const std::string kind = text(run, "aggregate_name", where);
  if (kind != "mean" && kind != "stddev") return;
  const Json& time = member(run, "real_time", where);
  if (!time.is_number()) refuse(where + ": 'real_time' is no number");
  (kind == "mean" ? to.mean : to.stddev) = time.get<double>() * nanoseconds(run, where);
  if (kind != "mean") return;
  const auto count = run.find("repetitions");
  to.count = count != run.end() && count->is_number_unsigned() ? count->get<std::size_t>() : 1;
  read_rates(run, to);
}

/// A benchmark that ended with an error has no figures.
bool failed(const Json& run, const std::string& where) {
  const auto found = run.find("error_occurred");
  if (!run.is_object() || found == run.end()) return false;
  if (!found->is_boolean()) refuse(where + ": 'error_occurred' is neither true nor false");
  return found->get<bool>();
}

void read_google_benchmark(const Json& file, ResultFile& to) {
  to.kind = ResultFile::Kind::kGoogleBenchmark;
  const Json& context = member(file, "context", "the file");
  for (const char* key : {"isa", "threads", "host_name"})
    if (const auto found = context.find(key); found != context.end()) to.facts[key] = plain(*found);
  const Json& runs = member(file, "benchmarks", "the file");
  if (!runs.is_array()) refuse("'benchmarks' is no list");
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const Json& run = runs[i];
    const std::string where = fmt::format("benchmark {}", i + 1);
    if (failed(run, where)) continue;
    const std::string name = text(run, run.contains("run_name") ? "run_name" : "name", where);
    Measurement& m = measurement_named(to, name);
    if (run.contains("run_type") && text(run, "run_type", where) == "aggregate") {
      if (m.samples.empty()) read_aggregate(run, where, m);
      continue;
    }
    m.samples.push_back(positive(member(run, "real_time", where), where + ": 'real_time'") *
                        nanoseconds(run, where));
    read_rates(run, m);
  }
  for (Measurement& m : to.measurements) {
    if (!m.samples.empty()) summarize(m);
    if (m.mean <= 0) refuse(fmt::format("'{}' has neither runs nor a mean", m.name));
  }
}

void read_any(const Json& file, ResultFile& to) {
  if (file.is_discarded()) refuse("this is no JSON");
  if (file.is_object() && file.contains("results")) {
    read_bitnet_bench(file, to);
  } else if (file.is_object() && file.contains("benchmarks")) {
    read_google_benchmark(file, to);
  } else {
    refuse("neither bitnet bench nor Google Benchmark wrote this");
  }
}

}  // namespace

ResultFile read_results(const std::filesystem::path& path) {
  return with_context(fmt::format("'{}'", path.string()), [&] {
    ResultFile to;
    to.name = path.stem().string();
    try {
      read_any(Json::parse(read_file(path, kMostBytes), nullptr, false), to);
    } catch (const Json::exception& e) {
      refuse(e.what());
    }
    if (to.measurements.empty()) refuse("there are no figures in it");
    return to;
  });
}

}  // namespace bitnet::benchmarks
