// Elementwise ops over runs: operands that are not contiguous floats pass through a buffer in L1, then one
// call of the ISA's kernel. Integers are computed as int32 and wrap. The kernels are
// kernels/generic/elementwise.inl.hpp, the walk is loops.hpp.
#include <algorithm>
#include <array>
#include <cmath>

#include "bitnet/core/ops.hpp"
#include "ops/checks.hpp"
#include "ops/convert.hpp"
#include "ops/loops.hpp"

namespace bitnet::ops {
namespace {

template <std::size_t N>
using Offsets = std::array<std::int64_t, N>;

/// n elements of an operand as T: in place, from `buffer`, or one for all.
template <class T>
struct Lane {
  const T* p;
  bool one;
};

Lane<float> float_lane(const Tables& t, const Tensor& x, std::int64_t offset, std::int64_t stride,
                       std::int64_t n, float* buffer) {
  if (x.dtype() == DType::kF32 && stride <= 1)
    return {reinterpret_cast<const float*>(x.data()) + offset, stride == 0};
  load_f32(t, x.dtype(), x.data(), offset, stride, buffer, stride == 0 ? 1 : n);
  return {buffer, stride == 0};
}

Lane<std::int32_t> int_lane(const Tensor& x, std::int64_t offset, std::int64_t stride, std::int64_t n,
                            std::int32_t* buffer) {
  if (x.dtype() == DType::kI32 && stride <= 1)
    return {reinterpret_cast<const std::int32_t*>(x.data()) + offset, stride == 0};
  const std::int64_t count = stride == 0 ? 1 : n;
  for (std::int64_t i = 0; i < count; ++i)
    buffer[i] = x.dtype() == DType::kI32
                    ? reinterpret_cast<const std::int32_t*>(x.data())[offset + i * stride]
                    : reinterpret_cast<const std::int8_t*>(x.data())[offset + i * stride];
  return {buffer, stride == 0};
}

/// The low bits of int32 results to an i8 or i32 tensor.
void store_ints(const std::int32_t* from, Tensor& out, std::int64_t offset, std::int64_t stride,
                std::int64_t n) {
  for (std::int64_t i = 0; i < n; ++i) {
    if (out.dtype() == DType::kI32)
      reinterpret_cast<std::int32_t*>(out.data())[offset + i * stride] = from[i];
    else
      reinterpret_cast<std::int8_t*>(out.data())[offset + i * stride] = static_cast<std::int8_t>(from[i]);
  }
}

std::int32_t wrap(std::uint32_t v) { return static_cast<std::int32_t>(v); }

template <class Op>
void int_loop(Lane<std::int32_t> x, Lane<std::int32_t> y, std::int32_t* out, std::int64_t n, Op op) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = op(x.p[x.one ? 0 : i], y.p[y.one ? 0 : i]);
}

void int_binary(Binary op, Lane<std::int32_t> x, Lane<std::int32_t> y, std::int32_t* out, std::int64_t n) {
  using I = std::int32_t;
  using U = std::uint32_t;
  switch (op) {
    case Binary::kAdd:
      return int_loop(x, y, out, n, [](I a, I b) { return wrap(static_cast<U>(a) + static_cast<U>(b)); });
    case Binary::kSub:
      return int_loop(x, y, out, n, [](I a, I b) { return wrap(static_cast<U>(a) - static_cast<U>(b)); });
    case Binary::kMul:
      return int_loop(x, y, out, n, [](I a, I b) { return wrap(static_cast<U>(a) * static_cast<U>(b)); });
    case Binary::kMaximum:
      return int_loop(x, y, out, n, [](I a, I b) { return std::max(a, b); });
    case Binary::kMinimum:
      return int_loop(x, y, out, n, [](I a, I b) { return std::min(a, b); });
    case Binary::kDiv:
      return;  // refused before
  }
}

bool int_compare(Comparison op, std::int32_t a, std::int32_t b) {
  switch (op) {
    case Comparison::kEqual:
      return a == b;
    case Comparison::kNotEqual:
      return a != b;
    case Comparison::kLess:
      return a < b;
    case Comparison::kLessEqual:
      return a <= b;
    case Comparison::kGreater:
      return a > b;
    case Comparison::kGreaterEqual:
      return a >= b;
  }
  return false;
}

std::int32_t int_unary(Unary op, std::int32_t x) {
  const auto u = static_cast<std::uint32_t>(x);
  switch (op) {
    case Unary::kNeg:
      return wrap(0u - u);
    case Unary::kAbs:
      return x < 0 ? wrap(0u - u) : x;
    case Unary::kSquare:
      return wrap(u * u);
    default:  // kRelu; the others are refused before
      return std::max(x, 0);
  }
}

/// Where a run of float results goes: straight to an f32 output of stride 1, through `buffer` otherwise.
template <class Compute>
void float_result(const Tables& t, Tensor& out, std::int64_t offset, std::int64_t stride, std::int64_t n,
                  float* buffer, Compute compute) {
  if (out.dtype() == DType::kF32 && stride == 1)
    return compute(reinterpret_cast<float*>(out.data()) + offset);
  compute(buffer);
  store_f32(t, buffer, out.dtype(), out.data(), offset, stride, n);
}

/// out = x op y, all of one shape.
void run_binary(const ExecutionContext& context, Binary op, const Tensor& x, const Tensor& y, Tensor& out) {
  const auto loops = make_loops<3>(out.shape(), {x.strides(), y.strides(), out.strides()});
  const Tables t = tables(context.isa());
  const std::int64_t sx = loops.inner_stride(0), sy = loops.inner_stride(1), so = loops.inner_stride(2);
  for_each_run(context, loops, [&](const Offsets<3>& at, std::int64_t n) {
    if (is_float(out.dtype())) {
      float a[kRun], b[kRun], c[kRun];
      const auto lx = float_lane(t, x, at[0], sx, n, a), ly = float_lane(t, y, at[1], sy, n, b);
      float_result(t, out, at[2], so, n, c, [&](float* to) {
        t.tensor.binary[static_cast<std::size_t>(op)](lx.p, lx.one, ly.p, ly.one, to,
                                                      static_cast<std::size_t>(n));
      });
    } else {
      std::int32_t a[kRun], b[kRun], c[kRun];
      int_binary(op, int_lane(x, at[0], sx, n, a), int_lane(y, at[1], sy, n, b), c, n);
      store_ints(c, out, at[2], so, n);
    }
  });
}

/// out = op x, both of one shape.
void run_unary(const ExecutionContext& context, Unary op, const Tensor& x, Tensor& out) {
  const auto loops = make_loops<2>(out.shape(), {x.strides(), out.strides()});
  const Tables t = tables(context.isa());
  const std::int64_t sx = loops.inner_stride(0), so = loops.inner_stride(1);
  for_each_run(context, loops, [&](const Offsets<2>& at, std::int64_t n) {
    if (is_float(out.dtype())) {
      float a[kRun], c[kRun];
      Lane<float> lx = float_lane(t, x, at[0], sx, n, a);
      if (lx.one) {  // a repeated element: computed once per place all the same
        std::fill_n(a, n, float{*lx.p});
        lx = {a, false};
      }
      float_result(t, out, at[1], so, n, c, [&](float* to) {
        t.tensor.unary[static_cast<std::size_t>(op)](lx.p, to, static_cast<std::size_t>(n));
      });
    } else {
      std::int32_t a[kRun], c[kRun];
      const auto lx = int_lane(x, at[0], sx, n, a);
      for (std::int64_t i = 0; i < n; ++i) c[i] = int_unary(op, lx.p[lx.one ? 0 : i]);
      store_ints(c, out, at[1], so, n);
    }
  });
}

void check_unary(Unary op, const Tensor& x) {
  refuse_ternary(to_string(op), x);
  if (op != Unary::kNeg && op != Unary::kAbs && op != Unary::kSquare && op != Unary::kRelu)
    floats_only(to_string(op), x);
}

void check_binary(Binary op, const Tensor& x, const Tensor& y) {
  same_dtype(to_string(op), x, y);
  if (op == Binary::kDiv) floats_only("div", x);
}

/// Both of an op's shapes, with the op's name before the message.
Shape broadcast_for(std::string_view op, const Shape& a, const Shape& b) {
  return with_context(op, [&] { return broadcast_shapes(a, b); });
}

Tensor scalar_like(const ExecutionContext& context, Binary op, const Tensor& x, double s) {
  refuse_ternary(to_string(op), x);
  Tensor t = make_tensor(context, x.dtype(), {});
  store_element(x.dtype(), t.data(), 0, s);
  if (!is_float(x.dtype()) && load_element(x.dtype(), t.data(), 0) != s)
    invalid(fmt::format("{}: {} and the number {}, which {} does not hold", to_string(op), describe(x), s,
                        to_string(x.dtype())));
  return t;
}

void run_clamp(const ExecutionContext& context, const Tensor& x, float low, float high, Tensor& out) {
  const auto loops = make_loops<2>(out.shape(), {x.strides(), out.strides()});
  const Tables t = tables(context.isa());
  for_each_run(context, loops, [&](const Offsets<2>& at, std::int64_t n) {
    float a[kRun], c[kRun];
    load_f32(t, x.dtype(), x.data(), at[0], loops.inner_stride(0), a, n);
    float_result(t, out, at[1], loops.inner_stride(1), n, c,
                 [&](float* to) { t.tensor.clamp(a, low, high, to, static_cast<std::size_t>(n)); });
  });
}

void check_clamp(const Tensor& x, float low, float high) {
  floats_only("clamp", x);
  if (!(low <= high)) invalid(fmt::format("clamp: low {} and high {}: low ≤ high wanted", low, high));
}

}  // namespace

