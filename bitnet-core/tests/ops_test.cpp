// Tensor ops where NumPy is no oracle: in-place forms and shared memory, the same bits for any number of
// threads and for any layout of the same elements, and what is refused, with both sides named. Values are
// compared with NumPy in golden_test.cpp.
#include "bitnet/core/ops.hpp"

#include <bit>
#include <cmath>
#include <limits>

#include "bitnet/core/indexing.hpp"
#include "bitnet/core/reductions.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using ops::Binary;
using ops::Reduction;
using ops::Unary;

const ExecutionContext& context() {
  static const ExecutionContext c({.threads = 2, .isa = {}});
  return c;
}

Tensor random(Shape shape, std::uint64_t seed) {
  Rng rng(seed);
  Tensor t(DType::kF32, shape);
  for (float& v : t.span<float>()) v = static_cast<float>(4 * rng.uniform() - 2);
  return t;
}

Tensor copy(const Tensor& t) {
  Tensor c(t.dtype(), t.shape());
  const Tensor source = t.contiguous();
  std::ranges::copy(source.bytes(), c.bytes().begin());
  return c;
}

void expect_equal(const Tensor& a, const Tensor& b) {
  ASSERT_EQ(a.dtype(), b.dtype());
  ASSERT_EQ(a.shape(), b.shape());
  const Tensor x = a.contiguous(), y = b.contiguous();
  EXPECT_TRUE(std::ranges::equal(x.bytes(), y.bytes()));
}

TEST(Ops, InPlaceIsTheSameAsOutOfPlace) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8, DType::kI32}) {
    const Tensor x = random({33, 70}, 1).to(dtype), y = random({70}, 2).to(dtype);
    for (const Binary op : {Binary::kAdd, Binary::kSub, Binary::kMul, Binary::kMaximum, Binary::kMinimum}) {
      Tensor z = copy(x);
      ops::binary_in_place(context(), op, z, y);
      expect_equal(z, ops::binary(context(), op, x, y));
      // A strided part of a larger tensor; what lies between stays.
      Tensor whole = copy(x), part = whole.slice(1, 1, 69, 3);
      ops::binary_in_place(context(), op, part, y.slice(0, 1, 69, 3));
      expect_equal(part, ops::binary(context(), op, x.slice(1, 1, 69, 3), y.slice(0, 1, 69, 3)));
      expect_equal(whole.slice(1, 0, 70, 3).slice(1, 0, 23), x.slice(1, 0, 70, 3).slice(1, 0, 23));
    }
    for (const Unary op : {Unary::kNeg, Unary::kAbs, Unary::kSquare, Unary::kRelu}) {
      Tensor z = copy(x), t = z.transpose(0, 1);
      ops::unary_in_place(context(), op, t);
      expect_equal(z, ops::unary(context(), op, x));
    }
  }
  const Tensor x = random({5, 7}, 3);
  Tensor a = copy(x), b = copy(x).transpose(0, 1), c = copy(x);
  ops::clamp_in_place(context(), a, -0.5f, 0.25f);
  expect_equal(a, ops::clamp(context(), x, -0.5f, 0.25f));
  ops::softmax_in_place(context(), b, 0);
  expect_equal(b.transpose(0, 1), ops::softmax(context(), x, 1));
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const Tensor y = random({4, 6, 7}, 4).to(dtype), w = random({7}, 5).to(dtype),
                 s = random({7}, 6).to(dtype);
    Tensor d = copy(y), e = copy(y.transpose(0, 2)).transpose(0, 2), f = copy(y), whole = copy(y);
    for (const std::int64_t axis : {0, 1, 2}) {
      Tensor g = copy(y);
      ops::softmax_in_place(context(), g, axis);
      expect_equal(g, ops::softmax(context(), y, axis));
    }
    ops::rms_norm_in_place(context(), d, w, 1e-5f);
    expect_equal(d, ops::rms_norm(context(), y, w, 1e-5f));
    ops::layer_norm_in_place(context(), e, w, s, 1e-5f);  // strided rows
    expect_equal(e, ops::layer_norm(context(), y, w, s, 1e-5f));
    Tensor part = whole.slice(1, 1, 6, 2);  // what lies between stays
    ops::softmax_in_place(context(), part, 2);
    expect_equal(whole.slice(1, 0, 6, 2), y.slice(1, 0, 6, 2));
    expect_equal(part, ops::softmax(context(), y.slice(1, 1, 6, 2), 2));
    Tensor row = f.slice(0, 1, 2).slice(1, 2, 3).reshape({7});  // the weights are one of x's rows
    const Tensor expected = ops::rms_norm(context(), y, copy(row), 1e-5f);
    ops::rms_norm_in_place(context(), f, row, 1e-5f);
    expect_equal(f, expected);
  }
  ops::binary_in_place(context(), Binary::kMul, c, 3.0);
  expect_equal(c, ops::mul(context(), x, Tensor::of<float>({}, std::vector<float>{3})));
}

