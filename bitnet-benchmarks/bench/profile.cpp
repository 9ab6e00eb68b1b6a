// What the profiler costs: a zone that is off or on beside none, the same around an op of the CPU backend,
// and decoded tokens without and with it, by turns.
#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <memory>
#include <vector>

#include "bench.hpp"
#include "bitnet/benchmarks/models.hpp"
#include "bitnet/core/profiler.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/inference/session.hpp"

namespace bitnet::benchmarks {
namespace {

constexpr std::size_t kCapacity = 1 << 16;

/// Some work that the compiler must leave where it is.
inline void work(std::uint64_t& x) { benchmark::DoNotOptimize(x = x * 3 + 1); }

void no_zone(benchmark::State& state) {
  std::uint64_t x = 1;
  for (auto _ : state) work(x);
}

void zone(benchmark::State& state, bool on) {
  Profiler profiler(kCapacity);
  Profiler* p = on ? &profiler : nullptr;
  benchmark::DoNotOptimize(p);
  std::uint64_t x = 1;
  std::size_t n = 0;
  for (auto _ : state) {
    const ProfileZone measured(p, "zone");
    work(x);
    if (on && ++n % kCapacity == 0) profiler.clear();  // so that every zone is stored
  }
}

void op(benchmark::State& state, bool on) {
  const auto backend = inference::make_cpu_backend(context());
  const BufferPtr memory = backend->allocate(64);
  Profiler profiler(kCapacity);
  if (on) backend->set_profiler(&profiler);
  std::size_t n = 0;
  for (auto _ : state) {
    backend->add({memory.get(), 0, 1, 8}, {memory.get(), 32, 1, 8});
    if (on && ++n % kCapacity == 0) profiler.clear();
  }
}

double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

/// An iteration is two tokens after `past` others, one without and one with the profiler, in changing order,
/// so that a machine that drifts does to both the same. "overhead_percent": the median of the differences of
/// such pairs ÷ the median time without; "standard_error_percent": of that median, were the differences
/// normal (1.25 · 1.48 · their median deviation ÷ √pairs).
void decode(benchmark::State& state, const ModelShape& shape, std::int64_t past) {
  using Clock = std::chrono::steady_clock;
  const auto model = random_model(shape.config, inference::make_cpu_backend(context()), 1);
  inference::Session session(model, {.n_ctx = past + 1, .chunk_rows = 128});
  const std::vector<TokenId> ids(static_cast<std::size_t>(past), 1);
  session.evaluate(ids);
  Profiler profiler(kCapacity);
  std::array<std::vector<double>, 2> seconds;  // off, on
  std::size_t zones = 0;
  for (auto _ : state) {
    const bool on_first = seconds[0].size() % 2 == 1;
    for (const bool on : {on_first, !on_first}) {
      profiler.clear();
      model->backend().set_profiler(on ? &profiler : nullptr);
      const Clock::time_point begin = Clock::now();
      benchmark::DoNotOptimize(session.evaluate(std::span(ids).last(1)).data());
      const Clock::time_point end = Clock::now();
      seconds[on ? 1 : 0].push_back(std::chrono::duration<double>(end - begin).count());
      if (on) zones = profiler.events().size();
      session.truncate(past);
    }
  }
  model->backend().set_profiler(nullptr);
  std::vector<double> differences, deviations;
  for (std::size_t i = 0; i < seconds[0].size(); ++i) differences.push_back(seconds[1][i] - seconds[0][i]);
  const double off = median(seconds[0]), more = median(differences);
  for (const double d : differences) deviations.push_back(std::abs(d - more));
  const double error = 1.25 * 1.48 * median(deviations) / std::sqrt(static_cast<double>(differences.size()));
  state.counters["off_ms"] = 1e3 * off;
  state.counters["on_ms"] = 1e3 * median(seconds[1]);
  state.counters["overhead_percent"] = 100 * more / off;
  state.counters["standard_error_percent"] = 100 * error / off;
  state.counters["zones"] = static_cast<double>(zones);
}

}  // namespace

void register_benchmarks() {
  benchmark::RegisterBenchmark("profile/tiny/no_zone", no_zone);
  for (const bool on : {false, true}) {
    const std::string suffix = on ? "on" : "off";
    benchmark::RegisterBenchmark(("profile/tiny/zone/" + suffix).c_str(),
                                 [on](benchmark::State& s) { zone(s, on); });
    benchmark::RegisterBenchmark(("profile/tiny/add_1x8/" + suffix).c_str(),
                                 [on](benchmark::State& s) { op(s, on); });
  }
  // A fixed number of pairs, since the model is made anew for every attempt of Google Benchmark's.
  for (const ModelShape& shape : model_shapes()) {
    benchmark::RegisterBenchmark(("profile/decode/" + std::string(shape.name) + "/pairs").c_str(), decode,
                                 shape, 32)
        ->Iterations(shape.name == "2b4t" ? 500 : 2000)
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  }
}

}  // namespace bitnet::benchmarks
