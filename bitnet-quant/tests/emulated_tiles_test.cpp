// The tile algorithm on emulated tiles (emulated_tiles.cpp) against the scalar kernels: what AMX computes,
// tested on processors without it.
#include "bitnet/testing/emulated_tiles.hpp"
#include "bitnet/testing/testing.hpp"
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
}
#if defined(__x86_64__)
namespace avx512_vbmi {
extern const TernaryKernels kKernels;
}
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

/// Tiles [begin, end) of the product; results elsewhere stay 7.
std::vector<std::int32_t> run(const TernaryKernels& kernels, TileCode code, const TernaryWeights& w,
                              const QuantizedRows& x, std::int64_t begin, std::int64_t end) {
  const std::int64_t lines = tile_lines(code, w.in), tiles = (w.out + 15) / 16;
  std::vector<std::uint8_t> packed(static_cast<std::size_t>(tiles * lines * kLineBytes));
  for (std::int64_t t = 0; t < tiles; ++t)
    pack_tile(code, w.trits.data() + t * 16 * w.in, std::min<std::int64_t>(16, w.out - t * 16), w.in,
              packed.data() + t * lines * kLineBytes);
  auto values = x.values;  // what lies beyond the last line may be anything
  for (std::int64_t r = 0; r < x.rows; ++r)
    std::fill(values.begin() + r * x.stride + lines * line_columns(code), values.begin() + (r + 1) * x.stride,
              std::int8_t{77});
  std::vector<std::int32_t> acc(static_cast<std::size_t>(x.rows * w.out), 7);
  kernels.multiply({.code = code,
                    .tiles = packed.data(),
                    .lines = lines,
                    .out = w.out,
                    .tile_begin = begin,
                    .tile_end = end,
                    .x = values.data(),
                    .stride = x.stride,
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

}  // namespace
}  // namespace bitnet::quant
