// Many rows times a ternary matrix, already quantised: the inner work of prefill and of batches.
#include <vector>

#include "bench.hpp"
#include "bitnet/benchmarks/workloads.hpp"
#include "bitnet/quant/bit_linear.hpp"

namespace bitnet::benchmarks {
namespace {

void gemm(benchmark::State& state, LinearShape shape, std::int64_t rows) {
  const quant::BitLinear linear(*context(), random_weights(shape, 1));
  const auto x = random_rows(rows, shape.in, 2);
  quant::QuantizedRows q;
  quant::quantize_rows(*context(), x, rows, shape.in, q);
  std::vector<float> y(static_cast<std::size_t>(rows * shape.out));
  for (auto _ : state) {
    linear.forward(*context(), q, y);
    benchmark::ClobberMemory();
  }
  set_rate(state, "MAC/s", static_cast<double>(rows * shape.out * shape.in));
}

}  // namespace

void register_benchmarks() {
  for (const LinearShape& shape : linear_shapes())
    for (const std::int64_t rows : {4, 16, 128, 512}) {
      if (shape.name == "tiny" && rows > 16) continue;
      const std::string name = "gemm/" + std::string(shape.name) + "/rows:" + std::to_string(rows);
      benchmark::RegisterBenchmark(name.c_str(), gemm, shape, rows)->UseRealTime();
    }
}

}  // namespace bitnet::benchmarks
