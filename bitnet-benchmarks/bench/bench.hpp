#pragma once
// What main.cpp shares with each benchmark file, and the counters that they all report.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>
#include <string>

#include "bitnet/core/execution.hpp"

namespace bitnet::benchmarks {

/// The machine as BITNET_THREADS and BITNET_ISA say; made once.
const std::shared_ptr<const ExecutionContext>& context();

/// Each bench/<name>.cpp defines it. Names are <what>/<workload>[/<variant>].
void register_benchmarks();

/// A rate per second of real time; Google Benchmark prints it with k, M, G.
inline void set_rate(benchmark::State& state, const std::string& name, double per_iteration) {
  state.counters[name] = benchmark::Counter(per_iteration, benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace bitnet::benchmarks
