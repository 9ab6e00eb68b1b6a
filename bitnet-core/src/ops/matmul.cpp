// Matrix products of tensors: axes and strides are sorted out here, the arithmetic is bitnet::gemm()'s
// (f32_kernels.hpp) for floats and plain integer loops for i8.
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

Tensor float_product(const ExecutionContext& context, const Product& p) {
  Tensor out = Tensor::uninitialized(DType::kF32, p.shape);
  if (out.numel() == 0) return out;
  const auto* const a = reinterpret_cast<const float*>(p.a.data());
  const auto* const b = reinterpret_cast<const float*>(p.b.data());
  auto* const c = reinterpret_cast<float*>(out.data());
  const Layout la = p.layout(p.a), lb = p.layout(p.b);
  // Below a million multiply-adds gemm() takes one thread: the batch is then what is cut.
  const bool small = static_cast<double>(p.m) * static_cast<double>(p.n) * static_cast<double>(p.k) < 1e6;
  for_each_matrix(context, p, small, [&](std::int64_t oa, std::int64_t ob, std::int64_t oc) {
    if (p.n == 1 && p.m > 1)  // (a·b)ᵀ = bᵀ·aᵀ: the same chains, in rows of registers instead of one column
      gemm(context, 1, p.m, p.k, b + ob, lb.col, lb.row, a + oa, la.col, la.row, c + oc, p.m, false);
    else
      gemm(context, p.m, p.n, p.k, a + oa, la.row, la.col, b + ob, lb.row, lb.col, c + oc, p.n, false);
  });
  return out;
}

Tensor int_product(const ExecutionContext& context, const Product& p) {
  constexpr std::int64_t kMost = 131071;  // 128 · 128 · 131071 < 2^31
  if (p.k > kMost)
    invalid(fmt::format("matmul: {} and {}: sums of {} products of i8 may overflow i32, at most {} do not",
                        describe(p.a), describe(p.b), p.k, kMost));
  Tensor out(DType::kI32, p.shape);  // zeros: sums begin there
  const auto* const a = reinterpret_cast<const std::int8_t*>(p.a.data());
  const auto* const b = reinterpret_cast<const std::int8_t*>(p.b.data());
  auto* const c = reinterpret_cast<std::int32_t*>(out.data());
  const Layout la = p.layout(p.a), lb = p.layout(p.b);
  for_each_matrix(context, p, true, [&](std::int64_t oa, std::int64_t ob, std::int64_t oc) {
    for (std::int64_t i = 0; i < p.m; ++i)
      for (std::int64_t k = 0; k < p.k; ++k) {
        const std::int32_t x = a[oa + i * la.row + k * la.col];
        const std::int8_t* const row = b + ob + k * lb.row;
        std::int32_t* const to = c + oc + i * p.n;
        for (std::int64_t j = 0; j < p.n; ++j) to[j] += x * row[j * lb.col];
      }
  });
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
  Tensor out;
  if (a.dtype() == DType::kI8) {
    out = int_product(context, plan(a, b));
  } else {
    (void)plan(a, b);  // errors name the operands as they were given
    out = a.dtype() == DType::kF32
              ? float_product(context, plan(a, b))
              : float_product(context, plan(a.to(DType::kF32), b.to(DType::kF32))).to(a.dtype());
  }
  return drop_axes(out, a.shape().rank() == 1, b.shape().rank() == 1);
}

}  // namespace bitnet::ops
