// BitLinear of one ISA (the one BITNET_ISA names) against the naive integer product.
#include "bitnet/quant/bit_linear.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <utility>

#include "bitnet/testing/testing.hpp"
#include "quant_support.hpp"

namespace bitnet::quant {
namespace {

constexpr TileCode kCodes[] = {TileCode::kTwoBit, TileCode::kBase3};

struct Size {
  std::int64_t rows, out, in;
};

/// Odd sizes, sizes of public models, and every number of rows that has a kernel of its own.
std::vector<Size> sizes() {
  std::vector<Size> all{{1, 1, 1},     {1, 3, 17},     {1, 17, 3},     {2, 100, 100}, {1, 33, 3200},
                        {3, 16, 8640}, {5, 40, 256},   {1, 300, 1000}, {13, 50, 129}, {27, 33, 127},
                        {1, 31, 6912}, {33, 3, 16500}, {16, 70, 641},  {300, 40, 700}};
  for (std::int64_t rows = 1; rows <= 14; ++rows) all.push_back({rows, 48, 80});
  return all;
}

TEST(BitLinear, EqualsTheNaiveProduct) {
  const ExecutionContext context;
  for (const Size& s : sizes()) {
    const auto w = test::random_weights(s.out, s.in, 1);
    const auto x = test::random_rows(s.rows, s.in, 2);
    const auto expected = test::naive_product(w, x);
    for (const TileCode code : kCodes) {
      std::vector<std::int32_t> acc(expected.size());
      BitLinear(context, w, code).multiply_int(context, x, acc);
      ASSERT_EQ(acc, expected) << s.rows << " x " << s.out << " x " << s.in;
    }
  }
}

TEST(BitLinear, ExtremesReachTheBoundWithoutOverflow) {
  const ExecutionContext context;
  const std::int64_t cases[][2] = {{17, 4096}, {2, 500'000}};  // [out, in]
  for (const auto& [out, in] : cases)
    for (const auto& [trit, code] : {std::pair(-1, TileCode::kTwoBit), std::pair(1, TileCode::kTwoBit),
                                     std::pair(-1, TileCode::kBase3), std::pair(1, TileCode::kBase3)}) {
      TernaryWeights w{.out = out, .in = in, .trits = {}, .scales = {1}, .rows_per_scale = out};
      w.trits.assign(static_cast<std::size_t>(out * in), static_cast<std::int8_t>(trit));
      const BitLinear linear(context, w, code);
      for (const int value : {-128, 127})
        for (const std::int64_t rows : {1, 3, 20}) {
          QuantizedRows x{.rows = rows,
                          .cols = in,
                          .stride = quantized_stride(in),
                          .values = {},
                          .inv_scales = {},
                          .sums = {}};
          x.values.assign(static_cast<std::size_t>(rows * x.stride), 0);
          for (std::int64_t r = 0; r < rows; ++r)
            std::fill_n(x.values.begin() + r * x.stride, in, static_cast<std::int8_t>(value));
          x.sums.assign(static_cast<std::size_t>(rows), static_cast<std::int32_t>(value * in));
          x.inv_scales.assign(static_cast<std::size_t>(rows), 1.0f);
          std::vector<std::int32_t> acc(static_cast<std::size_t>(rows * out));
          linear.multiply_int(context, x, acc);
          for (const std::int32_t v : acc) ASSERT_EQ(v, static_cast<std::int32_t>(trit * value * in)) << in;
        }
    }
}

/// Scales for odd groups of rows, which cut through tiles; by one row, few rows and many.
TEST(BitLinear, ForwardScalesEachProductOnce) {
  const ExecutionContext context;
  for (const std::int64_t rows_per_scale : {0, 1, 7, 33})
    for (const std::int64_t rows : {1, 3, 26}) {
      const auto w = test::random_weights(50, 300, 5, rows_per_scale);
      const auto x = test::random_rows(rows, 300, 6);
      const auto acc = test::naive_product(w, x);
      for (const TileCode code : kCodes) {
        std::vector<float> y(acc.size());
        BitLinear(context, w, code).forward(context, x, y);
        for (std::size_t i = 0; i < y.size(); ++i) {
          const std::size_t row = i / 50, o = i % 50;
          const float scale = w.scales[o / static_cast<std::size_t>(w.rows_per_scale)];
          ASSERT_EQ(y[i], static_cast<float>(acc[i]) * (scale * x.inv_scales[row]));
        }
      }
    }
}

TEST(BitLinear, AnyNumberOfThreadsGivesTheSameBits) {
  const std::int64_t out = 1000, in = 2100;  // enough work to be cut, even for one row
  const BitLinear linear(ExecutionContext{}, test::random_weights(out, in, 7));
  for (const std::int64_t rows : {1, 9}) {
    const auto x = test::random_rows(rows, in, 8);
    std::vector<std::vector<float>> results;
    for (const std::size_t threads : {1u, 2u, 3u, 8u}) {
      const ExecutionContext context({.threads = threads, .isa = {}});
      results.emplace_back(static_cast<std::size_t>(rows * out));
      linear.forward(context, x, results.back());
      EXPECT_EQ(results.back(), results.front()) << threads;
    }
  }
}

TEST(BitLinear, ARowDoesNotDependOnItsCompany) {
  const ExecutionContext context;
  const auto w = test::random_weights(70, 333, 9);
  const auto x = test::random_rows(11, 333, 10);
  const BitLinear linear(context, w);
  std::vector<float> together(11 * 70), alone(70);
  linear.forward(context, x, together);
  for (std::int64_t r = 0; r < x.rows; ++r) {
    QuantizedRows one{
        .rows = 1, .cols = x.cols, .stride = x.stride, .values = {}, .inv_scales = {}, .sums = {}};
    one.values.assign(x.values.begin() + r * x.stride, x.values.begin() + (r + 1) * x.stride);
    one.inv_scales = {x.inv_scales[static_cast<std::size_t>(r)]};
    one.sums = {x.sums[static_cast<std::size_t>(r)]};
    linear.forward(context, one, alone);
    for (std::size_t o = 0; o < 70; ++o) ASSERT_EQ(alone[o], together[static_cast<std::size_t>(r) * 70 + o]);
  }
}

// Cuts over threads fall inside and between the matrices.
TEST(BitLinear, SeveralProductsInOneCutEqualEachAlone) {
  constexpr std::int64_t kIn = 2003, kOuts[] = {640, 1, 33, 900};
  for (const std::size_t threads : {1u, 2u, 3u, 7u}) {
    const ExecutionContext context({.threads = threads, .isa = {}});
    for (const std::int64_t rows : {0, 1, 5, 40}) {
      const auto x = test::random_rows(rows, kIn, 10);
      std::vector<BitLinear> linears;
      std::vector<std::vector<float>> together, alone;
      std::vector<BitLinear::Product> products;
      for (const std::int64_t out : kOuts) {
        linears.emplace_back(context, test::random_weights(out, kIn, static_cast<std::uint64_t>(out)));
        together.emplace_back(static_cast<std::size_t>(rows * out), 7.0f);
        alone.emplace_back(static_cast<std::size_t>(rows * out));
      }
      for (std::size_t i = 0; i < linears.size(); ++i) products.push_back({&linears[i], together[i]});
      BitLinear::forward_each(context, x, products);
      for (std::size_t i = 0; i < linears.size(); ++i) {
        linears[i].forward(context, x, alone[i]);
        ASSERT_EQ(together[i], alone[i]) << threads << " threads, " << rows << " rows, matrix " << i;
      }
      products[1].y = products[1].y.subspan(0, 0);
      if (rows > 0) {
        BITNET_EXPECT_ERROR(BitLinear::forward_each(context, x, products), ErrorCode::kInvalidArgument,
                            "results for");
      }
    }
  }
}

TEST(BitLinear, ASumOfProductsIsOneAfterTheOther) {
  constexpr std::int64_t kIns[] = {32, 640, 33, 32}, kOut = 1003;
  for (const std::size_t threads : {1u, 2u, 5u}) {
    const ExecutionContext context({.threads = threads, .isa = {}});
    for (const std::int64_t rows : {0, 1, 5, 70}) {
      std::vector<BitLinear> linears;
      std::vector<QuantizedRows> x;
      std::vector<BitLinear::Summand> summands;
      for (const std::int64_t in : kIns) {
        linears.emplace_back(context, test::random_weights(kOut, in, static_cast<std::uint64_t>(in), 1));
        x.push_back(test::random_rows(rows, in, 11));
      }
      const auto n = static_cast<std::size_t>(rows * kOut);
      std::vector<float> expected(n), one(n), y(n, 7.0f), scratch(n + 3);
      for (std::size_t i = 0; i < linears.size(); ++i) {
        const QuantizedRows& r = x[i];
        summands.push_back(
            {&linears[i], {r.rows, r.cols, r.stride, r.values.data(), r.inv_scales.data(), r.sums.data()}});
        linears[i].forward(context, r, i == 0 ? expected : one);
        for (std::size_t j = 0; i > 0 && j < n; ++j) expected[j] += one[j];
      }
      BitLinear::forward_sum(context, summands, scratch, y);
      ASSERT_EQ(y, expected) << threads << " threads, " << rows << " rows";
      if (rows == 0) continue;
      BITNET_EXPECT_ERROR(BitLinear::forward_sum(context, summands, std::span(scratch).first(n - 1), y),
                          ErrorCode::kInvalidArgument, "scratch of");
      BITNET_EXPECT_ERROR(BitLinear::forward_sum(context, {}, scratch, y), ErrorCode::kInvalidArgument,
                          "a sum of no products");
      const BitLinear other(context, test::random_weights(5, 32, 3));
      summands[3].linear = &other;
      BITNET_EXPECT_ERROR(BitLinear::forward_sum(context, summands, scratch, y), ErrorCode::kInvalidArgument,
                          "results for");
    }
  }
}

TEST(BitLinear, NothingInOneCutIsNothing) {
  const ExecutionContext context({.threads = 2, .isa = {}});
  BitLinear::forward_each(context, {}, {});
  BitLinear::forward_each(context, test::random_rows(3, 40, 5), {});
  BitLinear::forward_each(context, test::random_rows(0, 40, 5), {});
  const BitLinear linear(context, test::random_weights(7, 40, 6));
  std::vector<float> y;
  linear.forward(context, test::random_rows(0, 40, 5), y);
  BITNET_EXPECT_ERROR(linear.forward(context, QuantizedRows{}, y), ErrorCode::kInvalidArgument,
                      "input rows of 0");
}

TEST(BitLinear, TheContextOfTheCallMayHaveAnotherIsa) {
  const auto w = test::random_weights(37, 211, 11);
  const auto x = test::random_rows(4, 211, 12);
  const auto expected = test::naive_product(w, x);
  for (const TileCode code : kCodes) {
    const BitLinear linear(ExecutionContext{}, w, code);
    for (const Isa isa : compiled_isas()) {
      if (!is_supported(isa)) continue;
      std::vector<std::int32_t> acc(expected.size());
      linear.multiply_int(ExecutionContext({.threads = 1, .isa = isa}), x, acc);
      EXPECT_EQ(acc, expected) << to_string(isa);
    }
  }
}

#ifdef BITNET_COUNT_ALLOCATIONS
TEST(BitLinear, TheRunPhaseAllocatesNothing) {
  const ExecutionContext context({.threads = 1, .isa = {}});
  const BitLinear linear(context, test::random_weights(40, 100, 19));
  const auto input = test::random_floats(300, 20);
  QuantizedRows x;
  quantize_rows(context, input, 3, 100, x);  // the first call sizes x
  std::vector<float> y(120);
  std::vector<std::int32_t> acc(120);
  const long before = test::allocations();
  quantize_rows(context, input, 3, 100, x);
  linear.forward(context, x, y);
  linear.multiply_int(context, x, acc);
  EXPECT_EQ(test::allocations(), before);
}
#endif

TEST(BitLinear, GivesItsTritsBack) {
  const ExecutionContext context;
  for (const Size& s : sizes()) {
    const auto w = test::random_weights(s.out, s.in, 13);
    for (const TileCode code : kCodes) EXPECT_EQ(BitLinear(context, w, code).trits(), w.trits);
  }
}

TEST(BitLinear, TakesTheCodeThatSuitsTheIsaUnlessOneIsAsked) {
  const auto w = test::random_weights(40, 100, 21);
  for (const Isa isa : compiled_isas()) {
    if (!is_supported(isa)) continue;
    const ExecutionContext context({.threads = 1, .isa = isa});
    EXPECT_EQ(BitLinear(context, w).code(), default_tile_code(isa));
    const bool looks_up = to_string(isa) == "avx512_vbmi" || to_string(isa) == "amx_int8";
    EXPECT_EQ(preferred_tile_code(isa) == TileCode::kBase3, looks_up) << to_string(isa);
    const BitLinear two_bit(context, w, TileCode::kTwoBit), base3(context, w, TileCode::kBase3);
    EXPECT_EQ(two_bit.bytes(), 3 * 7 * 64 + 40 * sizeof(float));  // 3 tiles of 7 lines of 16 columns
    EXPECT_EQ(base3.bytes(), 3 * 5 * 64 + 40 * sizeof(float));    // 5 lines of 20 columns
  }
}

TEST(BitLinear, TheEnvironmentNamesTheCode) {
  const auto w = test::random_weights(40, 100, 22);
  const ExecutionContext context;
  const char* const before = std::getenv("BITNET_TILE_CODE");
  const std::string old = before == nullptr ? "" : before;
  for (const TileCode code : kCodes) {
    setenv("BITNET_TILE_CODE", std::string(to_string(code)).c_str(), 1);
    EXPECT_EQ(BitLinear(context, w).code(), code);
  }
  setenv("BITNET_TILE_CODE", "ternary", 1);
  BITNET_EXPECT_ERROR(BitLinear(context, w), ErrorCode::kInvalidArgument,
                      "BITNET_TILE_CODE: unknown tile code 'ternary' (there are: two_bit, base3)");
  setenv("BITNET_TILE_CODE", old.c_str(), 1);  // empty counts as unset
}

TEST(BitLinear, TakesItsRowsFromASource) {
  for (const std::size_t threads : {1, 3}) {
    const ExecutionContext context({.threads = threads, .isa = {}});
    for (const Size& s : sizes()) {
      const auto w = test::random_weights(s.out, s.in, 13);
      std::vector<std::atomic<int>> asked(static_cast<std::size_t>(s.out));
      const auto rows = [&](std::int64_t begin, std::int64_t end, std::int8_t* to) {
        for (std::int64_t r = begin; r < end; ++r) ++asked[static_cast<std::size_t>(r)];
        std::copy(w.trits.data() + begin * s.in, w.trits.data() + end * s.in, to);
      };
      EXPECT_EQ(BitLinear(context, s.out, s.in, rows, w.scales, w.rows_per_scale).trits(), w.trits);
      for (const auto& n : asked) EXPECT_EQ(n, 1);
    }
  }
}

TEST(BitLinear, PassesOnWhatItsSourceThrows) {
  const ExecutionContext context({.threads = 2, .isa = {}});
  const std::vector<float> scale{1};
  const auto fails = [](std::int64_t begin, std::int64_t end, std::int8_t* to) {
    if (begin <= 700 && 700 < end) throw Error(ErrorCode::kCorruptFile, "row 700");
    std::fill(to, to + (end - begin) * 3, std::int8_t{1});
  };
  BITNET_EXPECT_ERROR(BitLinear(context, 1000, 3, fails, scale, 1000), ErrorCode::kCorruptFile, "row 700");
  const auto wrong = [](std::int64_t begin, std::int64_t end, std::int8_t* to) {
    std::fill(to, to + (end - begin) * 3, std::int8_t{1});
    if (begin <= 700 && 700 < end) to[(700 - begin) * 3 + 2] = 2;
  };
  BITNET_EXPECT_ERROR(BitLinear(context, 1000, 3, wrong, scale, 1000), ErrorCode::kInvalidArgument,
                      "row 700, column 2 is 2");
}

TEST(BitLinear, RefusesAWrongTritAnywhere) {
  const ExecutionContext context({.threads = 1, .isa = {}});
  const std::int64_t out = 23, in = 93;  // words and groups of rows, whole and cut
  for (const TileCode code : kCodes) {
    auto w = test::random_weights(out, in, 24);
    for (std::int64_t i = 0; i < out * in; i += 5) {
      for (const int wrong : {2, 3, 7, 127, -2, -128}) {
        auto& trit = w.trits[static_cast<std::size_t>(i)];
        const std::int8_t right = std::exchange(trit, static_cast<std::int8_t>(wrong));
        BITNET_EXPECT_ERROR(BitLinear(context, w, code), ErrorCode::kInvalidArgument,
                            "row " + std::to_string(i / in) + ", column " + std::to_string(i % in) + " is");
        trit = right;
      }
    }
    EXPECT_EQ(BitLinear(context, w, code).trits(), w.trits);
  }
}

TEST(BitLinear, NoRowsIsNoWork) {
  const ExecutionContext context;
  const BitLinear linear(context, test::random_weights(5, 5, 14));
  linear.forward(context, test::random_rows(0, 5, 15), {});
}

TEST(BitLinear, RefusesWhatDoesNotFit) {
  const ExecutionContext context;
  auto w = test::random_weights(4, 6, 16);
  w.trits[15] = 2;
  BITNET_EXPECT_ERROR(BitLinear(context, w), ErrorCode::kInvalidArgument, "row 2, column 3 is 2,");
  w.trits[15] = 127;
  BITNET_EXPECT_ERROR(BitLinear(context, w), ErrorCode::kInvalidArgument, "is 127");
  w.trits[15] = -2;
  BITNET_EXPECT_ERROR(BitLinear(context, w), ErrorCode::kInvalidArgument, "is -2");
  w.trits[15] = 0;
  w.scales.push_back(1);
  BITNET_EXPECT_ERROR(BitLinear(context, w), ErrorCode::kInvalidArgument, "2 scales for 4 rows");
  w.scales = {std::numeric_limits<float>::infinity()};
  BITNET_EXPECT_ERROR(BitLinear(context, w), ErrorCode::kInvalidArgument, "not finite");
  w.scales = {1};
  w.trits.pop_back();
  const std::span<const std::int8_t> none;
  BITNET_EXPECT_ERROR(BitLinear(context, w), ErrorCode::kInvalidArgument, "23 trits for a matrix of 4 x 6");
  BITNET_EXPECT_ERROR(BitLinear(context, 1, 500'001, none, {}, 1), ErrorCode::kInvalidArgument,
                      "500001 columns");
  BITNET_EXPECT_ERROR(BitLinear(context, std::int64_t{1} << 62, 8, none, {}, 1), ErrorCode::kInvalidArgument,
                      "no possible size");

  const BitLinear linear(context, test::random_weights(4, 6, 17));
  std::vector<float> y(8);
  BITNET_EXPECT_ERROR(linear.forward(context, test::random_rows(2, 7, 18), y), ErrorCode::kInvalidArgument,
                      "rows of 7, expected 6");
  BITNET_EXPECT_ERROR(linear.forward(context, test::random_rows(3, 6, 18), y), ErrorCode::kInvalidArgument,
                      "8 results for 3 rows of 4");
  BitLinear other(context, test::random_weights(4, 6, 17));
  const std::vector<std::int8_t> trits(24, 1), wrong(24, 3);
  const std::vector<float> one = {1}, three = {1, 1, 1}, infinite = {std::numeric_limits<float>::infinity()};
  BITNET_EXPECT_ERROR(other.assign(std::span(trits).first(23), one), ErrorCode::kInvalidArgument,
                      "23 trits for a matrix of 4 x 6");
  BITNET_EXPECT_ERROR(other.assign(trits, three), ErrorCode::kInvalidArgument, "3 scales for 4 rows");
  BITNET_EXPECT_ERROR(other.assign(trits, infinite), ErrorCode::kInvalidArgument, "not finite");
  BITNET_EXPECT_ERROR(other.assign(wrong, one), ErrorCode::kInvalidArgument, "row 0, column 0 is 3");
  auto narrow = test::random_rows(2, 6, 18);
  narrow.stride = 6;
  BITNET_EXPECT_ERROR(linear.forward(context, narrow, y), ErrorCode::kInvalidArgument,
                      "not as quantize_rows");
}

TEST(BitLinear, WhatItIsAssignedIsWhatItMultiplies) {
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  for (const TileCode code : {TileCode::kTwoBit, TileCode::kBase3})
    for (const auto& [out, in] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {32, 64}, {37, 83}}) {
      BitLinear linear(context, test::random_weights(out, in, 1), code);
      TernaryWeights next = test::random_weights(out, in, 2);
      next.rows_per_scale = 1;
      next.scales.clear();
      for (std::int64_t o = 0; o < out; ++o) next.scales.push_back(0.5f + static_cast<float>(o));
      const BitLinear fresh(context, next, code);
      linear.assign(next.trits, next.scales);
      EXPECT_EQ(linear.trits(), next.trits);
      const QuantizedRows x = test::random_rows(9, in, 3);
      std::vector<float> y(static_cast<std::size_t>(9 * out)), expected(y.size()), seen(y.size());
      fresh.forward(context, x, expected);
      linear.forward(context, x, y);
      EXPECT_EQ(y, expected);
      linear.forward(
          context,
          QuantizedView{x.rows, x.cols, x.stride, x.values.data(), x.inv_scales.data(), x.sums.data()}, seen);
      EXPECT_EQ(seen, expected);
      const float one = 2;
      linear.assign(next.trits, {&one, 1});  // one scale for all rows
      linear.forward(context, x, y);
      for (std::size_t i = 0; i < y.size(); ++i)
        EXPECT_NEAR(y[i], expected[i] * one / next.scales[i % static_cast<std::size_t>(out)],
                    1e-6f * std::abs(y[i]));
    }
}

}  // namespace
}  // namespace bitnet::quant
