// Matrix products of tensors: axes and strides are sorted out here, the arithmetic is bitnet::gemm()'s
// (f32_kernels.hpp), a vector's through the kernels of rows. i8 goes through floats that hold its sums.
#include <algorithm>
#include <array>
#include <vector>

#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/ops.hpp"
#include "ops/checks.hpp"
#include "ops/convert.hpp"
#include "ops/loops.hpp"

namespace bitnet::ops {
namespace {

/// One matrix of a product: where its first element is, in elements, and its strides.
struct Layout {
  std::int64_t row, col;
};

/// The operands with two matrix axes, batch axes broadcast, and the shape of the result with both axes.
struct Product {
  Tensor a, b;  // [batch…, m, k], [batch…, k, n]
  Shape shape;  // [batch…, m, n]
  std::int64_t m, n, k;

  Layout layout(const Tensor& t) const {
    const auto s = t.strides();
    return {s[s.size() - 2], s[s.size() - 1]};
  }
};

Shape with_axes(std::span<const std::int64_t> batch, std::int64_t rows, std::int64_t cols) {
  std::vector<std::int64_t> dims(batch.begin(), batch.end());
  dims.push_back(rows);
  dims.push_back(cols);
  return Shape(dims);
}

/// A vector as a matrix: [k] as [1, k] on the left, as [k, 1] on the right; strides stay.
Tensor as_matrix(const Tensor& t, bool left) {
  if (t.shape().rank() != 1) return t;
  const std::int64_t k = t.shape()[0];
  const Tensor row = t.broadcast_to({1, k});
  return left ? row : row.transpose(0, 1);
}

Product plan(const Tensor& a, const Tensor& b) {
  if (a.shape().rank() == 0 || b.shape().rank() == 0)
    invalid(fmt::format("matmul: {} and {}: a scalar has no axis to sum over", describe(a), describe(b)));
  Product p{as_matrix(a, true), as_matrix(b, false), {}, 0, 0, 0};
  p.m = p.a.shape()[-2];
  p.k = p.a.shape()[-1];
  p.n = p.b.shape()[-1];
  if (p.k != p.b.shape()[-2])
    invalid(fmt::format("matmul: {} and {}: {} columns on the left, {} rows on the right", describe(a),
                        describe(b), p.k, p.b.shape()[-2]));
  const auto batch_of = [](const Tensor& t) { return t.shape().dims().first(t.shape().rank() - 2); };
  const Shape batch =
      with_context(fmt::format("matmul: batches of {} and {}", describe(a), describe(b)),
                   [&] { return broadcast_shapes(Shape(batch_of(p.a)), Shape(batch_of(p.b))); });
  p.shape = with_axes(batch.dims(), p.m, p.n);
  p.a = p.a.broadcast_to(with_axes(batch.dims(), p.m, p.k));
  p.b = p.b.broadcast_to(with_axes(batch.dims(), p.k, p.n));
  return p;
}

/// Calls body(a's, b's and c's offset in elements) for every matrix of the batch; on all threads if asked.
template <class Body>
void for_each_matrix(const ExecutionContext& context, const Product& p, bool parallel, Body body) {
  const std::size_t rank = p.shape.rank() - 2;
  std::int64_t count = 1;
  for (std::size_t d = 0; d < rank; ++d) count *= p.shape.dims()[d];
  const auto run = [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i) {
      auto rest = static_cast<std::int64_t>(i);
      std::int64_t a = 0, b = 0;
      for (std::size_t d = rank; d-- > 0;) {
        const std::int64_t at = rest % p.shape.dims()[d];
        rest /= p.shape.dims()[d];
        a += at * p.a.strides()[d];
        b += at * p.b.strides()[d];
      }
      body(a, b, static_cast<std::int64_t>(i) * p.m * p.n);
    }
  };
  if (parallel && count > 1)
    context.parallel_for(static_cast<std::size_t>(count), 1, run);
  else
    run(0, static_cast<std::size_t>(count));
}

/// How a product with a vector reads the matrix: `n` outputs that lie n_step apart in it, sums over k_step.
struct VectorProduct {
  const float* matrix;
  std::int64_t n, n_step, k, k_step;
};

/// y[j] = Σ v[k]·matrix(k, j), gemm's chains without its panels; false for strides that it cannot read.
bool vector_product(const ExecutionContext& context, const VectorProduct& p, const float* v, float* y) {
  const bool columns = p.n_step == 1;
  if (p.k == 0 || (!columns && p.k_step != 1)) return false;
  const Tables t = tables(context.isa());
  const auto grain = static_cast<std::size_t>(4 * kParallel / (p.k + 1) + 64);
  context.parallel_for(static_cast<std::size_t>(p.n), grain, [&](std::size_t begin, std::size_t end) {
    const auto first = static_cast<std::int64_t>(begin), count = static_cast<std::int64_t>(end - begin);
    const float* const matrix = p.matrix + first * p.n_step;
    if (!columns) return t.tensor.matvec(matrix, p.n_step, count, v, p.k, y + first);
    std::fill_n(y + first, count, 0.0f);
    constexpr std::int64_t kRows = 32;  // read side by side
    for (std::int64_t k = 0; k < p.k; k += kRows)
      t.f32.axpy_rows(v + k, matrix + k * p.k_step, p.k_step, std::min(kRows, p.k - k), y + first,
                      end - begin);
  });
  return true;
}

Tensor float_product(const ExecutionContext& context, const Product& p) {
  Tensor out = make_tensor(context, DType::kF32, p.shape);
  if (out.numel() == 0) return out;
  const auto* const a = reinterpret_cast<const float*>(p.a.data());
  const auto* const b = reinterpret_cast<const float*>(p.b.data());
  auto* const c = reinterpret_cast<float*>(out.data());
  const Layout la = p.layout(p.a), lb = p.layout(p.b);
  // Below a million multiply-adds gemm() takes one thread: the batch is then what is cut.
  const bool small = static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k) < 1e6;
  for_each_matrix(context, p, small, [&](std::int64_t oa, std::int64_t ob, std::int64_t oc) {
    // With one row or column: (a·b)ᵀ = bᵀ·aᵀ, the same chains either way.
    if (p.n == 1 && lb.row == 1 &&
        vector_product(context, {a + oa, p.m, la.row, p.k, la.col}, b + ob, c + oc))
      return;
    if (p.m == 1 && la.col == 1 &&
        vector_product(context, {b + ob, p.n, lb.col, p.k, lb.row}, a + oa, c + oc))
      return;
    if (p.n == 1 && p.m > 1)  // rows of registers instead of one column
      gemm(context, 1, p.m, p.k, b + ob, lb.col, lb.row, a + oa, la.col, la.row, c + oc, p.m, false);
    else
      gemm(context, p.m, p.n, p.k, a + oa, la.row, la.col, b + ob, lb.row, lb.col, c + oc, p.n, false);
  });
  return out;
}

