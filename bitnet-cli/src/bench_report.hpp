#pragma once
// What `bitnet bench` found out, and how it is written: a table, CSV or JSON. Measuring is
// commands/bench.cpp; comparing such files is bitnet-benchmarks.
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bitnet/core/device/backend_types.hpp"
#include "bitnet/inference/throughput.hpp"

namespace bitnet::cli {

/// The limits of the machine with so many threads; absent where they are not known.
struct BenchLimits {
  std::size_t threads = 0;
  std::optional<double> read_gbps, int8_gops, f32_gflops;
  std::string read_loop;  ///< the fastest of the read loops
};

/// Of a device other than the CPU: what it does at most (gpu::DevicePeaks).
struct BenchPeaks {
  double copy_gbps = 0, int8_gops = 0, enqueue_seconds = 0, launch_seconds = 0;
};

struct BenchRow {
  inference::ThroughputTest test;
  std::size_t threads = 0;
  std::vector<double> samples;  ///< tokens/s
  inference::ThroughputLimit limit;
  double launches = 0;  ///< of programs of a device, a pass; 0 on the CPU

  /// A pass is a step that decodes a token of each sequence, or a whole prompt.
  static double tokens_of_a_pass(const inference::ThroughputTest& test);
  double mean() const;
  double median() const;
  double stddev() const;
  std::optional<double> fraction() const;  ///< of the limit
  double seconds_of_a_pass() const;        ///< by the mean
  /// What a pass takes at least on a device that keeps nothing in caches: its bytes as fast as the device
  /// copies, and each of its launches as long as one of nothing.
  double least_seconds_of_a_pass(const BenchPeaks& peaks) const;
};

struct BenchReport {
  std::string cpu, isa, build;
  std::string device, device_description;
  std::vector<BenchLimits> limits;  ///< one for each thread count, in the order asked for
  std::size_t probe_bytes = 0;      ///< that the bandwidth was measured on; 0: it was not

  std::string path;
  bool ternary = true;
  std::string head_type;  ///< "int8" or "stored"
  std::int64_t parameters = 0;
  std::uint64_t file_bytes = 0, peak_rss_bytes = 0;
  double load_seconds = 0;
  double first_token_seconds = 0;  ///< from opening the model to the first token of a prompt of 16
  inference::WeightCost weights;
  std::string kv_type;  ///< "f16", "i8" or "f32"
  std::size_t kv_bytes_per_position = 0;

  std::optional<BenchPeaks> peaks;
  DeviceStatistics device_statistics;  ///< of all runs with the first thread count; empty for the CPU

  std::vector<BenchRow> rows;
};

/// For people: markdown, the machine and the model in front.
std::string bench_markdown(const BenchReport& report);
/// A line a test, with a header.
std::string bench_csv(const BenchReport& report);
/// {"machine", "model", "results", "details"}, see docs/performance.md. Unknown figures are null.
std::string bench_json(const BenchReport& report);

}  // namespace bitnet::cli
