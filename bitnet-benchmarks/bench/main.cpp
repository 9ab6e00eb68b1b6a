// main() of every benchmark: Google Benchmark's, with the instruction set and the thread count in the
// report's context. BITNET_ISA and BITNET_THREADS choose them; docs/performance.md says how numbers are
// taken.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <map>
#include <string>

#include "bench.hpp"
#include "bitnet/core/error.hpp"

int main(int argc, char** argv) {
  try {
    const bitnet::ExecutionContext& context = *bitnet::benchmarks::context();
    benchmark::AddCustomContext("isa", std::string(bitnet::to_string(context.isa())));
    benchmark::AddCustomContext("threads", std::to_string(context.threads()));
    bitnet::benchmarks::register_benchmarks();
    benchmark::Initialize(&argc, argv);
    if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
    benchmark::RunSpecifiedBenchmarks();
    benchmark::Shutdown();
    return 0;
  } catch (const bitnet::Error& e) {
    std::fprintf(stderr, "%s\n", e.what());
    return 1;
  }
}

namespace bitnet::benchmarks {

const std::shared_ptr<const ExecutionContext>& context() {
  static const auto made = std::make_shared<const ExecutionContext>();
  return made;
}

const std::shared_ptr<const ExecutionContext>& context(Isa isa) {
  static std::map<std::uint8_t, std::shared_ptr<const ExecutionContext>> made;
  auto& one = made[isa.index];
  if (one == nullptr)
    one = std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 0, .isa = isa});
  return one;
}

}  // namespace bitnet::benchmarks
