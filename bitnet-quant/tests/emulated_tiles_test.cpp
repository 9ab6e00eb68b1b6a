// The tile algorithm on emulated tiles (emulated_tiles.cpp, emulated_int8_tiles.cpp) against the scalar
// kernels: what AMX computes, tested on processors without it. Rows of x end at a forbidden page.
#include "bitnet/testing/emulated_tiles.hpp"
#include "bitnet/testing/guarded_buffer.hpp"
#include "bitnet/testing/testing.hpp"
#include "kernels/int8_table.hpp"
#include "kernels/ternary_table.hpp"
#include "quant_support.hpp"
#include "tile_packing.hpp"

namespace bitnet::testing {
int tile_misuses = 0;
}

namespace bitnet::quant {
namespace emulated {
namespace scalar {
extern const TernaryKernels kKernels;
extern const Int8Kernels kInt8Kernels;
}  // namespace scalar
#if defined(__x86_64__)
namespace avx512_vbmi {
extern const TernaryKernels kKernels;
extern const Int8Kernels kInt8Kernels;
}  // namespace avx512_vbmi
#endif
}  // namespace emulated

namespace {

std::vector<const TernaryKernels*> variants() {
  std::vector<const TernaryKernels*> all{&emulated::scalar::kKernels};
#if defined(__x86_64__)
  for (const Isa isa : compiled_isas())
    if (to_string(isa) == "avx512_vbmi" && is_supported(isa)) all.push_back(&emulated::avx512_vbmi::kKernels);
#endif
  return all;
}

/// Rows as documented and no longer: the stride is `columns` rounded up to 64, and what lies beyond them may
/// be anything.
struct GuardedRows {
  GuardedRows(const QuantizedRows& x, std::int64_t columns)
      : stride((columns + 63) / 64 * 64), values(static_cast<std::size_t>(x.rows * stride)) {
    for (std::int64_t r = 0; r < x.rows; ++r) {
      std::fill_n(values.data() + r * stride, stride, std::int8_t{77});
      std::copy_n(x.values.begin() + r * x.stride, columns, values.data() + r * stride);
    }
  }
  std::int64_t stride;
  testing::GuardedBuffer<std::int8_t> values;
};

/// Tiles [begin, end) of the product; results elsewhere stay 7.
std::vector<std::int32_t> run(const TernaryKernels& kernels, TileCode code, const TernaryWeights& w,
                              const QuantizedRows& x, std::int64_t begin, std::int64_t end) {
  const std::int64_t lines = tile_lines(code, w.in), tiles = (w.out + 15) / 16;
  std::vector<std::uint8_t> packed(static_cast<std::size_t>(tiles * lines * kLineBytes));
  for (std::int64_t t = 0; t < tiles; ++t)
    pack_tile(code, w.trits.data() + t * 16 * w.in, std::min<std::int64_t>(16, w.out - t * 16), w.in,
              packed.data() + t * lines * kLineBytes);
  GuardedRows rows(x, lines * line_columns(code));
  std::vector<std::int32_t> acc(static_cast<std::size_t>(x.rows * w.out), 7);
  kernels.multiply({.code = code,
                    .tiles = packed.data(),
                    .lines = lines,
                    .out = w.out,
                    .tile_begin = begin,
                    .tile_end = end,
                    .x = rows.values.data(),
                    .stride = rows.stride,
                    .rows = x.rows,
                    .sums = x.sums.data(),
                    .acc = acc.data(),
                    .y = nullptr,
                    .scales = nullptr,
                    .inv_scales = nullptr});
  return acc;
}

/// [rows, out, in]: ragged row blocks, one and two weight tiles, ragged tiles of 64 columns, one panel of 640
/// and more, more rows than sums are kept for.
const std::int64_t kSizes[][3] = {{1, 1, 1},      {8, 16, 64},   {15, 17, 65},   {16, 32, 640},
                                  {17, 33, 641},  {31, 48, 700}, {32, 20, 63},   {33, 64, 1280},
                                  {48, 16, 1300}, {9, 70, 1921}, {520, 33, 660}, {1030, 16, 20}};

TEST(EmulatedTiles, EqualTheScalarKernels) {
  const TernaryKernels& scalar = ternary_kernels(compiled_isas().front());
  for (const auto& s : kSizes) {
    const auto w = test::random_weights(s[1], s[2], 31);
    const auto x = test::random_rows(s[0], s[2], 32);
    const std::int64_t tiles = (w.out + 15) / 16;
    for (const TileCode code : {TileCode::kTwoBit, TileCode::kBase3})
      for (const TernaryKernels* kernels : variants())
        for (const std::int64_t begin : {std::int64_t{0}, tiles - 1})
          ASSERT_EQ(run(*kernels, code, w, x, begin, tiles), run(scalar, code, w, x, begin, tiles))
              << s[0] << " x " << s[1] << " x " << s[2] << ", decoded by " << kernels->isa;
  }
  EXPECT_EQ(testing::tile_misuses, 0);
}

/// Tiles [begin, end) of an int8 product; results elsewhere stay 7.
std::vector<std::int32_t> run(const Int8Kernels& kernels, const std::vector<std::int8_t>& w, std::int64_t out,
                              const QuantizedRows& x, std::int64_t begin, std::int64_t end) {
  const std::int64_t lines = (x.cols + 3) / 4, tiles = (out + 15) / 16;
  testing::GuardedBuffer<std::int8_t> packed(static_cast<std::size_t>(tiles * lines * 64));
  for (std::int64_t i = 0; i < out * x.cols; ++i) {
    const std::int64_t o = i / x.cols, k = i % x.cols;
    packed[static_cast<std::size_t>((o / 16 * lines + k / 4) * 64 + o % 16 * 4 + k % 4)] =
        w[static_cast<std::size_t>(i)];
  }
  GuardedRows rows(x, 4 * lines);
  std::vector<std::int32_t> acc(static_cast<std::size_t>(x.rows * out), 7);
  kernels.multiply({.tiles = packed.data(),
                    .lines = lines,
                    .out = out,
                    .tile_begin = begin,
                    .tile_end = end,
                    .x = rows.values.data(),
                    .stride = rows.stride,
                    .rows = x.rows,
                    .sums = x.sums.data(),
                    .acc = acc.data(),
                    .y = nullptr,
                    .scales = nullptr,
                    .inv_scales = nullptr});
  return acc;
}

TEST(EmulatedTiles, EqualTheScalarKernelsOfInt8) {
  const Int8Kernels& scalar = int8_kernels(compiled_isas().front());
  for (const auto& s : kSizes) {
    Rng rng(33);
    std::vector<std::int8_t> w;
    for (std::int64_t i = 0; i < s[1] * s[2]; ++i)
      w.push_back(static_cast<std::int8_t>(static_cast<int>(rng.below(255)) - 127));
    const auto x = test::random_rows(s[0], s[2], 34);
    const std::int64_t tiles = (s[1] + 15) / 16;
    for (const std::int64_t begin : {std::int64_t{0}, tiles - 1})
      ASSERT_EQ(run(emulated::scalar::kInt8Kernels, w, s[1], x, begin, tiles),
                run(scalar, w, s[1], x, begin, tiles))
          << s[0] << " x " << s[1] << " x " << s[2];
  }
  EXPECT_EQ(testing::tile_misuses, 0);
}

/// Biased sums of 255·128·K pass 2^31 from K = 65,794 on.
TEST(EmulatedTiles, Int8SumsThatWrapComeOutExact) {
  for (const int weight : {-127, 127})
    for (const int value : {-128, 127}) {
      QuantizedRows x{
          .rows = 9,
          .cols = kInt8MaxColumns,
          .stride = kInt8MaxColumns,
          .values = {},
          .inv_scales = {},
          .sums = std::pmr::vector<std::int32_t>(9, static_cast<std::int32_t>(value * kInt8MaxColumns))};
      x.values.assign(static_cast<std::size_t>(9 * x.stride), static_cast<std::int8_t>(value));
      const std::vector<std::int8_t> w(static_cast<std::size_t>(2 * x.cols),
                                       static_cast<std::int8_t>(weight));
      for (const std::int32_t v : run(emulated::scalar::kInt8Kernels, w, 2, x, 0, 1))
        ASSERT_EQ(v, static_cast<std::int32_t>(weight * value * kInt8MaxColumns));
    }
  EXPECT_EQ(testing::tile_misuses, 0);
}

}  // namespace
}  // namespace bitnet::quant
