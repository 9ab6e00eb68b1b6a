// The output head: one or several rows times a [vocabulary, hidden] matrix, as int8 and as f16, for every
// instruction set of this CPU. GB/s of weights is what counts for one row; read/memory in gemv.cpp is a limit
// to compare with. Each row's quantisation is part of the int8 figure.
#include <functional>
#include <memory>
#include <optional>
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

/// The last one made: the benchmarks of a shape follow each other. All instruction sets share its layout.
const quant::Int8Linear& int8_head(const LinearShape& shape) {
  static std::optional<quant::Int8Linear> made;
  if (!made || made->out() != shape.out || made->in() != shape.in) {
    made.reset();
    made.emplace(*context(), shape.out, shape.in, [&](std::int64_t begin, std::int64_t end, float* to) {
      some_rows(begin, end, shape.in, to);
    });
  }
  return *made;
}

/// An f16 head and the backend of one instruction set that it was prepared for.
struct F16Head {
  F16Head(const LinearShape& shape, Isa on) : isa(on), backend(inference::make_cpu_backend(context(on))) {
    const std::vector<std::uint16_t> w(static_cast<std::size_t>(shape.out * shape.in), f32_to_f16(0.5f));
    LinearWeights weights;
    weights.out = shape.out;
    weights.in = shape.in;
    weights.dense = std::as_bytes(std::span(w));
    weights.dense_type = DType::kF16;
    head = backend->prepare_embedding(weights);
  }
  Isa isa;
  std::unique_ptr<Backend> backend;
  PreparedPtr head;
};

/// The last one made: the benchmarks of a shape and an instruction set follow each other.
F16Head& f16_head(const LinearShape& shape, Isa isa) {
  static std::unique_ptr<F16Head> made;
  if (made == nullptr || made->isa != isa || made->head->out() != shape.out || made->head->in() != shape.in) {
    made.reset();
    made = std::make_unique<F16Head>(shape, isa);
  }
  return *made;
}

void set_rates(benchmark::State& state, const LinearShape& shape, std::int64_t rows, std::size_t bytes) {
  set_rate(state, "OP/s", 2 * static_cast<double>(rows * shape.out * shape.in));
  set_rate(state, "bytes/s", static_cast<double>(bytes));
}

void int8(benchmark::State& state, const LinearShape& shape, std::int64_t rows, Isa isa) {
  const quant::Int8Linear& linear = int8_head(shape);
  const ExecutionContext& machine = *context(isa);
  const auto x = random_rows(rows, shape.in, 2);
  quant::QuantizedRows q;
  std::vector<float> y(static_cast<std::size_t>(rows * shape.out));
  for (auto _ : state) {
    quant::quantize_rows(machine, x, rows, shape.in, q);
    linear.forward(machine, q, y);
    benchmark::ClobberMemory();
  }
  set_rates(state, shape, rows, linear.bytes());
}

void f16(benchmark::State& state, const LinearShape& shape, std::int64_t rows, Isa isa) {
  const F16Head& made = f16_head(shape, isa);
  const std::unique_ptr<Backend>& backend = made.backend;
  const PreparedPtr& head = made.head;
  const auto x = random_rows(rows, shape.in, 2);
  const BufferPtr in = backend->allocate(x.size() * sizeof(float));
  backend->upload(*in, 0, std::as_bytes(std::span(x)));
  const BufferPtr out = backend->allocate(static_cast<std::size_t>(rows * shape.out) * sizeof(float));
  std::vector<std::int32_t> all;
  for (std::int32_t r = 0; r < rows; ++r) all.push_back(r);
  for (auto _ : state)
    backend->logits(*head, {in.get(), 0, rows, shape.in}, all, {out.get(), 0, rows, shape.out});
  set_rates(state, shape, rows, head->bytes());
}

}  // namespace

void register_benchmarks() {
  for (const LinearShape& shape : kShapes) {
    const std::string head = "head/" + std::string(shape.name);
    const auto add = [&](const std::string& name, auto* body, Isa isa) {
      for (const std::int64_t rows : {1, 4, 16, 128})
        benchmark::RegisterBenchmark((name + "/rows:" + std::to_string(rows)).c_str(), body, std::cref(shape),
                                     rows, isa)
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
    };
    for_each_isa(head, [&](const std::string& name, Isa isa) { add(name + "/int8", int8, isa); });
    for_each_isa(head, [&](const std::string& name, Isa isa) { add(name + "/f16", f16, isa); });
  }
}

}  // namespace bitnet::benchmarks
