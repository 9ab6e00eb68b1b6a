// The output head: one or several rows times a [vocabulary, hidden] matrix, as int8 on every instruction set
// of this CPU, and as f16 (BITNET_ISA's). GB/s of weights is what counts for one row; read/memory in gemv.cpp
// is a limit to compare with. Each row's quantisation is part of the int8 figure.
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bench.hpp"
#include "bitnet/benchmarks/workloads.hpp"
#include "bitnet/core/dtype.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/quant/int8_linear.hpp"

namespace bitnet::benchmarks {
namespace {

constexpr LinearShape kShapes[] = {{"tiny", 500, 64}, {"2b4t", 128256, 2560}};

/// Weights of any row, as fast as they can be made up: what they are does not matter for the speed.
void some_rows(std::int64_t begin, std::int64_t end, std::int64_t in, float* to) {
  for (std::int64_t i = begin * in; i < end * in; ++i)
    *to++ = static_cast<float>(i * 2654435761 % 65536 - 32768);
}

/// One matrix in memory at a time: the benchmarks of a shape follow each other.
const quant::Int8Linear& int8_head(const LinearShape& shape) {
  static std::map<std::string_view, std::unique_ptr<quant::Int8Linear>> made;
  auto& linear = made[shape.name];
  if (linear == nullptr) {
    linear = std::make_unique<quant::Int8Linear>(
        *context(), shape.out, shape.in,
        [&](std::int64_t begin, std::int64_t end, float* to) { some_rows(begin, end, shape.in, to); });
  }
  return *linear;
}

void int8(benchmark::State& state, const LinearShape& shape, std::int64_t rows, Isa isa) {
  const quant::Int8Linear& linear = int8_head(shape);
  const ExecutionContext machine({.threads = context()->threads(), .isa = isa});
  const auto x = random_rows(rows, shape.in, 2);
  quant::QuantizedRows q;
  std::vector<float> y(static_cast<std::size_t>(rows * shape.out));
  for (auto _ : state) {
    quant::quantize_rows(machine, x, rows, shape.in, q);
    linear.forward(machine, q, y);
    benchmark::ClobberMemory();
  }
  set_rate(state, "bytes/s", static_cast<double>(linear.bytes()));
  set_rate(state, "MAC/s", static_cast<double>(rows * shape.out * shape.in));
}

void f16(benchmark::State& state, const LinearShape& shape, std::int64_t rows) {
  const auto backend = inference::make_cpu_backend(context());
  PreparedPtr head;
  {
    const std::vector<std::uint16_t> w(static_cast<std::size_t>(shape.out * shape.in), f32_to_f16(0.5f));
    LinearWeights weights;
    weights.out = shape.out;
    weights.in = shape.in;
    weights.dense = std::as_bytes(std::span(w));
    weights.dense_type = DType::kF16;
    head = backend->prepare_embedding(weights);
  }
  const auto x = random_rows(rows, shape.in, 2);
  const BufferPtr in = backend->allocate(x.size() * sizeof(float));
  backend->upload(*in, 0, std::as_bytes(std::span(x)));
  const BufferPtr out = backend->allocate(static_cast<std::size_t>(rows * shape.out) * sizeof(float));
  std::vector<std::int32_t> all;
  for (std::int32_t r = 0; r < rows; ++r) all.push_back(r);
  for (auto _ : state)
    backend->logits(*head, {in.get(), 0, rows, shape.in}, all, {out.get(), 0, rows, shape.out});
  set_rate(state, "bytes/s", static_cast<double>(head->bytes()));
  set_rate(state, "MAC/s", static_cast<double>(rows * shape.out * shape.in));
}

}  // namespace

void register_benchmarks() {
  for (const LinearShape& shape : kShapes) {
    const std::string name = "head/" + std::string(shape.name);
    for (const std::int64_t rows : {1, 4, 16, 128}) {
      const std::string suffix = "/rows:" + std::to_string(rows);
      for (const Isa isa : compiled_isas()) {
        if (!is_supported(isa)) continue;
        benchmark::RegisterBenchmark((name + "/int8/" + std::string(to_string(isa)) + suffix).c_str(), int8,
                                     std::cref(shape), rows, isa)
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
      }
      benchmark::RegisterBenchmark((name + "/f16" + suffix).c_str(), f16, std::cref(shape), rows)
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond);
    }
  }
}

}  // namespace bitnet::benchmarks
