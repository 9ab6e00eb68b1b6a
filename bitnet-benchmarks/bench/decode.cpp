// Whole forward passes of random models on the CPU: one token after a context ("decode") and a prompt
// ("prefill").
#include <map>
#include <memory>
#include <vector>

#include "bench.hpp"
#include "bitnet/benchmarks/models.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/inference/session.hpp"

namespace bitnet::benchmarks {
namespace {

// The last model made: the benchmarks of one model follow each other, and a large one takes seconds.
std::shared_ptr<const inference::Model> model_of(const ModelShape& shape) {
  static std::string_view name;
  static std::shared_ptr<const inference::Model> model;
  if (model == nullptr || name != shape.name) {
    model.reset();
    model = random_model(shape.config, inference::make_cpu_backend(context()), 1);
    name = shape.name;
  }
  return model;
}

std::vector<TokenId> some_tokens(const ModelConfig& config, std::int64_t n) {
  std::vector<TokenId> ids;
  for (std::int64_t i = 0; i < n; ++i)
    ids.push_back(static_cast<TokenId>((i * 7919 + 1) % config.vocab_size));
  return ids;
}

void decode(benchmark::State& state, const ModelShape& shape, std::int64_t past) {
  inference::Session session(model_of(shape), {.n_ctx = past + 1, .chunk_rows = 128});
  const auto ids = some_tokens(shape.config, past + 1);
  session.evaluate(std::span(ids).first(static_cast<std::size_t>(past)));
  for (auto _ : state) {
    benchmark::DoNotOptimize(session.evaluate(std::span(ids).last(1)).data());
    session.truncate(past);
  }
  set_rate(state, "tokens/s", 1);
}

void prefill(benchmark::State& state, const ModelShape& shape, std::int64_t n) {
  inference::Session session(model_of(shape), {.n_ctx = n, .chunk_rows = 128});
  const auto ids = some_tokens(shape.config, n);
  for (auto _ : state) {
    benchmark::DoNotOptimize(session.evaluate(ids).data());
    session.truncate(0);
  }
  set_rate(state, "tokens/s", static_cast<double>(n));
}

}  // namespace

void register_benchmarks() {
  for (const ModelShape& shape : model_shapes()) {
    const std::int64_t tokens = shape.name == "tiny" ? 32 : 128;
    const std::string suffix = "/" + std::string(shape.name) + "/";
    benchmark::RegisterBenchmark(("decode" + suffix + "past:" + std::to_string(tokens)).c_str(), decode,
                                 shape, tokens)
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
    benchmark::RegisterBenchmark(("prefill" + suffix + "tokens:" + std::to_string(tokens)).c_str(), prefill,
                                 shape, tokens)
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  }
}

}  // namespace bitnet::benchmarks
