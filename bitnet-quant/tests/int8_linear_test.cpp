// Int8Linear of one ISA (the one BITNET_ISA names) against its definition, one term at a time.
#include "bitnet/quant/int8_linear.hpp"

#include <cmath>
#include <cstring>
#include <limits>

#include "bitnet/testing/testing.hpp"
#include "quant_support.hpp"

namespace bitnet::quant {
namespace {

struct Size {
  std::int64_t rows, out, in;
};

/// Odd sizes, sizes of public models, and every number of rows that has a kernel of its own.
std::vector<Size> sizes() {
  std::vector<Size> all{{1, 1, 1},     {1, 3, 17},    {1, 17, 3},     {2, 100, 100}, {1, 33, 3200},
                        {3, 16, 8640}, {5, 40, 256},  {1, 300, 1000}, {13, 50, 129}, {27, 33, 127},
                        {1, 31, 6912}, {33, 3, 1650}, {100, 49, 4096}};
  for (std::int64_t rows = 1; rows <= 26; ++rows) all.push_back({rows, 48, 80});
  return all;
}

std::vector<std::int32_t> naive(const Int8Linear& linear, const QuantizedRows& x) {
  std::vector<std::int32_t> acc(static_cast<std::size_t>(x.rows * linear.out()));
  for (std::int64_t o = 0; o < linear.out(); ++o) {
    const auto w = linear.values(o);
    for (std::int64_t r = 0; r < x.rows; ++r) {
      std::int32_t sum = 0;
      for (std::int64_t k = 0; k < linear.in(); ++k)
        sum += x.values[static_cast<std::size_t>(r * x.stride + k)] * w[static_cast<std::size_t>(k)];
      acc[static_cast<std::size_t>(r * linear.out() + o)] = sum;
    }
  }
  return acc;
}

TEST(Int8Linear, RoundsEachRowAsDefined) {
  const ExecutionContext context;
  for (const Size& s : sizes()) {
    const auto w = test::random_floats(s.out * s.in, 1);
    const Int8Linear linear(context, s.out, s.in, w);
    ASSERT_EQ(linear.scales().size(), static_cast<std::size_t>(s.out));
    std::vector<float> back(static_cast<std::size_t>(s.in));
    for (std::int64_t o = 0; o < s.out; ++o) {
      const float* const from = w.data() + o * s.in;
      float m = 1e-30f;
      for (std::int64_t k = 0; k < s.in; ++k) m = std::max(m, std::fabs(from[k]));
      const float scale = m / 127.0f;
      ASSERT_EQ(linear.scales()[static_cast<std::size_t>(o)], scale);
      linear.row(o, back);
      const auto values = linear.values(o);
      for (std::int64_t k = 0; k < s.in; ++k) {
        const auto q = static_cast<int>(std::nearbyint(from[k] * (127.0f / m)));
        ASSERT_LE(std::abs(q), 127);
        ASSERT_EQ(values[static_cast<std::size_t>(k)], q) << o << ", " << k;
        ASSERT_EQ(back[static_cast<std::size_t>(k)], static_cast<float>(q) * scale);
      }
    }
  }
}

TEST(Int8Linear, RowsOfZerosAndOfTinyAndHugeWeights) {
  const ExecutionContext context;
  const float tiny = 1e-38f, huge = std::numeric_limits<float>::max();
  const std::vector<float> w{0, -0.0f, 0, tiny, -tiny, 0, huge, -huge, huge / 2};
  const Int8Linear linear(context, 3, 3, w);
  EXPECT_EQ(linear.values(0), (std::vector<std::int8_t>{0, 0, 0}));
  EXPECT_EQ(linear.values(1), (std::vector<std::int8_t>{0, 0, 0}));
  EXPECT_EQ(linear.values(2), (std::vector<std::int8_t>{127, -127, 64}));  // 63.5 goes to the even 64
}

TEST(Int8Linear, EqualsTheNaiveProduct) {
  const ExecutionContext context;
  for (const Size& s : sizes()) {
    const Int8Linear linear(context, s.out, s.in, test::random_floats(s.out * s.in, 2));
    const auto x = test::random_rows(s.rows, s.in, 3);
    std::vector<std::int32_t> acc(static_cast<std::size_t>(s.rows * s.out));
    linear.multiply_int(context, x, acc);
    const auto expected = naive(linear, x);
    ASSERT_EQ(acc, expected) << s.rows << " x " << s.out << " x " << s.in;
    std::vector<float> y(acc.size());
    linear.forward(context, x, y);
    for (std::size_t i = 0; i < y.size(); ++i) {
      const std::size_t row = i / static_cast<std::size_t>(s.out), o = i % static_cast<std::size_t>(s.out);
      ASSERT_EQ(y[i], static_cast<float>(expected[i]) * (linear.scales()[o] * x.inv_scales[row]));
    }
  }
}

TEST(Int8Linear, ExtremesReachTheBoundWithoutOverflow) {
  const ExecutionContext context;
  const std::int64_t in = 131'072;
  for (const float weight : {-1.0f, 1.0f}) {
    const Int8Linear linear(context, 17, in, std::vector<float>(static_cast<std::size_t>(17 * in), weight));
    for (const int value : {-128, 127})
      for (const std::int64_t rows : {1, 3}) {
        QuantizedRows x{.rows = rows, .cols = in, .stride = in, .values = {}, .inv_scales = {}, .sums = {}};
        x.values.assign(static_cast<std::size_t>(rows * in), static_cast<std::int8_t>(value));
        x.sums.assign(static_cast<std::size_t>(rows), static_cast<std::int32_t>(value * in));
        x.inv_scales.assign(static_cast<std::size_t>(rows), 1.0f);
        std::vector<std::int32_t> acc(static_cast<std::size_t>(rows * 17));
        linear.multiply_int(context, x, acc);
        for (const std::int32_t v : acc)
          ASSERT_EQ(v, static_cast<std::int32_t>(weight) * 127 * value * static_cast<std::int32_t>(in));
      }
  }
}

TEST(Int8Linear, AnyNumberOfThreadsGivesTheSameBits) {
  const std::int64_t out = 1000, in = 2100;  // enough work to be cut, even for one row
  const auto w = test::random_floats(out * in, 7);
  for (const std::int64_t rows : {1, 9}) {
    const auto x = test::random_rows(rows, in, 8);
    std::vector<std::vector<float>> results;
    for (const std::size_t threads : {1u, 2u, 3u, 8u}) {
      const ExecutionContext context({.threads = threads, .isa = {}});
      results.emplace_back(static_cast<std::size_t>(rows * out));
      Int8Linear(context, out, in, w).forward(context, x, results.back());
      EXPECT_EQ(results.back(), results.front()) << threads;
    }
  }
}

TEST(Int8Linear, ARowDoesNotDependOnItsCompany) {
  const ExecutionContext context;
  const auto x = test::random_rows(27, 333, 10);
  const Int8Linear linear(context, 70, 333, test::random_floats(70 * 333, 9));
  std::vector<float> together(27 * 70), alone(70);
  linear.forward(context, x, together);
  for (std::int64_t r = 0; r < x.rows; ++r) {
    QuantizedRows one{
        .rows = 1, .cols = x.cols, .stride = x.stride, .values = {}, .inv_scales = {}, .sums = {}};
    one.values.assign(x.values.begin() + r * x.stride, x.values.begin() + (r + 1) * x.stride);
    one.inv_scales = {x.inv_scales[static_cast<std::size_t>(r)]};
    one.sums = {x.sums[static_cast<std::size_t>(r)]};
    linear.forward(context, one, alone);
    ASSERT_EQ(std::memcmp(alone.data(), together.data() + r * 70, 70 * sizeof(float)), 0) << r;
  }
}

TEST(Int8Linear, TheContextOfTheCallMayHaveAnotherIsa) {
  const auto x = test::random_rows(4, 211, 12);
  const Int8Linear linear(ExecutionContext{}, 37, 211, test::random_floats(37 * 211, 11));
  const auto expected = naive(linear, x);
  for (const Isa isa : compiled_isas()) {
    if (!is_supported(isa)) continue;
    std::vector<std::int32_t> acc(expected.size());
    linear.multiply_int(ExecutionContext({.threads = 1, .isa = isa}), x, acc);
    EXPECT_EQ(acc, expected) << to_string(isa);
  }
}

#ifdef BITNET_COUNT_ALLOCATIONS
TEST(Int8Linear, TheRunPhaseAllocatesNothing) {
  const ExecutionContext context({.threads = 1, .isa = {}});
  const Int8Linear linear(context, 40, 100, test::random_floats(4000, 19));
  const auto x = test::random_rows(3, 100, 20);
  std::vector<float> y(120), row(100);
  std::vector<std::int32_t> acc(120);
  const long before = test::allocations();
  linear.forward(context, x, y);
  linear.multiply_int(context, x, acc);
  linear.row(39, row);
  EXPECT_EQ(test::allocations(), before);
}
#endif

TEST(Int8Linear, NoRowsIsNoWork) {
  const ExecutionContext context;
  const Int8Linear linear(context, 5, 5, test::random_floats(25, 14));
  linear.forward(context, test::random_rows(0, 5, 15), {});
}

TEST(Int8Linear, TakesEachRowFromItsSourceOnce) {
  const ExecutionContext context;
  std::vector<int> calls(100);
  const Int8Linear linear(context, 100, 7, [&](std::int64_t begin, std::int64_t end, float* to) {
    for (std::int64_t row = begin; row < end; ++row, to += 7) {
      ++calls[static_cast<std::size_t>(row)];
      std::fill_n(to, 7, static_cast<float>(row + 1));
    }
  });
  EXPECT_EQ(calls, std::vector<int>(100, 1));
  EXPECT_EQ(linear.scales()[41], 42 / 127.0f);
  BITNET_EXPECT_ERROR(Int8Linear(context, 100, 7,
                                 [&](std::int64_t begin, std::int64_t end, float* to) {
                                   std::fill_n(to, (end - begin) * 7, 1.0f);
                                   if (begin <= 70 && 70 < end)
                                     throw Error(ErrorCode::kCorruptFile, "row 70 is damaged");
                                 }),
                      ErrorCode::kCorruptFile, "row 70 is damaged");
}

TEST(Int8Linear, RefusesWhatDoesNotFit) {
  const ExecutionContext context;
  auto w = test::random_floats(24, 16);
  w[15] = std::numeric_limits<float>::quiet_NaN();
  BITNET_EXPECT_ERROR(Int8Linear(context, 4, 6, w), ErrorCode::kInvalidArgument, "row 2, column 3 is nan");
  w[15] = -std::numeric_limits<float>::infinity();
  BITNET_EXPECT_ERROR(Int8Linear(context, 4, 6, w), ErrorCode::kInvalidArgument, "is -inf");
  w[15] = 0;
  BITNET_EXPECT_ERROR(Int8Linear(context, 5, 6, w), ErrorCode::kInvalidArgument,
                      "24 weights for a matrix of 5 x 6");
  const Int8Linear::RowSource none = [](std::int64_t, std::int64_t, float*) {};
  BITNET_EXPECT_ERROR(Int8Linear(context, 1, 131'073, none), ErrorCode::kInvalidArgument, "131073 columns");
  BITNET_EXPECT_ERROR(Int8Linear(context, std::int64_t{1} << 62, 8, none), ErrorCode::kInvalidArgument,
                      "no possible size");
  BITNET_EXPECT_ERROR(Int8Linear(context, 0, 8, none), ErrorCode::kInvalidArgument, "no possible size");

  const Int8Linear linear(context, 4, 6, w);
  std::vector<float> y(8);
  BITNET_EXPECT_ERROR(linear.forward(context, test::random_rows(2, 7, 18), y), ErrorCode::kInvalidArgument,
                      "rows of 7, expected 6");
  BITNET_EXPECT_ERROR(linear.forward(context, test::random_rows(3, 6, 18), y), ErrorCode::kInvalidArgument,
                      "8 results for 3 rows of 4");
  auto narrow = test::random_rows(2, 6, 18);
  narrow.stride = 6;
  BITNET_EXPECT_ERROR(linear.forward(context, narrow, y), ErrorCode::kInvalidArgument,
                      "not as quantize_rows");
  BITNET_EXPECT_ERROR(linear.row(4, y), ErrorCode::kInvalidArgument, "row 4 of 4");
  BITNET_EXPECT_ERROR(linear.row(-1, y), ErrorCode::kInvalidArgument, "row -1 of 4");
  BITNET_EXPECT_ERROR(linear.row(0, y), ErrorCode::kInvalidArgument, "8 places for a row of 6");
}

}  // namespace
}  // namespace bitnet::quant
