// What it costs to hand work to the threads of an ExecutionContext and to take it back: forks with nothing to
// do, and with some µs of work a thread, back to back and after a pause on the caller's side; and the same of
// nested forks, which a oneTBB arena runs (its caller does empty parts by itself: compare those with work).
// Run it with two threads or more.
#include <atomic>
#include <chrono>
#include <cstddef>
#include <string>

#include "bench.hpp"

namespace bitnet::benchmarks {
namespace {

using Clock = std::chrono::steady_clock;

void spend(std::chrono::nanoseconds time) {
  for (const auto end = Clock::now() + time; Clock::now() < end;) {
  }
}

/// A fork of one part a thread with `work` each; `pause` on the calling thread before it is not counted.
void fork(benchmark::State& state, std::chrono::nanoseconds work, std::chrono::nanoseconds pause) {
  const ExecutionContext& c = *context();
  for (auto _ : state) {
    spend(pause);
    const auto begin = Clock::now();
    c.parallel_for(c.threads(), 1, [&](std::size_t, std::size_t) {
      if (work.count() > 0) spend(work);
    });
    state.SetIterationTime(std::chrono::duration<double>(Clock::now() - begin).count());
  }
}

/// fork() in part 0 of another fork, whose other parts sleep: their cores are free.
void nested(benchmark::State& state, std::chrono::nanoseconds work, std::chrono::nanoseconds pause) {
  const ExecutionContext& c = *context();
  std::atomic<bool> done{false};
  c.parallel_for(c.threads(), 1, [&](std::size_t begin, std::size_t) {
    if (begin > 0) return done.wait(false);
    fork(state, work, pause);
    done = true;
    done.notify_all();
  });
}

}  // namespace

void register_benchmarks() {
  using std::chrono::microseconds, std::chrono::nanoseconds;
  for (const auto run : {fork, nested}) {
    for (const auto work : {nanoseconds(0), nanoseconds(4800)}) {
      for (const auto pause : {microseconds(0), microseconds(5), microseconds(100), microseconds(5000)}) {
        const std::string name = std::string("fork/tiny/") + (run == nested ? "nested/" : "") +
                                 "work:" + std::to_string(work.count()) +
                                 "ns/pause:" + std::to_string(pause.count()) + "us";
        benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& s) { run(s, work, pause); })
            ->UseManualTime()
            ->Iterations(pause < microseconds(1000) ? 2000 : 40);  // the pauses are not in the time
      }
    }
  }
}

}  // namespace bitnet::benchmarks