TEST(Ops, OperandsMayShareMemoryWithTheResult) {
  const Tensor x = random({40, 40}, 4);
  Tensor a = copy(x);
  ops::binary_in_place(context(), Binary::kAdd, a, a);
  expect_equal(a, ops::add(context(), x, x));
  Tensor b = copy(x);
  ops::binary_in_place(context(), Binary::kSub, b, b.transpose(0, 1));
  expect_equal(b, ops::sub(context(), x, x.transpose(0, 1)));
  Tensor c = copy(x), later = c.slice(0, 1, 40), earlier = c.slice(0, 0, 39);
  ops::binary_in_place(context(), Binary::kAdd, later, earlier);
  expect_equal(c.slice(0, 1, 40), ops::add(context(), x.slice(0, 1, 40), x.slice(0, 0, 39)));
  Tensor d = Tensor::of<std::int32_t>({4}, std::vector<std::int32_t>{3, 2, 1, 0});
  ops::scatter(context(), d, d, d.slice(0, 0, 4), 0);  // x, index and values are one tensor
  expect_equal(d, Tensor::of<std::int32_t>({4}, std::vector<std::int32_t>{0, 1, 2, 3}));
}

TEST(Ops, ThreadsDoNotShow) {
  const ExecutionContext one({.threads = 1, .isa = {}}), three({.threads = 3, .isa = {}});
  const Tensor x = random({300, 411}, 5), y = random({411}, 6), w = random({411, 90}, 7);
  expect_equal(ops::add(one, x, y), ops::add(three, x, y));
  expect_equal(ops::unary(one, Unary::kTanh, x), ops::unary(three, Unary::kTanh, x));
  expect_equal(ops::compare(one, ops::Comparison::kLess, x, y),
               ops::compare(three, ops::Comparison::kLess, x, y));
  for (const std::int64_t axis : {0, 1})
    for (const Reduction op : {Reduction::kSum, Reduction::kMean, Reduction::kVar, Reduction::kMax})
      expect_equal(ops::reduce(one, op, x, {axis}), ops::reduce(three, op, x, {axis}));
  expect_equal(ops::softmax(one, x, 0), ops::softmax(three, x, 0));
  expect_equal(ops::matmul(one, x, w), ops::matmul(three, x, w));
  const Tensor integers = ops::binary(one, Binary::kMul, x, 50).to(DType::kI8);
  for (const std::int64_t axis : {0, 1})
    for (const Reduction op : {Reduction::kSum, Reduction::kMax, Reduction::kMin}) {
      expect_equal(ops::reduce(one, op, integers, {axis}), ops::reduce(three, op, integers, {axis}));
      expect_equal(ops::reduce(one, op, integers, {axis}).to(DType::kF32),
                   ops::reduce(one, op, integers.to(DType::kF32), {axis}));  // sums below 2^24: exact
    }
  expect_equal(ops::argmax(one, x, 1), ops::argmax(three, x, 1));
  const Tensor stack = random({50, 6, 9}, 8), more = random({50, 9, 4}, 9);
  expect_equal(ops::matmul(one, stack, more), ops::matmul(three, stack, more));
}

