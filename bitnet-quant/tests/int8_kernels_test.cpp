// The int8 kernel tables themselves: nothing beyond the arrays is touched (forbidden pages on either side),
// and every ISA of this CPU gives the same integers and floats.
#include "kernels/int8_table.hpp"

#include <cstdlib>

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

/// Any int8 but −128. [out, in]
std::vector<std::int8_t> random_int8(std::int64_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::int8_t> w(static_cast<std::size_t>(n));
  for (auto& v : w) v = static_cast<std::int8_t>(static_cast<int>(rng.next() % 255) - 127);
  return w;
}

/// Tiles written straight from the description in int8_table.hpp.
std::vector<std::int8_t> tiles_of(const std::vector<std::int8_t>& w, std::int64_t out, std::int64_t in) {
  const std::int64_t lines = (in + 3) / 4, tiles = (out + 15) / 16;
  std::vector<std::int8_t> bytes(static_cast<std::size_t>(tiles * lines * 64));
  for (std::int64_t o = 0; o < out; ++o)
    for (std::int64_t k = 0; k < in; ++k)
      bytes[static_cast<std::size_t>((o / 16 * lines + k / 4) * 64 + o % 16 * 4 + k % 4)] =
          w[static_cast<std::size_t>(o * in + k)];
  return bytes;
}

/// The product with every array exactly as long as documented and next to a forbidden page; x has the
/// smallest stride.
Result run_guarded(const Int8Kernels& kernels, const std::vector<std::int8_t>& w, std::int64_t out,
                   const QuantizedRows& rows, Guard guard) {
  const std::int64_t lines = (rows.cols + 3) / 4, stride = (4 * lines + 63) / 64 * 64;
  const auto tiles = tiles_of(w, out, rows.cols);
  std::vector<std::int8_t> x;
  for (std::int64_t r = 0; r < rows.rows; ++r)
    x.insert(x.end(), rows.values.begin() + r * rows.stride, rows.values.begin() + r * rows.stride + stride);
  const std::vector<float> scales = test::random_floats(out, 9);
  GuardedBuffer<std::int8_t> g_tiles(std::span<const std::int8_t>(tiles), guard);
  GuardedBuffer<std::int8_t> g_x(std::span<const std::int8_t>(x), guard);
  GuardedBuffer<std::int32_t> g_sums(std::span<const std::int32_t>(rows.sums), guard);
  GuardedBuffer<float> g_scales(std::span<const float>(scales), guard);
  GuardedBuffer<float> g_inverse(std::span<const float>(rows.inv_scales), guard);
  GuardedBuffer<std::int32_t> g_acc(static_cast<std::size_t>(rows.rows * out), guard);
  GuardedBuffer<float> g_y(static_cast<std::size_t>(rows.rows * out), guard);
  Int8Product product{.tiles = g_tiles.data(),
                      .lines = lines,
                      .out = out,
                      .tile_begin = 0,
                      .tile_end = (out + 15) / 16,
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

std::vector<std::int32_t> naive(const std::vector<std::int8_t>& w, std::int64_t out, const QuantizedRows& x) {
  std::vector<std::int32_t> acc;
  for (std::int64_t r = 0; r < x.rows; ++r)
    for (std::int64_t o = 0; o < out; ++o) {
      std::int32_t sum = 0;
      for (std::int64_t k = 0; k < x.cols; ++k)
        sum += x.values[static_cast<std::size_t>(r * x.stride + k)] *
               w[static_cast<std::size_t>(o * x.cols + k)];
      acc.push_back(sum);
    }
  return acc;
}

const std::int64_t kSizes[][3] = {{1, 1, 1},  {1, 16, 16},    {2, 15, 17},    {3, 33, 100}, {12, 32, 68},
                                  {7, 64, 5}, {13, 47, 1000}, {1, 100, 3200}, {26, 50, 700}};

TEST(Int8Kernels, NothingBeyondTheArraysIsTouched) {
  const Int8Kernels& kernels = int8_kernels(default_isa());
  EXPECT_EQ(std::string(kernels.isa), to_string(default_isa()));
  for (const auto& s : kSizes) {
    const auto w = random_int8(s[1] * s[2], 1);
    const auto x = test::random_rows(s[0], s[2], 2);
    const Result after = run_guarded(kernels, w, s[1], x, Guard::kAfter);
    EXPECT_EQ(after.acc, naive(w, s[1], x));
    EXPECT_EQ(after, run_guarded(kernels, w, s[1], x, Guard::kBefore));
  }
}

TEST(Int8Kernels, ExtremesDoNotSaturate) {
  const Int8Kernels& kernels = int8_kernels(default_isa());
  for (const std::int64_t rows : {3, 20})
    for (const int weight : {-127, 127})
      for (const int value : {-128, 127}) {
        auto x = test::random_rows(rows, 40, 3);
        for (std::int64_t r = 0; r < rows; ++r) {
          std::fill_n(x.values.begin() + r * x.stride, 40, static_cast<std::int8_t>(value));
          x.sums[static_cast<std::size_t>(r)] = 40 * value;
        }
        const std::vector<std::int8_t> w(20 * 40, static_cast<std::int8_t>(weight));
        const Result result = run_guarded(kernels, w, 20, x, Guard::kAfter);
        for (const std::int32_t v : result.acc) ASSERT_EQ(v, 40 * weight * value);
      }
}

TEST(Int8Kernels, EveryIsaGivesTheSameBits) {
  for (const auto& s : kSizes) {
    const auto w = random_int8(s[1] * s[2], 4);
    const auto x = test::random_rows(s[0], s[2], 5);
    const Result expected = run_guarded(int8_kernels(compiled_isas().front()), w, s[1], x, Guard::kAfter);
    for (const Isa isa : compiled_isas()) {
      if (!is_supported(isa)) continue;
      EXPECT_EQ(run_guarded(int8_kernels(isa), w, s[1], x, Guard::kAfter), expected) << to_string(isa);
    }
  }
}

}  // namespace
}  // namespace bitnet::quant
