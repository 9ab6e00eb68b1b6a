// Several rows times a ternary matrix, already quantised: the inner work of batches (2 to 16 rows) and of
// prefill, for every instruction set of this CPU and both codes of the tiles.
#include <vector>

#include "bench.hpp"
#include "bitnet/benchmarks/workloads.hpp"
#include "bitnet/quant/bit_linear.hpp"

namespace bitnet::benchmarks {
namespace {

void gemm(benchmark::State& state, Isa isa, quant::TileCode code, LinearShape shape, std::int64_t rows) {
  const ExecutionContext& machine = *context(isa);
  const quant::BitLinear linear(machine, random_weights(shape, 1), code);
  const auto x = random_rows(rows, shape.in, 2);
  quant::QuantizedRows q;
  quant::quantize_rows(machine, x, rows, shape.in, q);
  std::vector<float> y(static_cast<std::size_t>(rows * shape.out));
  for (auto _ : state) {
    linear.forward(machine, q, y);
    benchmark::ClobberMemory();
  }
  set_rate(state, "OP/s", 2 * static_cast<double>(rows * shape.out * shape.in));
  set_rate(state, "bytes/s", static_cast<double>(linear.bytes()));
}

}  // namespace

void register_benchmarks() {
  for (const LinearShape& shape : linear_shapes())
    for_each_kernel("gemm/" + std::string(shape.name),
                    [&](const std::string& name, Isa isa, quant::TileCode code) {
                      for (const std::int64_t rows : {2, 4, 8, 16, 128, 512}) {
                        if (shape.name == "tiny" && rows > 16) continue;
                        benchmark::RegisterBenchmark((name + "/rows:" + std::to_string(rows)).c_str(), gemm,
                                                     isa, code, shape, rows)
                            ->UseRealTime();
                      }
                    });
}

}  // namespace bitnet::benchmarks
