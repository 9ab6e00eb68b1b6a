// Attention through the backend seam, KV cache included, for every instruction set of this CPU: "decode" is
// one token of one sequence after a context and is bound by the bytes of keys and values that it reads;
// "prefill" is a whole prompt in chunks of 512 and is bound by arithmetic, which for float caches stands
// beside the f32 peak. Caches rotate in "decode", so that each comes from memory, as those of the layers of a
// model do.
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
  Setup(Isa isa, const HeadShape& s, std::int64_t n, DType type, std::size_t total_bytes)
      : shape(s),
        tokens(n),
        backend(inference::make_cpu_backend(context(isa))),
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

  /// Fills all caches alike, on BITNET_ISA's kernels: they write what those of any instruction set write.
  void fill() {
    const auto fast = inference::make_cpu_backend(context());
    prefill(*fast, caches[0]);
    std::vector<std::byte> half(half_bytes);
    for (std::size_t i = 2; i < halves.size(); ++i) {
      fast->download(*halves[i % 2], 0, half);
      fast->upload(*halves[i], 0, half);
    }
  }

  /// Tokens past … past + rows against everything before them.
  void run(Backend& on, const KvLayer& cache, std::int64_t past, std::int64_t rows) {
    const auto matrix = [&](const BufferPtr& b, std::int64_t n_heads) {
      const std::int64_t cols = n_heads * shape.head_dim;
      return Matrix{b.get(), static_cast<std::size_t>(past * cols) * sizeof(float), rows, cols};
    };
    const SequenceSlice slice{0, rows, past, pages};
    on.attention({matrix(q, shape.heads),
                  matrix(k, shape.kv_heads),
                  matrix(v, shape.kv_heads),
                  matrix(out, shape.heads),
                  cache,
                  {&slice, 1},
                  shape.heads,
                  shape.kv_heads,
                  shape.head_dim});
  }
  void prefill(Backend& on, const KvLayer& cache) {
    for (std::int64_t past = 0; past < tokens; past += kChunk)
      run(on, cache, past, std::min(kChunk, tokens - past));
  }
  /// Two products of two operations for every pair of a query and a key.
  double operations(double pairs) const {
    return 4 * pairs * static_cast<double>(shape.heads * shape.head_dim);
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

void decode(benchmark::State& state, Isa isa, HeadShape shape, std::int64_t tokens, DType type) {
  Setup setup(isa, shape, tokens, type, shape.head_dim == kTiny.head_dim ? 0 : kBeyondCaches);
  setup.fill();
  std::size_t next = 0;
  for (auto _ : state) {
    setup.run(*setup.backend, setup.caches[next], tokens - 1, 1);
    next = next + 1 < setup.caches.size() ? next + 1 : 0;
  }
  set_rate(state, "OP/s", setup.operations(static_cast<double>(tokens)));
  set_rate(state, "bytes/s", static_cast<double>(2 * setup.half_bytes));
}

void prefill(benchmark::State& state, Isa isa, HeadShape shape, std::int64_t tokens, DType type) {
  Setup setup(isa, shape, tokens, type, 0);
  // The pairs that the causal mask leaves.
  const double n = static_cast<double>(tokens), operations = setup.operations(n * (n + 1) / 2);
  F32Peak peak(context(isa));
  for (auto _ : state) setup.prefill(*setup.backend, setup.caches[0]);
  if (type != DType::kI8) peak.report(state, operations);
  set_rate(state, "OP/s", operations);
  set_rate(state, "bytes/s",
           static_cast<double>(2 * setup.half_bytes + 2 * setup.q->bytes() + 2 * setup.k->bytes()));
}

}  // namespace

void register_benchmarks() {
  const auto add = [](const std::string& name, auto* body, Isa isa, const HeadShape& shape, std::int64_t n,
                      DType type) {
    return benchmark::RegisterBenchmark((name + "/tokens:" + std::to_string(n)).c_str(), body, isa, shape, n,
                                        type)
        ->UseRealTime();
  };
  for (const HeadShape& shape : {kTiny, kSmall, k2b4t}) {
    const bool tiny = shape.head_dim == kTiny.head_dim;
    for_each_isa(std::string("attention/") + shape.name, [&](const std::string& prefix, Isa isa) {
      for (const DType type : {DType::kF16, DType::kI8, DType::kF32}) {
        const std::string name = prefix + "/" + std::string(to_string(type));
        for (const std::int64_t n : {128, 1024, 4096})
          if (!tiny || n == 128) add(name + "/decode", decode, isa, shape, n, type);
        for (const std::int64_t n : {128, 512, 4096})
          if (tiny == (n == 128))
            add(name + "/prefill", prefill, isa, shape, n, type)->Unit(benchmark::kMillisecond);
      }
    });
  }
}

}  // namespace bitnet::benchmarks