std::string_view to_string(Binary op) noexcept {
  constexpr std::string_view kNames[] = {"add", "sub", "mul", "div", "maximum", "minimum"};
  static_assert(std::size(kNames) == kBinaryOps);
  return kNames[static_cast<std::size_t>(op)];
}

std::string_view to_string(Comparison op) noexcept {
  constexpr std::string_view kNames[] = {"equal",      "not_equal", "less",
                                         "less_equal", "greater",   "greater_equal"};
  static_assert(std::size(kNames) == kComparisons);
  return kNames[static_cast<std::size_t>(op)];
}

std::string_view to_string(Unary op) noexcept {
  constexpr std::string_view kNames[] = {"neg",  "abs",     "square", "sqrt", "reciprocal", "exp",  "log",
                                         "tanh", "sigmoid", "relu",   "silu", "floor",      "ceil", "round"};
  static_assert(std::size(kNames) == kUnaryOps);
  return kNames[static_cast<std::size_t>(op)];
}

Shape broadcast_shapes(const Shape& a, const Shape& b) {
  const std::size_t rank = std::max(a.rank(), b.rank());
  std::array<std::int64_t, Shape::kMaxRank> dims{};
  for (std::size_t d = 0; d < rank; ++d) {  // from the last axis
    const std::int64_t x = d < a.rank() ? a.dims()[a.rank() - 1 - d] : 1,
                       y = d < b.rank() ? b.dims()[b.rank() - 1 - d] : 1;
    if (x != y && x != 1 && y != 1)
      invalid(fmt::format("shapes {} and {} do not broadcast: {} and {} on axis -{}", a.to_string(),
                          b.to_string(), x, y, d + 1));
    dims[rank - 1 - d] = x == 1 ? y : x;
  }
  return Shape(std::span<const std::int64_t>(dims.data(), rank));
}

