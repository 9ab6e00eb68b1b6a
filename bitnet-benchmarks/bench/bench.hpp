#pragma once
// What main.cpp shares with each benchmark file, and the counters that they all report.
#include <benchmark/benchmark.h>

#include <chrono>
#include <memory>
#include <string>
#include <utility>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/isa.hpp"
#include "bitnet/quant/bit_linear.hpp"
#include "bitnet/quant/peak.hpp"

namespace bitnet::benchmarks {

/// The machine as BITNET_THREADS and BITNET_ISA say; made once.
const std::shared_ptr<const ExecutionContext>& context();

/// The same threads with `isa`; made once an ISA.
const std::shared_ptr<const ExecutionContext>& context(Isa isa);

/// Calls body(name, isa) for every instruction set that this CPU runs; name is <prefix>/<isa>.
template <class Body>
void for_each_isa(const std::string& prefix, Body&& body) {
  for (const Isa isa : compiled_isas())
    if (is_supported(isa)) body(prefix + "/" + std::string(to_string(isa)), isa);
}

/// Calls body(name, isa, code) for these and both codes of a BitLinear's tiles; name is
/// <prefix>/<isa>/<code>.
template <class Body>
void for_each_kernel(const std::string& prefix, Body&& body) {
  for_each_isa(prefix, [&](const std::string& name, Isa isa) {
    for (const quant::TileCode code : {quant::TileCode::kTwoBit, quant::TileCode::kBase3})
      body(name + "/" + std::string(to_string(code)), isa, code);
  });
}

/// Each bench/<name>.cpp defines it. Names are <what>/<workload>[/<variant>].
void register_benchmarks();

/// A rate per second of real time; Google Benchmark prints it with k, M, G. "OP/s" are operations of the
/// definition (a multiply-add is two), "bytes/s" what it must read and write, each byte once.
inline void set_rate(benchmark::State& state, const std::string& name, double per_iteration) {
  state.counters[name] = benchmark::Counter(per_iteration, benchmark::Counter::kIsIterationInvariantRate);
}

/// The f32 multiply-add peak of all threads of a context, sampled right before and after what is timed, since
/// clocks drift. Made directly before the loop of a benchmark.
class F32Peak {
 public:
  explicit F32Peak(std::shared_ptr<const ExecutionContext> machine) : probe_(std::move(machine)) {
    probe_.sample();
    begin_ = Clock::now();
  }
  /// Directly after the loop: the counter "of_f32_peak", the part of the peak that was reached.
  void report(benchmark::State& state, double operations_per_iteration) {
    const double seconds = std::chrono::duration<double>(Clock::now() - begin_).count();
    probe_.sample();
    const double rate = static_cast<double>(state.iterations()) * operations_per_iteration / seconds;
    state.counters["of_f32_peak"] = rate / (probe_.f32_gflops() * 1e9);
  }

 private:
  using Clock = std::chrono::steady_clock;
  quant::PeakProbe probe_;
  Clock::time_point begin_;
};

}  // namespace bitnet::benchmarks
