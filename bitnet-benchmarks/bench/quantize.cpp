// absmean of weights and absmax of activation rows, in values a second.
#include "bench.hpp"
#include "bitnet/benchmarks/workloads.hpp"
#include "bitnet/quant/bit_linear.hpp"

namespace bitnet::benchmarks {
namespace {

void absmean(benchmark::State& state, LinearShape shape) {
  const auto w = random_rows(shape.out, shape.in, 1);
  for (auto _ : state) benchmark::DoNotOptimize(quant::absmean(w, shape.out, shape.in));
  set_rate(state, "values/s", static_cast<double>(w.size()));
}

void quantize_rows(benchmark::State& state, std::int64_t rows, std::int64_t cols) {
  const auto x = random_rows(rows, cols, 1);
  quant::QuantizedRows q;
  for (auto _ : state) {
    quant::quantize_rows(*context(), x, rows, cols, q);
    benchmark::ClobberMemory();
  }
  set_rate(state, "values/s", static_cast<double>(x.size()));
}

}  // namespace

void register_benchmarks() {
  for (const LinearShape& shape : linear_shapes()) {
    if (shape.name != "tiny" && shape.name != "qo") continue;
    const std::string name(shape.name);
    benchmark::RegisterBenchmark(("absmean/" + name).c_str(), absmean, shape)->UseRealTime();
    for (const std::int64_t rows : {1, 128})
      benchmark::RegisterBenchmark(("quantize_rows/" + name + "/rows:" + std::to_string(rows)).c_str(),
                                   quantize_rows, rows, shape.in)
          ->UseRealTime();
  }
}

}  // namespace bitnet::benchmarks