Tensor binary(const ExecutionContext& context, Binary op, const Tensor& x, const Tensor& y) {
  check_binary(op, x, y);
  const Shape shape = broadcast_for(to_string(op), x.shape(), y.shape());
  Tensor out = make_tensor(context, x.dtype(), shape);
  run_binary(context, op, x.broadcast_to(shape), y.broadcast_to(shape), out);
  return out;
}

void binary_in_place(const ExecutionContext& context, Binary op, Tensor& x, const Tensor& y) {
  check_binary(op, x, y);
  check_writable(to_string(op), x);
  const Tensor view = with_context(to_string(op), [&] { return y.broadcast_to(x.shape()); });
  const bool same = view.data() == x.data() && std::ranges::equal(view.strides(), x.strides());
  run_binary(context, op, x, !same && may_overlap(x, view) ? copy_of(context, view) : view, x);
}

Tensor binary(const ExecutionContext& context, Binary op, const Tensor& x, double s) {
  return binary(context, op, x, scalar_like(context, op, x, s));
}

void binary_in_place(const ExecutionContext& context, Binary op, Tensor& x, double s) {
  binary_in_place(context, op, x, scalar_like(context, op, x, s));
}

Tensor compare(const ExecutionContext& context, Comparison op, const Tensor& x, const Tensor& y) {
  same_dtype(to_string(op), x, y);
  const Shape shape = broadcast_for(to_string(op), x.shape(), y.shape());
  Tensor out = make_tensor(context, DType::kI8, shape);
  const Tensor bx = x.broadcast_to(shape), by = y.broadcast_to(shape);
  const auto loops = make_loops<3>(shape, {bx.strides(), by.strides(), out.strides()});
  const Tables t = tables(context.isa());
  auto* const to = reinterpret_cast<std::int8_t*>(out.data());
  for_each_run(context, loops, [&](const Offsets<3>& at, std::int64_t n) {
    if (is_float(x.dtype())) {
      float a[kRun], b[kRun];
      const auto lx = float_lane(t, bx, at[0], loops.inner_stride(0), n, a),
                 ly = float_lane(t, by, at[1], loops.inner_stride(1), n, b);
      t.tensor.compare[static_cast<std::size_t>(op)](lx.p, lx.one, ly.p, ly.one, to + at[2],
                                                     static_cast<std::size_t>(n));
    } else {
      std::int32_t a[kRun], b[kRun];
      const auto lx = int_lane(bx, at[0], loops.inner_stride(0), n, a),
                 ly = int_lane(by, at[1], loops.inner_stride(1), n, b);
      for (std::int64_t i = 0; i < n; ++i)
        to[at[2] + i] = int_compare(op, lx.p[lx.one ? 0 : i], ly.p[ly.one ? 0 : i]) ? 1 : 0;
    }
  });
  return out;
}

