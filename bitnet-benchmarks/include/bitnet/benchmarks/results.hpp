#pragma once
// Measured figures as files have them: the JSON of `bitnet bench` and that of Google Benchmark. Comparing two
// of them is compare.hpp, drawing them report.hpp. Plain values; read_results() is thread-safe.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace bitnet::benchmarks {

/// One test of a file. Speeds are better the higher they are, times the lower.
struct Measurement {
  std::string name;  ///< the test; of bitnet bench with its threads: "tg128@b16, 2 threads"
  std::string unit;  ///< "tokens/s" or "ns"
  bool higher_is_better = true;
  /// Empty where the file has mean and deviation only (Google Benchmark's aggregates).
  std::vector<double> samples;
  std::size_t count = 0;  ///< of samples, also where they are not in the file
  double mean = 0;
  double stddev = 0;  ///< n − 1; 0 for one sample

  // Of bitnet bench.
  std::string test;  ///< "tg128@b16"
  std::int64_t threads = 0;
  std::optional<double> limit, fraction;
  // Of Google Benchmark: counters that are rates, "bytes/s" say, as means.
  std::map<std::string, double> rates;
};

struct ResultFile {
  enum class Kind : std::uint8_t { kBitnetBench, kGoogleBenchmark };
  Kind kind = Kind::kBitnetBench;
  std::string name;  ///< of the file, without folder and suffix
  /// What was measured, where the file says it: "cpu", "isa", "threads", "host_name", "build", "device",
  /// "model", "weight_bits", "head_type", "kv_type".
  std::map<std::string, std::string> facts;
  std::vector<Measurement> measurements;  ///< in the file's order
};

/// Throws Error(kNotFound | kIo), Error(kCorruptFile) on a file that is neither kind or lacks figures.
ResultFile read_results(const std::filesystem::path& path);

}  // namespace bitnet::benchmarks
