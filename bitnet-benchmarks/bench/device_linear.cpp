// The linear op through the backend seam on every device there is, activations staying on the device.
#include <memory>
#include <vector>

#include "bench.hpp"
#include "bitnet/benchmarks/workloads.hpp"
#include "bitnet/gpu/register.hpp"
#include "bitnet/inference/register.hpp"

namespace bitnet::benchmarks {
namespace {

const BackendRegistry& registry() {
  static const BackendRegistry filled = [] {
    BackendRegistry r;
    inference::register_cpu_backend(r);
    gpu::register_backends(r);
    return r;
  }();
  return filled;
}

void linear(benchmark::State& state, const std::string& device, LinearShape shape, std::int64_t rows) {
  const auto backend = registry().create(device, context());
  const quant::TernaryWeights w = random_weights(shape, 1);
  const PreparedPtr prepared = backend->prepare({.out = w.out,
                                                 .in = w.in,
                                                 .trits = w.trits,
                                                 .scales = w.scales,
                                                 .rows_per_scale = w.rows_per_scale,
                                                 .dense = {},
                                                 .dense_type = DType::kF32});
  const auto x = random_rows(rows, shape.in, 2);
  const BufferPtr in = backend->allocate(x.size() * sizeof(float));
  const BufferPtr out = backend->allocate(static_cast<std::size_t>(rows * shape.out) * sizeof(float));
  backend->upload(*in, 0, std::as_bytes(std::span(x)));
  const PreparedWeights* weights[] = {prepared.get()};
  const Matrix outs[] = {{out.get(), 0, rows, shape.out}};
  for (auto _ : state) {
    backend->linear(weights, {in.get(), 0, rows, shape.in}, outs);
    backend->sync();
  }
  set_rate(state, "OP/s", 2 * static_cast<double>(rows * shape.out * shape.in));
  set_rate(state, "bytes/s", static_cast<double>(prepared->bytes()));
}

}  // namespace

void register_benchmarks() {
  for (const Device& device : registry().devices())
    for (const LinearShape& shape : linear_shapes()) {
      if (shape.name != "tiny" && shape.name != "up") continue;
      for (const std::int64_t rows : {1, 16, 128}) {
        const std::string name =
            "linear/" + std::string(shape.name) + "/" + device.name + "/rows:" + std::to_string(rows);
        benchmark::RegisterBenchmark(name.c_str(), linear, device.name, shape, rows)->UseRealTime();
      }
    }
}

}  // namespace bitnet::benchmarks
