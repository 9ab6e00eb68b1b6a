// The table of float kernels, for every instruction set of this CPU: single vectors from the cache on one
// thread, rows times a matrix on one thread ("dots"), and the sgemm of training and of dense models on all
// threads, beside the f32 peak. Attention's kernels are in attention.cpp.
#include "bitnet/core/f32_kernels.hpp"

#include <cmath>
#include <tuple>
#include <utility>
#include <vector>

#include "bench.hpp"
#include "bitnet/benchmarks/workloads.hpp"
#include "bitnet/core/dtype.hpp"

namespace bitnet::benchmarks {
namespace {

struct VectorShape {
  const char* name;
  std::size_t n;
};
// Activations of microsoft/bitnet-b1.58-2B-4T.
constexpr VectorShape kVectors[] = {{"tiny", 260}, {"hidden", 2560}, {"ffn", 6912}};

std::vector<std::uint16_t> halves(const std::vector<float>& x) {
  std::vector<std::uint16_t> h;
  for (const float v : x) h.push_back(f32_to_f16(v));
  return h;
}

/// What the vector kernels work on, all of n elements. Values stay normal numbers however often a kernel that
/// works in place is repeated.
struct Vectors {
  explicit Vectors(std::size_t size)
      : n(size),
        x(random_rows(1, static_cast<std::int64_t>(n), 1)),
        y(random_rows(1, static_cast<std::int64_t>(n), 2)),
        out(n),
        half(halves(x)) {
    for (const float v : x) {
      negative.push_back(-std::abs(v));
      sign.push_back(v < 0 ? -1.0f : 1.0f);
    }
  }
  std::size_t n;
  std::vector<float> x, y, out, negative, sign;
  std::vector<std::uint16_t> half;  // of f16 and, read as such, of bf16
};

/// One kernel of the table, and what it counts as for each element.
struct VectorKernel {
  const char* name;
  double operations;  ///< an exponential, a comparison, a conversion are one each
  double bytes;       ///< read and written
  void (*call)(const F32Kernels& k, Vectors& v);
};

const VectorKernel kVectorKernels[] = {
    {"dot", 2, 8,
     [](const F32Kernels& k, Vectors& v) { benchmark::DoNotOptimize(k.dot(v.x.data(), v.y.data(), v.n)); }},
    {"dot_f16", 2, 6,
     [](const F32Kernels& k, Vectors& v) {
       benchmark::DoNotOptimize(k.dot_f16(v.half.data(), v.y.data(), v.n));
     }},
    {"dot_bf16", 2, 6,
     [](const F32Kernels& k, Vectors& v) {
       benchmark::DoNotOptimize(k.dot_bf16(v.half.data(), v.y.data(), v.n));
     }},
    {"axpy", 2, 12, [](const F32Kernels& k, Vectors& v) { k.axpy(0.5f, v.x.data(), v.y.data(), v.n); }},
    {"sum", 1, 4, [](const F32Kernels& k, Vectors& v) { benchmark::DoNotOptimize(k.sum(v.x.data(), v.n)); }},
    {"sum_squares", 2, 4,
     [](const F32Kernels& k, Vectors& v) { benchmark::DoNotOptimize(k.sum_squares(v.x.data(), v.n)); }},
    {"max", 1, 4, [](const F32Kernels& k, Vectors& v) { benchmark::DoNotOptimize(k.max(v.x.data(), v.n)); }},
    {"max_abs", 2, 4,
     [](const F32Kernels& k, Vectors& v) { benchmark::DoNotOptimize(k.max_abs(v.x.data(), v.n)); }},
    {"rms_norm", 4, 12,
     [](const F32Kernels& k, Vectors& v) { k.rms_norm(v.x.data(), v.y.data(), 1e-5f, v.out.data(), v.n); }},
    // x = exp(x − 1) stays in (0, 1].
    {"exp_sum", 3, 8,
     [](const F32Kernels& k, Vectors& v) { benchmark::DoNotOptimize(k.exp_sum(v.negative.data(), 1, v.n)); }},
    {"scale", 1, 8, [](const F32Kernels& k, Vectors& v) { k.scale(-1, v.y.data(), v.n); }},
    {"add", 1, 12, [](const F32Kernels& k, Vectors& v) { k.add(v.x.data(), v.y.data(), v.n); }},
    {"mul", 1, 12, [](const F32Kernels& k, Vectors& v) { k.mul(v.sign.data(), v.y.data(), v.n); }},
    {"relu2_gate", 3, 12,
     [](const F32Kernels& k, Vectors& v) { k.relu2_gate(v.x.data(), v.y.data(), v.out.data(), v.n); }},
    {"silu_gate", 4, 12,
     [](const F32Kernels& k, Vectors& v) { k.silu_gate(v.x.data(), v.y.data(), v.out.data(), v.n); }},
    // A pair is six operations. Cosines 0.6 and sines 0.8 turn without stretching.
    {"rope", 3, 12,
     [](const F32Kernels& k, Vectors& v) {
       k.rope(v.y.data(), v.out.data(), v.out.data() + v.n / 2, v.n / 2);
     }},
    {"f16_to_f32", 1, 6,
     [](const F32Kernels& k, Vectors& v) { k.f16_to_f32(v.half.data(), v.out.data(), v.n); }},
    {"bf16_to_f32", 1, 6,
     [](const F32Kernels& k, Vectors& v) { k.bf16_to_f32(v.half.data(), v.out.data(), v.n); }},
};

void vector_kernel(benchmark::State& state, const VectorKernel& kernel, Isa isa, std::size_t n) {
  const F32Kernels& k = f32_kernels(isa);
  Vectors v(n);
  for (std::size_t i = 0; i < n; ++i) v.out[i] = i < n / 2 ? 0.6f : 0.8f;
  for (auto _ : state) {
    kernel.call(k, v);
    benchmark::ClobberMemory();
  }
  set_rate(state, "OP/s", kernel.operations * static_cast<double>(n));
  set_rate(state, "bytes/s", kernel.bytes * static_cast<double>(n));
}

enum class WeightType : std::uint8_t { kF32, kF16, kBf16 };

/// y[rows, out] = x · wᵀ by the kernel that dense products, float caches and heads are made of.
void dots(benchmark::State& state, WeightType type, Isa isa, LinearShape shape, std::int64_t rows) {
  const F32Kernels& k = f32_kernels(isa);
  const auto x = random_rows(rows, shape.in, 1);
  std::vector<const float*> row;
  for (std::int64_t r = 0; r < rows; ++r) row.push_back(x.data() + r * shape.in);
  const auto w = random_rows(shape.out, shape.in, 2);
  const auto narrow = type == WeightType::kF32 ? std::vector<std::uint16_t>() : halves(w);
  std::vector<float> y(static_cast<std::size_t>(rows * shape.out));
  const auto n = static_cast<std::size_t>(shape.in);
  for (auto _ : state) {
    if (type == WeightType::kF32) {
      k.dots(row.data(), rows, w.data(), shape.in, shape.out, n, y.data(), shape.out);
    } else {
      (type == WeightType::kF16 ? k.dots_f16 : k.dots_bf16)(row.data(), rows, narrow.data(), shape.in,
                                                            shape.out, n, y.data(), shape.out);
    }
    benchmark::ClobberMemory();
  }
  const auto weights = static_cast<double>(shape.out * shape.in);
  set_rate(state, "OP/s", 2 * weights * static_cast<double>(rows));
  set_rate(state, "bytes/s", weights * (type == WeightType::kF32 ? 4 : 2));
}

/// A weighted sum of `rows` rows of n floats.
void axpy_rows(benchmark::State& state, Isa isa, std::int64_t rows, std::int64_t n) {
  const F32Kernels& k = f32_kernels(isa);
  const auto a = random_rows(1, rows, 1), x = random_rows(rows, n, 2);
  std::vector<float> y(static_cast<std::size_t>(n));
  for (auto _ : state) {
    k.axpy_rows(a.data(), x.data(), n, rows, y.data(), y.size());
    benchmark::ClobberMemory();
  }
  set_rate(state, "OP/s", 2 * static_cast<double>(x.size()));
  set_rate(state, "bytes/s", 4 * static_cast<double>(a.size() + x.size() + 2 * y.size()));
}

/// y[rows, out] = x · wᵀ on all threads.
void sgemm(benchmark::State& state, Isa isa, LinearShape shape, std::int64_t rows) {
  const auto x = random_rows(rows, shape.in, 1), w = random_rows(shape.out, shape.in, 2);
  std::vector<float> y(static_cast<std::size_t>(rows * shape.out));
  const double operations = 2 * static_cast<double>(rows * shape.out * shape.in);
  F32Peak peak(context(isa));
  for (auto _ : state) {
    gemm(*context(isa), rows, shape.out, shape.in, x.data(), shape.in, 1, w.data(), 1, shape.in, y.data(),
         shape.out, false);
    benchmark::ClobberMemory();
  }
  peak.report(state, operations);
  set_rate(state, "OP/s", operations);
  set_rate(state, "bytes/s", 4 * static_cast<double>(x.size() + w.size() + y.size()));
}

template <class... Arguments>
void add(const std::string& name, Arguments&&... arguments) {
  benchmark::RegisterBenchmark(name.c_str(), std::forward<Arguments>(arguments)...)->UseRealTime();
}

}  // namespace

void register_benchmarks() {
  for (const VectorKernel& kernel : kVectorKernels)
    for (const VectorShape& shape : kVectors)
      for_each_isa(std::string(kernel.name) + "/" + shape.name,
                   [&](const std::string& name, Isa isa) { add(name, vector_kernel, kernel, isa, shape.n); });
  for (const auto& [prefix, rows, n] :
       {std::tuple("axpy_rows/tiny", 4, 16), std::tuple("axpy_rows/tile", 128, 128)})
    for_each_isa(prefix, [rows = rows, n = n](const std::string& name, Isa isa) {
      add(name, axpy_rows, isa, rows, n);
    });
  for (const LinearShape& shape : linear_shapes()) {
    if (shape.name != "tiny" && shape.name != "kv" && shape.name != "qo") continue;
    const std::string suffix = "/" + std::string(shape.name);
    for (const std::int64_t rows : {1, 4, 16, 128}) {
      if (shape.name == "tiny" && rows != 4) continue;
      const std::string last = "/rows:" + std::to_string(rows);
      for (const auto& [prefix, type] : {std::pair("dots", WeightType::kF32),
                                         {"dots_f16", WeightType::kF16},
                                         {"dots_bf16", WeightType::kBf16}}) {
        if (rows > 16) continue;  // of one call
        for_each_isa(prefix + suffix, [&, type = type](const std::string& name, Isa isa) {
          add(name + last, dots, type, isa, shape, rows);
        });
      }
      for_each_isa("sgemm" + suffix,
                   [&](const std::string& name, Isa isa) { add(name + last, sgemm, isa, shape, rows); });
    }
  }
}

}  // namespace bitnet::benchmarks
