// One quantised row times a ternary matrix: the inner work of decoding, for every instruction set of this CPU
// and both codes of the tiles. "cached" repeats one matrix; "memory" goes round so many copies that each
// comes from memory, as the layers of a large model do.
#include <cstdint>
#include <memory>
#include <vector>

#include "bench.hpp"
#include "bitnet/benchmarks/workloads.hpp"
#include "bitnet/quant/bit_linear.hpp"

namespace bitnet::benchmarks {
namespace {

constexpr std::size_t kBeyondCaches = std::size_t{256} << 20;  // bytes; several times the last-level cache

void gemv(benchmark::State& state, Isa isa, quant::TileCode code, LinearShape shape,
          std::size_t total_bytes) {
  const ExecutionContext& machine = *context(isa);
  const quant::TernaryWeights w = random_weights(shape, 1);
  std::vector<std::unique_ptr<quant::BitLinear>> copies;
  do copies.push_back(std::make_unique<quant::BitLinear>(machine, w, code));
  while (copies.size() * copies[0]->bytes() < total_bytes);
  quant::QuantizedRows q;
  quant::quantize_rows(machine, random_rows(1, shape.in, 2), 1, shape.in, q);
  std::vector<float> y(static_cast<std::size_t>(shape.out));
  std::size_t next = 0;
  for (auto _ : state) {
    copies[next]->forward(machine, q, y);
    next = next + 1 < copies.size() ? next + 1 : 0;
    benchmark::ClobberMemory();
  }
  set_rate(state, "OP/s", 2 * static_cast<double>(shape.out * shape.in));
  set_rate(state, "bytes/s", static_cast<double>(copies[0]->bytes()));
}

// What the threads read from memory with a plain loop: a yardstick for gemv/…/memory.
void read(benchmark::State& state) {
  const std::vector<std::uint64_t> words(kBeyondCaches / sizeof(std::uint64_t), 1);
  for (auto _ : state) {
    context()->parallel_for(words.size(), 1 << 20, [&](std::size_t begin, std::size_t end) {
      std::uint64_t sum = 0;
      for (std::size_t i = begin; i < end; ++i) sum += words[i];
      benchmark::DoNotOptimize(sum);
    });
  }
  set_rate(state, "bytes/s", static_cast<double>(kBeyondCaches));
}

}  // namespace

void register_benchmarks() {
  benchmark::RegisterBenchmark("read/memory", read)->UseRealTime();
  for (const LinearShape& shape : linear_shapes())
    for_each_kernel(
        "gemv/" + std::string(shape.name), [&](const std::string& name, Isa isa, quant::TileCode code) {
          benchmark::RegisterBenchmark((name + "/cached").c_str(), gemv, isa, code, shape, std::size_t{0})
              ->UseRealTime();
          if (shape.name != "tiny")
            benchmark::RegisterBenchmark((name + "/memory").c_str(), gemv, isa, code, shape, kBeyondCaches)
                ->UseRealTime();
        });
}

}  // namespace bitnet::benchmarks
