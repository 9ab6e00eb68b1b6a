// The memory pool beside malloc, oneTBB's scalable_malloc and mimalloc: allocating and freeing some blocks of
// one size in turn on one thread, and two threads of which one allocates and the other frees. Reported is the
// time of one call. mimalloc is loaded at run time, since linking it would replace malloc; without it at
// configure time its rows are absent. Take medians: --benchmark_repetitions=9.
#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bench.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"

// What is not instrumented hands memory from thread to thread in ways that ThreadSanitizer does not see.
#if defined(__SANITIZE_THREAD__)
#define BITNET_OWN_ONLY 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define BITNET_OWN_ONLY 1
#endif
#endif
#if !defined(BITNET_OWN_ONLY)
#include <tbb/scalable_allocator.h>
#endif

namespace bitnet::benchmarks {
namespace {

using Clock = std::chrono::steady_clock;

struct Allocator {
  std::string name;
  void* (*allocate)(std::size_t);
  void (*free)(void*);
};

template <TrackingLevel Level>
HybridMemoryPool& pool() {
  static HybridMemoryPool made([] {
    MemoryPoolOptions options;
    options.tracking = Level;
    return options;
  }());
  return made;
}

template <TrackingLevel Level>
Allocator of_pool(std::string name) {
  return {std::move(name), [](std::size_t bytes) { return pool<Level>().allocate(bytes); },
          [](void* p) { pool<Level>().deallocate(p); }};
}

std::vector<Allocator> allocators() {
  std::vector<Allocator> out{of_pool<TrackingLevel::kBasic>("pool"),
                             of_pool<TrackingLevel::kNone>("pool_untracked"),
                             of_pool<TrackingLevel::kStandard>("pool_standard"),
                             of_pool<TrackingLevel::kDetailed>("pool_detailed"),
                             {"malloc", std::malloc, std::free}};
#if !defined(BITNET_OWN_ONLY)
  out.push_back({"scalable_malloc", scalable_malloc, scalable_free});
#if defined(BITNET_MIMALLOC)
  if (void* library = dlopen(BITNET_MIMALLOC, RTLD_NOW | RTLD_LOCAL)) {
    const auto allocate = reinterpret_cast<void* (*)(std::size_t)>(dlsym(library, "mi_malloc"));
    const auto free = reinterpret_cast<void (*)(void*)>(dlsym(library, "mi_free"));
    if (allocate != nullptr && free != nullptr) out.push_back({"mimalloc", allocate, free});
  }
#endif
#endif
  return out;
}

enum class Part { kAllocate, kFree };

/// Of so many blocks at a time, in the order of allocation; the first byte of each is written in between.
void alone(benchmark::State& state, const Allocator& a, std::size_t bytes, Part part) {
  const std::size_t n = bytes <= 65536 ? 256 : 16;
  std::vector<unsigned char*> blocks(n);
  for (auto _ : state) {
    const auto begin = Clock::now();
    for (auto& block : blocks) block = static_cast<unsigned char*>(a.allocate(bytes));
    const auto between = Clock::now();
    for (auto* block : blocks) *block = 1;
    const auto ready = Clock::now();
    for (auto* block : blocks) a.free(block);
    const auto end = Clock::now();
    const std::chrono::duration<double> time = part == Part::kAllocate ? between - begin : end - ready;
    state.SetIterationTime(time.count() / static_cast<double>(n));
  }
}

/// A ring from one thread to another. Each side looks at the other's place only when it would have to wait,
/// so that what is measured is the allocators and not the ring.
class Ring {
 public:
  static constexpr std::size_t kPlaces = 64;
  void push(void* p) {
    while (next_ - seen_read_ == kPlaces) wait_for(read_, seen_read_);
    places_[next_ % kPlaces] = p;
    written_.store(++next_, std::memory_order_release);
  }
  void* pop() {
    while (seen_written_ == taken_) wait_for(written_, seen_written_);
    void* p = places_[taken_ % kPlaces];
    read_.store(++taken_, std::memory_order_release);
    return p;
  }

 private:
  static void wait_for(const std::atomic<std::size_t>& place, std::size_t& seen) {
    const std::size_t before = seen;
    for (int looks = 1; (seen = place.load(std::memory_order_acquire)) == before; ++looks) {
      if (looks % 1024 == 0) std::this_thread::yield();
    }
  }
  std::array<void*, kPlaces> places_{};
  alignas(64) std::atomic<std::size_t> written_{0};
  alignas(64) std::atomic<std::size_t> read_{0};
  alignas(64) std::size_t next_ = 0, seen_read_ = 0;      // of the thread that pushes
  alignas(64) std::size_t taken_ = 0, seen_written_ = 0;  // of the one that pops
};

/// Writes as many blocks as a pass ever has at once, and frees them on another thread: what the system gives
/// for the first time it zeroes, which is no part of passing.
void fill(const Allocator& a, std::size_t bytes) {
  std::vector<void*> blocks(Ring::kPlaces + 2);
  for (void*& block : blocks) std::memset(block = a.allocate(bytes), 1, bytes);
  std::thread([&] {
    for (void* block : blocks) a.free(block);
  }).join();
}

/// The time in which one block is allocated by one thread and freed by another, both at work at once.
/// Seconds for `n` blocks from this thread to another.
double pass(const Allocator& a, std::size_t bytes, std::size_t n) {
  Ring ring;
  std::atomic<bool> go{false};
  std::thread other([&] {
    while (!go) std::this_thread::yield();
    for (std::size_t i = 0; i < n; ++i) a.free(ring.pop());
  });
  const auto begin = Clock::now();
  go = true;
  for (std::size_t i = 0; i < n; ++i) {
    auto* block = static_cast<unsigned char*>(a.allocate(bytes));
    *block = 1;
    ring.push(block);
  }
  other.join();
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

void passed(benchmark::State& state, const Allocator& a, std::size_t bytes) {
  const std::size_t n = bytes <= 65536 ? 20000 : 2000;
  fill(a, bytes);
  pass(a, bytes, n);
  for (auto _ : state) state.SetIterationTime(pass(a, bytes, n) / static_cast<double>(n));
}

}  // namespace

void register_benchmarks() {
  for (const Allocator& a : allocators()) {
    for (const std::size_t bytes : {16, 64, 256, 1024, 4096, 32768, 65536, 131072, 1048576, 8388608}) {
      const std::string size =
          "/" + std::string(bytes == 64 ? "tiny" : "bytes") + ":" + std::to_string(bytes);
      const auto add = [&](const std::string& what, int iterations, auto body) {
        benchmark::RegisterBenchmark((what + "/" + a.name + size).c_str(), body)
            ->UseManualTime()
            ->Iterations(iterations);
      };
      const int rounds = bytes <= 65536 ? 2000 : 500;
      add("allocate", rounds, [=](benchmark::State& s) { alone(s, a, bytes, Part::kAllocate); });
      add("free", rounds, [=](benchmark::State& s) { alone(s, a, bytes, Part::kFree); });
      add("passed", 10, [=](benchmark::State& s) { passed(s, a, bytes); });
    }
  }
}

}  // namespace bitnet::benchmarks