TEST(Ops, LayoutsOfTheSameElementsGiveTheSameBits) {
  const Tensor x = random({37, 85}, 10), t = copy(x.transpose(0, 1)).transpose(0, 1);
  ASSERT_FALSE(t.is_contiguous());
  for (int i = 0; i < 8; ++i)
    for (const ops::Axes& axes : {ops::Axes{}, ops::Axes{0}, ops::Axes{1}}) {
      const auto op = static_cast<Reduction>(i);
      expect_equal(ops::reduce(context(), op, x, axes), ops::reduce(context(), op, t, axes));
    }
  const Tensor w = random({85, 20}, 11), wt = copy(w.transpose(0, 1)).transpose(0, 1);
  const Tensor product = ops::matmul(context(), x, w);
  expect_equal(product, ops::matmul(context(), t, wt));
  // One column at a time goes another way through gemm().
  for (std::int64_t j = 0; j < 20; ++j)
    expect_equal(ops::matmul(context(), x, w.slice(1, j, j + 1)), product.slice(1, j, j + 1));
}

TEST(Ops, ScalarsAreRoundedToTheDtype) {
  const Tensor x = random({3}, 12).to(DType::kF16);
  expect_equal(ops::binary(context(), Binary::kAdd, x, 0.1),
               ops::add(context(), x, Tensor::of<float>({}, std::vector<float>{0.1f}).to(DType::kF16)));
  const Tensor i = Tensor::of<std::int8_t>({2}, std::vector<std::int8_t>{100, -100});
  expect_equal(ops::binary(context(), Binary::kAdd, i, 100),
               Tensor::of<std::int8_t>({2}, std::vector<std::int8_t>{-56, 0}));
  BITNET_EXPECT_ERROR((void)ops::binary(context(), Binary::kAdd, i, 128), ErrorCode::kInvalidArgument,
                      "add: i8 [2] and the number 128");
  BITNET_EXPECT_ERROR((void)ops::binary(context(), Binary::kMul, i, 0.5), ErrorCode::kInvalidArgument, "0.5");
}

TEST(Ops, IntegerProductsAreExact) {
  const std::int64_t k = 131071;
  Tensor a(DType::kI8, {1, k});
  for (std::int8_t& v : a.span<std::int8_t>()) v = -128;
  const Tensor product = ops::matmul(context(), a, a.transpose(0, 1));
  EXPECT_EQ(product.span<std::int32_t>()[0], 128 * 128 * k);
  const Tensor b(DType::kI8, {1, k + 1});
  BITNET_EXPECT_ERROR((void)ops::matmul(context(), b, b.transpose(0, 1)), ErrorCode::kInvalidArgument,
                      "131072");
}

TEST(Ops, IntegerProductsAreThoseOfPlainLoops) {
  const Tensor a = ops::binary(context(), Binary::kMul, random({3, 9, 2100}, 20), 64).to(DType::kI8),
               b = ops::binary(context(), Binary::kMul, random({2100, 11}, 21), 64).to(DType::kI8);
  const Tensor product = ops::matmul(context(), a, b);
  ASSERT_EQ(product.shape(), (Shape{3, 9, 11}));
  const auto x = a.span<std::int8_t>(), y = b.span<std::int8_t>();
  for (std::size_t r = 0; r < 27; ++r)
    for (std::size_t c = 0; c < 11; ++c) {
      std::int32_t sum = 0;
      for (std::size_t k = 0; k < 2100; ++k) sum += x[r * 2100 + k] * y[k * 11 + c];
      ASSERT_EQ(product.span<std::int32_t>()[r * 11 + c], sum) << r << " " << c;
    }
  expect_equal(ops::matmul(context(), b.transpose(0, 1), a.slice(0, 1, 2).reshape({9, 2100}).transpose(0, 1)),
               product.slice(0, 1, 2).reshape({9, 11}).transpose(0, 1));
  expect_equal(ops::matmul(context(), a, b.slice(1, 4, 5).reshape({2100})),
               product.slice(2, 4, 5).reshape({3, 9}));
  expect_equal(ops::matmul(context(), a.slice(2, 0, 0), b.slice(0, 0, 0)), Tensor(DType::kI32, {3, 9, 11}));
}