/// Through float products of up to 1024 columns: their sums, at most 1024 · 128 · 128 = 2^24, and all sums on
/// the way are integers that a float holds, so that nothing is rounded.
Tensor int_product(const ExecutionContext& context, const Tensor& a, const Tensor& b) {
  constexpr std::int64_t kMost = 131071;  // 128 · 128 · 131071 < 2^31
  constexpr std::int64_t kExact = 1024;
  const std::int64_t size = a.shape()[-1], axis = b.shape().rank() == 1 ? 0 : -2;
  if (size > kMost)
    invalid(fmt::format("matmul: {} and {}: sums of {} products of i8 may overflow i32, at most {} do not",
                        describe(a), describe(b), size, kMost));
  const auto part = [&](std::int64_t begin) {
    const std::int64_t end = std::min(begin + kExact, size);
    const Product p = plan(converted(context, a.slice(-1, begin, end), DType::kF32),
                           converted(context, b.slice(axis, begin, end), DType::kF32));
    return converted(context, float_product(context, p), DType::kI32);
  };
  Tensor out = part(0);
  for (std::int64_t k = kExact; k < size; k += kExact) binary_in_place(context, Binary::kAdd, out, part(k));
  return out;
}

/// Without the axes that stood for vectors.
Tensor drop_axes(const Tensor& out, bool row, bool col) {
  std::vector<std::int64_t> dims(out.shape().dims().begin(), out.shape().dims().end());
  if (col) dims.pop_back();
  if (row) dims.erase(dims.end() - (col ? 1 : 2));
  return out.reshape(Shape(dims));
}

}  // namespace

Tensor matmul(const ExecutionContext& context, const Tensor& a, const Tensor& b) {
  same_dtype("matmul", a, b);
  if (a.dtype() == DType::kI32)
    throw Error(ErrorCode::kUnsupported,
                fmt::format("matmul: {} and {}: there are products of f32, f16, bf16 and i8", describe(a),
                            describe(b)));
  const Product p = plan(a, b);  // errors name the operands as they were given
  Tensor out;
  if (a.dtype() == DType::kI8) {
    out = int_product(context, a, b);
  } else {
    out = a.dtype() == DType::kF32
              ? float_product(context, p)
              : converted(context,
                          float_product(context, plan(converted(context, a, DType::kF32),
                                                      converted(context, b, DType::kF32))),
                          a.dtype());
  }
  return drop_axes(out, a.shape().rank() == 1, b.shape().rank() == 1);
}

}  // namespace bitnet::ops
