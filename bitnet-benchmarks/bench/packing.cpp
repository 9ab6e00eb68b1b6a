// Packing and unpacking of each file layout: weights and bytes (of trits and packed together) a second. Plain
// code, one for all instruction sets.
#include "bitnet/quant/packing.hpp"
#include "bench.hpp"
#include "bitnet/benchmarks/workloads.hpp"

namespace bitnet::benchmarks {
namespace {

using quant::TernaryLayout;

// Every layout holds these: `in` is a multiple of 256.
constexpr LinearShape kShapes[] = {{"tiny", 256, 256}, {"qo", 2560, 2560}};

void set_rates(benchmark::State& state, const LinearShape& shape, std::size_t packed_bytes) {
  const auto weights = static_cast<double>(shape.out * shape.in);
  set_rate(state, "weights/s", weights);
  set_rate(state, "bytes/s", weights + static_cast<double>(packed_bytes));
}

void pack(benchmark::State& state, TernaryLayout layout, LinearShape shape) {
  const quant::TernaryWeights w = random_weights(shape, 1);
  for (auto _ : state) benchmark::DoNotOptimize(quant::pack(layout, w));
  set_rates(state, shape, quant::pack(layout, w).size());
}

void unpack(benchmark::State& state, TernaryLayout layout, LinearShape shape) {
  const auto bytes = quant::pack(layout, random_weights(shape, 1));
  for (auto _ : state) benchmark::DoNotOptimize(quant::unpack(layout, bytes, shape.out, shape.in));
  set_rates(state, shape, bytes.size());
}

}  // namespace

void register_benchmarks() {
  for (const LinearShape& shape : kShapes)
    for (const auto layout :
         {TernaryLayout::kHfUint8, TernaryLayout::kI2_S, TernaryLayout::kTQ1_0, TernaryLayout::kTQ2_0}) {
      const std::string suffix = "/" + std::string(shape.name) + "/" + std::string(to_string(layout));
      benchmark::RegisterBenchmark(("pack" + suffix).c_str(), pack, layout, shape)->UseRealTime();
      benchmark::RegisterBenchmark(("unpack" + suffix).c_str(), unpack, layout, shape)->UseRealTime();
    }
}

}  // namespace bitnet::benchmarks
