// Attention through the backend seam, KV cache included: "decode" is one token of one sequence after a
// context and is bound by the bytes of keys and values that it reads; "prefill" is a whole prompt in chunks
// of 512 and is bound by arithmetic. Caches rotate in "decode", so that each comes from memory, as those of
// the layers of a model do.
#include <array>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "bench.hpp"
#include "bitnet/benchmarks/workloads.hpp"
#include "bitnet/inference/register.hpp"

namespace bitnet::benchmarks {
namespace {

struct HeadShape {
  const char* name;
  std::int64_t heads, kv_heads, head_dim;
};
constexpr HeadShape kTiny{"tiny", 4, 2, 16}, kSmall{"small", 8, 4, 64}, k2b4t{"2b4t", 20, 5, 128};
constexpr std::int64_t kPage = 16, kChunk = 512;
constexpr std::size_t kBeyondCaches = std::size_t{128} << 20;  // bytes

BufferPtr upload(Backend& backend, const std::vector<float>& values) {
  BufferPtr buffer = backend.allocate(values.size() * sizeof(float));
  backend.upload(*buffer, 0, std::as_bytes(std::span(values)));
  return buffer;
}

/// Queries, keys and values of a prompt, and as many caches as asked for.
struct Setup {
  Setup(const HeadShape& s, std::int64_t n, DType type, std::size_t total_bytes)
      : shape(s),
        tokens(n),
        backend(inference::make_cpu_backend(context())),
        pages(static_cast<std::size_t>((n + kPage - 1) / kPage)) {
    std::iota(pages.begin(), pages.end(), 0);
    q = upload(*backend, random_rows(n, s.heads * s.head_dim, 1));
    k = upload(*backend, random_rows(n, s.kv_heads * s.head_dim, 2));
    v = upload(*backend, random_rows(n, s.kv_heads * s.head_dim, 3));
    out = backend->allocate(q->bytes());
    half_bytes = pages.size() * kv_page_bytes(type, kPage, s.kv_heads, s.head_dim);
    do {
      halves.push_back(backend->allocate(half_bytes));
      halves.push_back(backend->allocate(half_bytes));
      caches.push_back({halves[halves.size() - 2].get(), halves.back().get(),
                        static_cast<std::int64_t>(pages.size()), kPage, type});
    } while (halves.size() * half_bytes < total_bytes);
  }

  /// Tokens past … past + rows against everything before them.
  void run(const KvLayer& cache, std::int64_t past, std::int64_t rows) {
    const auto matrix = [&](const BufferPtr& b, std::int64_t n_heads) {
      const std::int64_t cols = n_heads * shape.head_dim;
      return Matrix{b.get(), static_cast<std::size_t>(past * cols) * sizeof(float), rows, cols};
    };
    const SequenceSlice slice{0, rows, past, pages};
    backend->attention({matrix(q, shape.heads),
                        matrix(k, shape.kv_heads),
                        matrix(v, shape.kv_heads),
                        matrix(out, shape.heads),
                        cache,
                        {&slice, 1},
                        shape.heads,
                        shape.kv_heads,
                        shape.head_dim});
  }
  void prefill(const KvLayer& cache) {
    for (std::int64_t past = 0; past < tokens; past += kChunk)
      run(cache, past, std::min(kChunk, tokens - past));
  }

  HeadShape shape;
  std::int64_t tokens;
  std::unique_ptr<Backend> backend;
  std::vector<std::int32_t> pages;
  BufferPtr q, k, v, out;
  std::size_t half_bytes;
  std::vector<BufferPtr> halves;
  std::vector<KvLayer> caches;
};

void decode(benchmark::State& state, HeadShape shape, std::int64_t tokens, DType type) {
  Setup setup(shape, tokens, type, shape.head_dim == kTiny.head_dim ? 0 : kBeyondCaches);
  for (const KvLayer& cache : setup.caches) setup.prefill(cache);
  std::size_t next = 0;
  for (auto _ : state) {
    setup.run(setup.caches[next], tokens - 1, 1);
    next = next + 1 < setup.caches.size() ? next + 1 : 0;
  }
  set_rate(state, "bytes/s", static_cast<double>(2 * setup.half_bytes));
}

void prefill(benchmark::State& state, HeadShape shape, std::int64_t tokens, DType type) {
  Setup setup(shape, tokens, type, 0);
  for (auto _ : state) setup.prefill(setup.caches[0]);
  // Two products of two operations for every pair that the causal mask leaves.
  const double pairs = static_cast<double>(tokens) * static_cast<double>(tokens + 1) / 2;
  set_rate(state, "FLOP/s", 4 * pairs * static_cast<double>(shape.heads * shape.head_dim));
}

}  // namespace

void register_benchmarks() {
  for (const HeadShape& shape : {kTiny, kSmall, k2b4t}) {
    const bool tiny = shape.head_dim == kTiny.head_dim;
    for (const DType type : {DType::kF16, DType::kI8, DType::kF32}) {
      const auto name = [&](const char* what, std::int64_t n) {
        return std::string(what) + "/" + shape.name + "/" + std::string(to_string(type)) +
               "/tokens:" + std::to_string(n);
      };
      for (const std::int64_t n : {128, 1024, 4096}) {
        if (tiny && n > 128) continue;
        benchmark::RegisterBenchmark(name("decode", n).c_str(), decode, shape, n, type)->UseRealTime();
      }
      for (const std::int64_t n : {128, 512, 4096}) {
        if (tiny != (n == 128)) continue;
        benchmark::RegisterBenchmark(name("prefill", n).c_str(), prefill, shape, n, type)
            ->UseRealTime()
            ->Unit(benchmark::kMillisecond);
      }
    }
  }
}

}  // namespace bitnet::benchmarks
