// The kernel tables themselves: nothing beyond the arrays is touched (forbidden pages on either side), and
// every ISA of this CPU gives the same integers and floats.
#include "kernels/ternary_table.hpp"

#include "bitnet/testing/guarded_buffer.hpp"
#include "bitnet/testing/testing.hpp"
#include "quant_support.hpp"

namespace bitnet::quant {
namespace {

using testing::Guard;
using testing::GuardedBuffer;

struct Result {
  std::vector<std::int32_t> acc;
  std::vector<float> y;
  friend bool operator==(const Result&, const Result&) = default;
};

constexpr TileCode kCodes[] = {TileCode::kTwoBit, TileCode::kBase3};

std::int64_t columns_of(TileCode code) { return code == TileCode::kTwoBit ? 16 : 20; }

/// Tiles written straight from the description in ternary_table.hpp.
std::vector<std::uint8_t> tiles_of(TileCode code, const TernaryWeights& w) {
  const std::int64_t columns = columns_of(code), lines = (w.in + columns - 1) / columns;
  std::vector<std::uint8_t> bytes;
  for (std::int64_t tile = 0; tile < (w.out + 15) / 16; ++tile)
    for (std::int64_t line = 0; line < lines; ++line)
      for (std::int64_t r = 0; r < 16; ++r)
        for (std::int64_t j = 0; j < 4; ++j) {
          unsigned d[5] = {};
          for (std::int64_t i = 0; i < columns / 4; ++i) {
            const std::int64_t o = 16 * tile + r, k = columns * line + 4 * i + j;
            if (o < w.out && k < w.in)
              d[i] = static_cast<unsigned>(w.trits[static_cast<std::size_t>(o * w.in + k)] + 1);
          }
          const unsigned t = d[0] + 3 * d[1] + 9 * d[2] + 27 * d[3];
          const unsigned byte = code == TileCode::kTwoBit ? d[0] + 4 * d[1] + 16 * d[2] + 64 * d[3]
                                : t < 64                  ? t + 64 * d[4]
                                                          : 192 + 3 * (t - 64) + d[4];
          bytes.push_back(static_cast<std::uint8_t>(byte));
        }
  return bytes;
}

/// The product with every array exactly as long as documented and next to a forbidden page; x has the
/// smallest stride.
Result run_guarded(const TernaryKernels& kernels, TileCode code, const TernaryWeights& w,
                   const QuantizedRows& rows, Guard guard) {
  const std::int64_t columns = columns_of(code), lines = (w.in + columns - 1) / columns,
                     stride = (columns * lines + 63) / 64 * 64;
  const auto tiles = tiles_of(code, w);
  std::vector<std::int8_t> x;
  for (std::int64_t r = 0; r < rows.rows; ++r)
    x.insert(x.end(), rows.values.begin() + r * rows.stride, rows.values.begin() + r * rows.stride + stride);
  std::vector<float> scales(static_cast<std::size_t>(w.out), w.scales[0]);
  GuardedBuffer<std::uint8_t> g_tiles(std::span<const std::uint8_t>(tiles), guard);
  GuardedBuffer<std::int8_t> g_x(std::span<const std::int8_t>(x), guard);
  GuardedBuffer<std::int32_t> g_sums(std::span<const std::int32_t>(rows.sums), guard);
  GuardedBuffer<float> g_scales(std::span<const float>(scales), guard);
  GuardedBuffer<float> g_inverse(std::span<const float>(rows.inv_scales), guard);
  GuardedBuffer<std::int32_t> g_acc(static_cast<std::size_t>(rows.rows * w.out), guard);
  GuardedBuffer<float> g_y(static_cast<std::size_t>(rows.rows * w.out), guard);
  TernaryProduct product{.code = code,
                         .tiles = g_tiles.data(),
                         .lines = lines,
                         .out = w.out,
                         .tile_begin = 0,
                         .tile_end = (w.out + 15) / 16,
                         .x = g_x.data(),
                         .stride = stride,
                         .rows = rows.rows,
                         .sums = g_sums.data(),
                         .acc = g_acc.data(),
                         .y = nullptr,
                         .scales = nullptr,
                         .inv_scales = nullptr};
  kernels.multiply(product);
  product.acc = nullptr;
  product.y = g_y.data();
  product.scales = g_scales.data();
  product.inv_scales = g_inverse.data();
  kernels.multiply(product);
  return {{g_acc.span().begin(), g_acc.span().end()}, {g_y.span().begin(), g_y.span().end()}};
}

/// [rows, out, in]: few and many rows, ragged tiles and lines, one panel of 640 columns and more.
const std::int64_t kSizes[][3] = {
    {1, 1, 1},    {1, 16, 16},  {2, 15, 17},    {3, 33, 100}, {7, 64, 5},     {13, 47, 1000}, {1, 100, 3200},
    {9, 16, 640}, {8, 33, 641}, {16, 32, 1280}, {31, 17, 60}, {300, 20, 700}, {24, 129, 1921}};

TEST(TernaryKernels, NothingBeyondTheArraysIsTouched) {
  const TernaryKernels& kernels = ternary_kernels(default_isa());
  EXPECT_EQ(std::string(kernels.isa), to_string(default_isa()));
  for (const auto& s : kSizes) {
    const auto w = test::random_weights(s[1], s[2], 1);
    const auto x = test::random_rows(s[0], s[2], 2);
    for (const TileCode code : kCodes) {
      const Result after = run_guarded(kernels, code, w, x, Guard::kAfter);
      EXPECT_EQ(after.acc, test::naive_product(w, x));
      EXPECT_EQ(after, run_guarded(kernels, code, w, x, Guard::kBefore));
    }
  }
}

TEST(TernaryKernels, QuantizeTouchesNothingBeyondTheArrays) {
  const TernaryKernels& kernels = ternary_kernels(default_isa());
  for (std::int64_t n = 1; n <= 70; ++n) {
    const auto values = test::random_floats(n, 3);
    std::vector<std::int8_t> results[2];
    std::int32_t sums[2];
    for (const Guard guard : {Guard::kAfter, Guard::kBefore}) {
      GuardedBuffer<float> x(std::span<const float>(values), guard);
      GuardedBuffer<std::int8_t> q(values.size(), guard);
      const auto i = static_cast<std::size_t>(guard);
      sums[i] = kernels.quantize(x.data(), 127.0f, q.data(), values.size());
      results[i].assign(q.span().begin(), q.span().end());
    }
    EXPECT_EQ(results[0], results[1]);
    EXPECT_EQ(sums[0], sums[1]);
  }
}

/// All 243 bytes of five trits, in every lane and column of a line, by one row and by enough for a panel.
TEST(TernaryKernels, EveryCombinationOfTritsIsDecoded) {
  const TernaryKernels& kernels = ternary_kernels(default_isa());
  for (const TileCode code : kCodes) {
    const std::int64_t columns = columns_of(code), digits = columns / 4;
    TernaryWeights w{.out = 16, .in = 250 * columns, .trits = {}, .scales = {1}, .rows_per_scale = 16};
    for (std::int64_t o = 0; o < w.out; ++o)
      for (std::int64_t k = 0; k < w.in; ++k) {
        std::int64_t combination = k / columns + 4 * o + k % 4;
        for (std::int64_t i = 0; i < k % columns / 4; ++i) combination /= 3;
        w.trits.push_back(static_cast<std::int8_t>(combination % 3 - 1));
      }
    ASSERT_GE(w.in / columns, digits == 5 ? 243 : 81);
    for (const std::int64_t rows : {1, 2, 20}) {
      const auto x = test::random_rows(rows, w.in, 8);
      EXPECT_EQ(run_guarded(kernels, code, w, x, Guard::kAfter).acc, test::naive_product(w, x)) << rows;
    }
  }
}

TEST(TernaryKernels, EveryIsaGivesTheSameBits) {
  for (const auto& s : kSizes) {
    const auto w = test::random_weights(s[1], s[2], 4);
    const auto x = test::random_rows(s[0], s[2], 5);
    const Result expected =
        run_guarded(ternary_kernels(compiled_isas().front()), TileCode::kTwoBit, w, x, Guard::kAfter);
    for (const Isa isa : compiled_isas()) {
      if (!is_supported(isa)) continue;
      for (const TileCode code : kCodes)
        EXPECT_EQ(run_guarded(ternary_kernels(isa), code, w, x, Guard::kAfter), expected) << to_string(isa);
    }
  }
}

}  // namespace
}  // namespace bitnet::quant