Tensor where(const ExecutionContext& context, const Tensor& condition, const Tensor& x, const Tensor& y) {
  if (condition.dtype() != DType::kI8)
    invalid(fmt::format("where: condition is {}, i8 wanted", describe(condition)));
  same_dtype("where", x, y);
  const Shape shape = broadcast_for("where", broadcast_for("where", condition.shape(), x.shape()), y.shape());
  Tensor out = make_tensor(context, x.dtype(), shape);
  const Tensor c = condition.broadcast_to(shape), bx = x.broadcast_to(shape), by = y.broadcast_to(shape);
  const auto loops = make_loops<4>(shape, {c.strides(), bx.strides(), by.strides(), out.strides()});
  const auto choose = [&]<class T>(T) {
    const auto* const p = reinterpret_cast<const T*>(bx.data());
    const auto* const q = reinterpret_cast<const T*>(by.data());
    const auto* const mask = reinterpret_cast<const std::int8_t*>(c.data());
    auto* const to = reinterpret_cast<T*>(out.data());
    const std::int64_t sc = loops.inner_stride(0), sx = loops.inner_stride(1), sy = loops.inner_stride(2);
    for_each_run(context, loops, [&](const Offsets<4>& at, std::int64_t n) {
      for (std::int64_t i = 0; i < n; ++i) {
        const T a = p[at[1] + i * sx], b = q[at[2] + i * sy];
        to[at[3] + i] = mask[at[0] + i * sc] != 0 ? a : b;
      }
    });
  };
  switch (bits_of(x.dtype())) {
    case 8:
      choose(std::uint8_t{});
      break;
    case 16:
      choose(std::uint16_t{});
      break;
    default:
      choose(std::uint32_t{});
  }
  return out;
}

Tensor unary(const ExecutionContext& context, Unary op, const Tensor& x) {
  check_unary(op, x);
  Tensor out = make_tensor(context, x.dtype(), x.shape());
  run_unary(context, op, x, out);
  return out;
}

void unary_in_place(const ExecutionContext& context, Unary op, Tensor& x) {
  check_unary(op, x);
  check_writable(to_string(op), x);
  run_unary(context, op, x, x);
}

Tensor clamp(const ExecutionContext& context, const Tensor& x, float low, float high) {
  check_clamp(x, low, high);
  Tensor out = make_tensor(context, x.dtype(), x.shape());
  run_clamp(context, x, low, high, out);
  return out;
}

void clamp_in_place(const ExecutionContext& context, Tensor& x, float low, float high) {
  check_clamp(x, low, high);
  check_writable("clamp", x);
  run_clamp(context, x, low, high, x);
}

}  // namespace bitnet::ops
