#pragma once
// What main.cpp shares with each benchmark file, and the counters that they all report.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <memory>
#include <string>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/isa.hpp"
#include "bitnet/quant/bit_linear.hpp"

namespace bitnet::benchmarks {

/// The machine as BITNET_THREADS and BITNET_ISA say; made once.
const std::shared_ptr<const ExecutionContext>& context();

/// The same threads with `isa`; made once an ISA.
const std::shared_ptr<const ExecutionContext>& context(Isa isa);

/// Calls body(name, isa, code) for every instruction set that this CPU runs and both codes of a BitLinear's
/// tiles; name is <prefix>/<isa>/<code>.
template <class Body>
void for_each_kernel(const std::string& prefix, Body&& body) {
  for (const Isa isa : compiled_isas()) {
    if (!is_supported(isa)) continue;
    for (const quant::TileCode code : {quant::TileCode::kTwoBit, quant::TileCode::kBase3})
      body(prefix + "/" + std::string(to_string(isa)) + "/" + std::string(to_string(code)), isa, code);
  }
}

/// Each bench/<name>.cpp defines it. Names are <what>/<workload>[/<variant>].
void register_benchmarks();

/// A rate per second of real time; Google Benchmark prints it with k, M, G.
inline void set_rate(benchmark::State& state, const std::string& name, double per_iteration) {
  state.counters[name] = benchmark::Counter(per_iteration, benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace bitnet::benchmarks
