// absmean of weights (plain code, one for all instruction sets) and absmax of activation rows, for every
// instruction set of this CPU. Three operations a value: the sum or the comparison, the multiplication by the
// inverse scale, the rounding; five bytes: an f32 and what becomes of it.
#include "bench.hpp"
#include "bitnet/benchmarks/workloads.hpp"
#include "bitnet/quant/bit_linear.hpp"

namespace bitnet::benchmarks {
namespace {

void set_rates(benchmark::State& state, std::size_t values) {
  set_rate(state, "OP/s", 3 * static_cast<double>(values));
  set_rate(state, "bytes/s", 5 * static_cast<double>(values));
}

void absmean(benchmark::State& state, LinearShape shape) {
  const auto w = random_rows(shape.out, shape.in, 1);
  for (auto _ : state) benchmark::DoNotOptimize(quant::absmean(w, shape.out, shape.in));
  set_rates(state, w.size());
}

void quantize_rows(benchmark::State& state, Isa isa, std::int64_t rows, std::int64_t cols) {
  const auto x = random_rows(rows, cols, 1);
  quant::QuantizedRows q;
  for (auto _ : state) {
    quant::quantize_rows(*context(isa), x, rows, cols, q);
    benchmark::ClobberMemory();
  }
  set_rates(state, x.size());
}

}  // namespace

void register_benchmarks() {
  for (const LinearShape& shape : linear_shapes()) {
    if (shape.name != "tiny" && shape.name != "qo") continue;
    const std::string name(shape.name);
    benchmark::RegisterBenchmark(("absmean/" + name).c_str(), absmean, shape)->UseRealTime();
    for_each_isa("quantize_rows/" + name, [&](const std::string& prefix, Isa isa) {
      for (const std::int64_t rows : {1, 128})
        benchmark::RegisterBenchmark((prefix + "/rows:" + std::to_string(rows)).c_str(), quantize_rows, isa,
                                     rows, shape.in)
            ->UseRealTime();
    });
  }
}

}  // namespace bitnet::benchmarks
