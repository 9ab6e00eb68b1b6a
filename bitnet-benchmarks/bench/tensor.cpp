// Tensor ops and linear algebra of bitnet-core, by the names that compare_numpy.py measures in NumPy, too.
// Times are of whole calls, results allocated each time, as a caller sees them.
#include <functional>
#include <string>
#include <vector>

#include "bench.hpp"
#include "bitnet/benchmarks/workloads.hpp"
#include "bitnet/core/indexing.hpp"
#include "bitnet/core/linalg.hpp"
#include "bitnet/core/ops.hpp"
#include "bitnet/core/reductions.hpp"

namespace bitnet::benchmarks {
namespace {

Tensor random(std::int64_t rows, std::int64_t cols, std::uint64_t seed) {
  return Tensor::of<float>({rows, cols}, random_rows(rows, cols, seed));
}

/// a·aᵀ + n: symmetric positive definite.
Tensor positive(std::int64_t n) {
  const Tensor a = random(n, n, 9);
  Tensor p = ops::matmul(*context(), a, a.transpose(0, 1));
  for (std::int64_t i = 0; i < n; ++i)
    p.span<float>()[static_cast<std::size_t>(i * n + i)] += static_cast<float>(n);
  return p;
}

/// What is measured with matrices of n × n; compare_numpy.py lists the same names.
struct Case {
  const char* name;
  std::function<void(const ExecutionContext&)> run;
};

std::vector<Case> elementwise_cases(std::int64_t n) {
  using C = const ExecutionContext&;
  const Tensor x = random(n, n, 1), y = random(n, n, 2), row = random(1, n, 3), column = random(n, 1, 4);
  const Tensor index = [&] {
    Tensor t(DType::kI32, {n});
    for (std::int64_t i = 0; i < n; ++i)
      t.span<std::int32_t>()[static_cast<std::size_t>(i)] = static_cast<std::int32_t>(i * 7919 % n);
    return t;
  }();
  const Tensor w = row.reshape({n});
  return {
      {"add", [=](C c) { benchmark::DoNotOptimize(ops::add(c, x, y)); }},
      {"add_in_place",
       [=, z = x.to(DType::kF32)](C c) mutable { ops::binary_in_place(c, ops::Binary::kAdd, z, y); }},
      {"add_row", [=](C c) { benchmark::DoNotOptimize(ops::add(c, x, row)); }},
      {"add_column", [=](C c) { benchmark::DoNotOptimize(ops::add(c, x, column)); }},
      {"add_transposed", [=](C c) { benchmark::DoNotOptimize(ops::add(c, x, y.transpose(0, 1))); }},
      {"exp", [=](C c) { benchmark::DoNotOptimize(ops::unary(c, ops::Unary::kExp, x)); }},
      {"tanh", [=](C c) { benchmark::DoNotOptimize(ops::unary(c, ops::Unary::kTanh, x)); }},
      {"less", [=](C c) { benchmark::DoNotOptimize(ops::compare(c, ops::Comparison::kLess, x, y)); }},
      {"to_f16", [=](C) { benchmark::DoNotOptimize(x.to(DType::kF16)); }},
      {"transpose_copy", [=](C) { benchmark::DoNotOptimize(x.transpose(0, 1).contiguous()); }},
      {"sum_all", [=](C c) { benchmark::DoNotOptimize(ops::reduce(c, ops::Reduction::kSum, x)); }},
      {"sum_rows", [=](C c) { benchmark::DoNotOptimize(ops::reduce(c, ops::Reduction::kSum, x, {1})); }},
      {"sum_columns", [=](C c) { benchmark::DoNotOptimize(ops::reduce(c, ops::Reduction::kSum, x, {0})); }},
      {"max_rows", [=](C c) { benchmark::DoNotOptimize(ops::reduce(c, ops::Reduction::kMax, x, {1})); }},
      {"argmax_rows", [=](C c) { benchmark::DoNotOptimize(ops::argmax(c, x, 1)); }},
      {"softmax", [=](C c) { benchmark::DoNotOptimize(ops::softmax(c, x, 1)); }},
      {"layer_norm", [=](C c) { benchmark::DoNotOptimize(ops::layer_norm(c, x, w, w, 1e-5f)); }},
      {"take_rows", [=](C c) { benchmark::DoNotOptimize(ops::take(c, x, index, 0)); }},
      {"concat",
       [=](C c) {
         benchmark::DoNotOptimize(ops::concat(c, std::vector{x, y}, 0));
       }},
  };
}

std::vector<Case> matrix_cases(std::int64_t n) {
  using C = const ExecutionContext&;
  const Tensor a = random(n, n, 5), b = random(n, n, 6), spd = positive(n), side = random(n, 4, 7);
  const Tensor batch = Tensor::of<float>({16, n / 4, n / 4}, random_rows(n, n, 8));
  const Tensor vector = random(n, 1, 10).reshape({n}), tall = random(2 * n, n / 2, 11);
  const Tensor tall_side = random(2 * n, 1, 12);
  const Tensor bytes = ops::binary(*context(), ops::Binary::kMul, random(n, n, 13), 40).to(DType::kI8);
  const Tensor systems = positive(n / 4).broadcast_to({16, n / 4, n / 4}).contiguous();
  return {
      {"matmul", [=](C c) { benchmark::DoNotOptimize(ops::matmul(c, a, b)); }},
      {"matmul_transposed", [=](C c) { benchmark::DoNotOptimize(ops::matmul(c, a, b.transpose(0, 1))); }},
      {"matmul_batched", [=](C c) { benchmark::DoNotOptimize(ops::matmul(c, batch, batch)); }},
      {"matmul_vector", [=](C c) { benchmark::DoNotOptimize(ops::matmul(c, a, vector)); }},
      {"vector_matmul", [=](C c) { benchmark::DoNotOptimize(ops::matmul(c, vector, a)); }},
      {"matmul_i8", [=](C c) { benchmark::DoNotOptimize(ops::matmul(c, bytes, bytes)); }},
      {"solve", [=](C c) { benchmark::DoNotOptimize(linalg::solve(c, spd, side)); }},
      {"cholesky", [=](C c) { benchmark::DoNotOptimize(linalg::cholesky(c, spd)); }},
      {"cholesky_batched", [=](C c) { benchmark::DoNotOptimize(linalg::cholesky(c, systems)); }},
      {"qr", [=](C c) { benchmark::DoNotOptimize(linalg::qr(c, a)); }},
      {"svd", [=](C c) { benchmark::DoNotOptimize(linalg::svd(c, a)); }},
      {"symmetric_eigen", [=](C c) { benchmark::DoNotOptimize(linalg::symmetric_eigen(c, spd)); }},
      {"least_squares", [=](C c) { benchmark::DoNotOptimize(linalg::least_squares(c, tall, tall_side)); }},
  };
}

void add_all(const std::string& prefix, const std::vector<Case>& cases) {
  for (const Case& c : cases)
    benchmark::RegisterBenchmark((prefix + "/" + c.name).c_str(), [run = c.run](benchmark::State& state) {
      for (auto _ : state) {
        run(*context());
        benchmark::ClobberMemory();
      }
    })->UseRealTime();
}

}  // namespace

void register_benchmarks() {
  add_all("tensor/tiny", elementwise_cases(32));
  add_all("tensor/tiny", matrix_cases(32));
  add_all("tensor/1024", elementwise_cases(1024));
  add_all("tensor/256", matrix_cases(256));
}

}  // namespace bitnet::benchmarks