TEST(Ops, ProductsWithVectorsAreColumnsOfTheWhole) {
  const ExecutionContext one({.threads = 1, .isa = {}});
  for (const std::int64_t n : {1, 7, 40, 1500})
    for (const std::int64_t k : {1, 6, 333}) {
      const Tensor m = random({n, k}, 22), v = random({k}, 23), both = random({k, 2}, 24);
      const Tensor mt = copy(m.transpose(0, 1)).transpose(0, 1);
      const Tensor whole = ops::matmul(one, m, ops::concat(one, std::vector{v.reshape({k, 1}), both}, 1));
      const Tensor expected = copy(whole.slice(1, 0, 1)).reshape({n});
      Tensor gaps = random({n, 2 * k}, 25).slice(1, 0, 2 * k, 2);
      ops::binary_in_place(context(), Binary::kMul, gaps, 0.0);
      ops::binary_in_place(context(), Binary::kAdd, gaps, m);
      for (const Tensor& w : {m, mt, gaps}) {
        expect_equal(ops::matmul(context(), w, v), expected);
        expect_equal(ops::matmul(context(), v, w.transpose(0, 1)), expected);
      }
    }
}

TEST(Ops, NormsRefuseWhatIsNoEps) {
  const Tensor x = random({2, 3}, 1), w = random({3}, 2);
  Tensor y = copy(x);
  for (const float bad : {-1e-5f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    BITNET_EXPECT_ERROR((void)ops::rms_norm(context(), x, w, bad), ErrorCode::kInvalidArgument,
                        "rms_norm of f32 [2, 3]: eps is");
    BITNET_EXPECT_ERROR(ops::rms_norm_in_place(context(), y, w, bad), ErrorCode::kInvalidArgument, "eps");
    BITNET_EXPECT_ERROR((void)ops::layer_norm(context(), x, w, w, bad), ErrorCode::kInvalidArgument,
                        "layer_norm of f32 [2, 3]: eps is");
    BITNET_EXPECT_ERROR(ops::layer_norm_in_place(context(), y, w, w, bad), ErrorCode::kInvalidArgument,
                        "eps");
  }
  expect_equal(y, x);
  EXPECT_NO_THROW((void)ops::rms_norm(context(), x, w, 0));
}

TEST(Ops, ShapesThatDoNotFitAreNamed) {
  const Tensor a = random({2, 3}, 1), b = random({4}, 2), h = a.to(DType::kF16);
  BITNET_EXPECT_ERROR((void)ops::add(context(), a, b), ErrorCode::kInvalidArgument,
                      "add: shapes [2, 3] and [4] do not broadcast: 3 and 4 on axis -1");
  BITNET_EXPECT_ERROR((void)ops::add(context(), a, h), ErrorCode::kInvalidArgument,
                      "add: f32 [2, 3] and f16 [2, 3] differ in dtype");
  BITNET_EXPECT_ERROR((void)ops::compare(context(), ops::Comparison::kLess, a, b),
                      ErrorCode::kInvalidArgument, "less: shapes [2, 3] and [4]");
  Tensor x = a;
  BITNET_EXPECT_ERROR(ops::binary_in_place(context(), Binary::kMul, x, random({2, 2, 3}, 3)),
                      ErrorCode::kInvalidArgument, "mul: shape [2, 2, 3] does not broadcast to [2, 3]");
  Tensor repeated = random({1, 3}, 4).broadcast_to({2, 3});
  BITNET_EXPECT_ERROR(ops::unary_in_place(context(), Unary::kNeg, repeated), ErrorCode::kInvalidArgument,
                      "neg: cannot write to f32 [2, 3], which repeats axis 0");
  BITNET_EXPECT_ERROR((void)ops::matmul(context(), a, a), ErrorCode::kInvalidArgument,
                      "matmul: f32 [2, 3] and f32 [2, 3]: 3 columns on the left, 2 rows on the right");
  BITNET_EXPECT_ERROR((void)ops::matmul(context(), random({2, 2, 3}, 1), random({3, 3, 1}, 1)),
                      ErrorCode::kInvalidArgument, "shapes [2] and [3] do not broadcast");
  BITNET_EXPECT_ERROR((void)ops::matmul(context(), random({}, 1), a), ErrorCode::kInvalidArgument, "scalar");
  BITNET_EXPECT_ERROR((void)ops::where(context(), a, a, a), ErrorCode::kInvalidArgument,
                      "f32 [2, 3], i8 wanted");
  BITNET_EXPECT_ERROR((void)ops::clamp(context(), a, 1, 0), ErrorCode::kInvalidArgument, "low 1 and high 0");
  BITNET_EXPECT_ERROR((void)a.broadcast_to({2, 4}), ErrorCode::kInvalidArgument,
                      "[2, 3] does not broadcast to [2, 4]");
  BITNET_EXPECT_ERROR((void)a.slice(1, 0, 3, 0), ErrorCode::kInvalidArgument, "step");
}

TEST(Ops, DtypesThatAnOpLacksAreNamed) {
  const Tensor i = random({2, 4}, 1).to(DType::kI8), n = i.to(DType::kI32), t = i.to(DType::kTernary);
  BITNET_EXPECT_ERROR((void)ops::div(context(), i, i), ErrorCode::kInvalidArgument, "div: i8 [2, 4]");
  BITNET_EXPECT_ERROR((void)ops::unary(context(), Unary::kExp, n), ErrorCode::kInvalidArgument,
                      "exp: i32 [2, 4]");
  BITNET_EXPECT_ERROR((void)ops::add(context(), t, t), ErrorCode::kInvalidArgument, "add: ternary [2, 4]");
  BITNET_EXPECT_ERROR((void)ops::concat(context(), std::vector{t, t}, 0), ErrorCode::kInvalidArgument,
                      "ternary");
  BITNET_EXPECT_ERROR((void)ops::matmul(context(), n, n.transpose(0, 1)), ErrorCode::kUnsupported,
                      "f32, f16, bf16 and i8");
  BITNET_EXPECT_ERROR((void)ops::reduce(context(), Reduction::kMean, i), ErrorCode::kInvalidArgument,
                      "mean: i8");
  BITNET_EXPECT_ERROR((void)ops::softmax(context(), i, 0), ErrorCode::kInvalidArgument, "softmax: i8");
  BITNET_EXPECT_ERROR((void)t.broadcast_to({2, 2, 4}), ErrorCode::kInvalidArgument, "ternary");
}

TEST(Ops, ReductionsRefuseWhatHasNoValue) {
  const Tensor empty(DType::kF32, {0, 3}), x = random({2, 3}, 1);
  BITNET_EXPECT_ERROR((void)ops::reduce(context(), Reduction::kMax, empty, {0}), ErrorCode::kInvalidArgument,
                      "max of f32 [0, 3]");
  EXPECT_EQ(ops::reduce(context(), Reduction::kMax, empty, {1}).shape(), (Shape{0}));
  BITNET_EXPECT_ERROR((void)ops::argmax(context(), empty, 0), ErrorCode::kInvalidArgument, "has 0 elements");
  BITNET_EXPECT_ERROR((void)ops::reduce(context(), Reduction::kSum, x, {2}), ErrorCode::kInvalidArgument,
                      "axis 2");
  BITNET_EXPECT_ERROR((void)ops::reduce(context(), Reduction::kSum, x, {0, -2}), ErrorCode::kInvalidArgument,
                      "twice");
  const Tensor big =
      Tensor::of<std::int32_t>({2}, std::vector<std::int32_t>{std::numeric_limits<std::int32_t>::max(), 1});
  BITNET_EXPECT_ERROR((void)ops::reduce(context(), Reduction::kSum, big), ErrorCode::kInvalidArgument,
                      "2147483648");
  BITNET_EXPECT_ERROR((void)ops::rms_norm(context(), x, random({2}, 1), 1e-5f), ErrorCode::kInvalidArgument,
                      "rms_norm: w is f32 [2] beside x f32 [2, 3]");
}

TEST(Ops, IndicesAreCheckedBeforeAnythingIsWritten) {
  Tensor x = random({3, 2}, 1);
  const Tensor before = copy(x),
               bad = Tensor::of<std::int32_t>({2, 2}, std::vector<std::int32_t>{0, 1, 3, 0});
  BITNET_EXPECT_ERROR(
      (void)ops::take(context(), x, bad, 0), ErrorCode::kInvalidArgument,
      "take from f32 [3, 2]: index 3, element 2 of i32 [2, 2], is outside axis 0 with [0, 3)");
  BITNET_EXPECT_ERROR((void)ops::gather(context(), x, bad, 0), ErrorCode::kInvalidArgument, "index 3");
  BITNET_EXPECT_ERROR(ops::scatter(context(), x, bad, random({2, 2}, 2), 0), ErrorCode::kInvalidArgument,
                      "index 3");
  BITNET_EXPECT_ERROR(ops::scatter_add(context(), x, bad, random({2, 2}, 2), 0), ErrorCode::kInvalidArgument,
                      "index 3");
  expect_equal(x, before);
  const Tensor negative = Tensor::of<std::int32_t>({1}, std::vector<std::int32_t>{-1});
  BITNET_EXPECT_ERROR((void)ops::take(context(), x, negative, 0), ErrorCode::kInvalidArgument, "index -1");
  BITNET_EXPECT_ERROR((void)ops::take(context(), x, x, 0), ErrorCode::kInvalidArgument,
                      "index is f32 [3, 2], i32 wanted");
  BITNET_EXPECT_ERROR((void)ops::gather(context(), x, negative, 0), ErrorCode::kInvalidArgument,
                      "may differ on axis 0 only");
  BITNET_EXPECT_ERROR((void)ops::concat(context(), std::vector{x, random({3, 3}, 1)}, 0),
                      ErrorCode::kInvalidArgument,
                      "concat: f32 [3, 2] and f32 [3, 3] may differ on axis 0 only");
  BITNET_EXPECT_ERROR((void)ops::concat(context(), {}, 0), ErrorCode::kInvalidArgument, "no tensor");
  BITNET_EXPECT_ERROR((void)ops::stack(context(), std::vector{x}, 3), ErrorCode::kInvalidArgument,
                      "new axis 3");
}

TEST(Ops, HugeResultsAreRefused) {
  const std::int64_t big = std::int64_t{1} << 31;
  const Tensor a = Tensor(DType::kF32, {1}).broadcast_to({big}), column = a.reshape({big, 1});
  BITNET_EXPECT_ERROR((void)ops::add(context(), a, Tensor(DType::kF32, {1}).broadcast_to({big, big, 1})),
                      ErrorCode::kInvalidArgument, "overflows");
  BITNET_EXPECT_ERROR((void)ops::add(context(), a, column), ErrorCode::kInvalidArgument, "too large");
}

}  // namespace
}  // namespace bitnet
