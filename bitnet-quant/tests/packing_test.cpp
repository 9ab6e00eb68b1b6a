// The file layouts: golden vectors with published sums, round trips of random matrices, and refusals.
#include "bitnet/quant/packing.hpp"

#include <rapidcheck.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "bitnet/core/dtype.hpp"
#include "bitnet/testing/sha256.hpp"
#include "bitnet/testing/testing.hpp"
#include "quant_support.hpp"

namespace bitnet::quant {
namespace {

/// The golden matrix: w[i] = ((i² + 3i) mod 7) mod 3 − 1.
TernaryWeights golden(std::int64_t out, std::int64_t in) {
  TernaryWeights w{.out = out, .in = in, .trits = {}, .scales = {0.5f}, .rows_per_scale = out};
  for (std::int64_t i = 0; i < out * in; ++i)
    w.trits.push_back(static_cast<std::int8_t>((i * i + 3 * i) % 7 % 3) - 1);
  return w;
}

std::string hex(std::span<const std::byte> bytes) {
  std::string text;
  for (const std::byte b : bytes) {
    text += "0123456789abcdef"[std::to_integer<unsigned>(b) >> 4];
    text += "0123456789abcdef"[std::to_integer<unsigned>(b) & 15];
  }
  return text;
}

TEST(Sha256, KnownAnswers) {
  EXPECT_EQ(testing::sha256({}), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  const std::string text(200, 'a');
  EXPECT_EQ(testing::sha256(std::as_bytes(std::span(text))),
            "c2a908d98f5df987ade41b5fce213067efbcc21ef2240212a41e54b5e7c28ae5");
}

TEST(Packing, GoldenVectors) {
  const auto i2s = pack(TernaryLayout::kI2_S, golden(1, 512));
  EXPECT_EQ(hex(i2s).substr(0, 16), "0662244118899006");
  EXPECT_EQ(hex(i2s).substr(256, 16), "0000003f00000000");
  EXPECT_EQ(testing::sha256(i2s), "60a8a9fb41fec3b87f4034976a347e3f3bfcc1588356f07ea432379c3600e352");
  const auto tq2 = pack(TernaryLayout::kTQ2_0, golden(1, 512));
  EXPECT_EQ(testing::sha256(tq2), "18c72767117c0add99198f7169ac3400e110d321774d217797d30613a338c6b5");
  const auto tq1 = pack(TernaryLayout::kTQ1_0, golden(1, 512));
  EXPECT_EQ(testing::sha256(tq1), "589fcd32188900075ecdbbdf9081f577af27eb8fb0eaed343286e346bc48ed3a");
  const auto hf = pack(TernaryLayout::kHfUint8, golden(16, 32));
  EXPECT_EQ(testing::sha256(hf), "f313a34f5096c2557dc2dab2e0e3647b700aff141b7f323e868cb72650fff596");
}

TEST(Packing, HuggingFaceBytesHoldRowsAQuarterApart) {
  const std::byte bytes[] = {std::byte{0b10100001}, std::byte{0b00011000}, std::byte{0b10010000},
                             std::byte{0b00001010}};
  const TernaryWeights w = unpack(TernaryLayout::kHfUint8, bytes, 8, 2);
  EXPECT_EQ(w.trits, (std::vector<std::int8_t>{0, -1, -1, 1, -1, 1, -1, 1, 1, 0, 0, -1, 1, -1, 1, -1}));
  EXPECT_TRUE(w.scales.empty());
}

/// Any matrix that `layout` can hold.
TernaryWeights arbitrary(TernaryLayout layout) {
  const bool blocks = layout == TernaryLayout::kTQ1_0 || layout == TernaryLayout::kTQ2_0;
  const std::int64_t multiple = blocks ? 256 : layout == TernaryLayout::kI2_S ? 128 : 1;
  const std::int64_t out = *rc::gen::inRange<std::int64_t>(1, 14);
  const std::int64_t in = multiple * *rc::gen::inRange<std::int64_t>(1, multiple == 1 ? 40 : 4);
  const bool row_scales = blocks && *rc::gen::arbitrary<bool>();
  const auto seed = *rc::gen::arbitrary<std::uint64_t>();
  TernaryWeights w = test::random_weights(out, in, seed, row_scales ? 1 : 0);
  if (row_scales && in > 256 && *rc::gen::arbitrary<bool>()) {
    w.scales = test::random_weights(out * in / 256, 1, seed + 1, 1).scales;
    w.cols_per_scale = 256;
  }
  for (float& s : w.scales)
    if (blocks) s = f16_to_f32(f32_to_f16(s));
  return w;
}

TEST(Packing, EveryLayoutGivesBackWhatItWasGiven) {
  for (const TernaryLayout layout :
       {TernaryLayout::kHfUint8, TernaryLayout::kI2_S, TernaryLayout::kTQ1_0, TernaryLayout::kTQ2_0}) {
    EXPECT_TRUE(rc::check(std::string(to_string(layout)), [&] {
      const TernaryWeights w = arbitrary(layout);
      RC_ASSERT(layout_holds(layout, w));
      const auto bytes = pack(layout, w);
      RC_ASSERT(bytes.size() == packed_bytes(layout, w.out, w.in));
      const TernaryWeights back = unpack(layout, bytes, w.out, w.in);
      RC_ASSERT(back.trits == w.trits);
      const PackedMatrix matrix(layout, bytes, w.out, w.in);
      RC_ASSERT(matrix.scales() == back.scales && matrix.rows_per_scale() == back.rows_per_scale);
      RC_ASSERT(matrix.cols_per_scale() == back.cols_per_scale);
      if (w.cols_per_scale != 0) {
        RC_ASSERT(back.cols_per_scale == 256 && back.rows_per_scale == 1 && back.scales == w.scales);
        RC_ASSERT(pack(layout, back) == bytes);
        return;
      }
      RC_ASSERT(back.cols_per_scale == 0);
      const std::int64_t begin = *rc::gen::inRange<std::int64_t>(0, w.out);
      const std::int64_t end = *rc::gen::inRange<std::int64_t>(begin, w.out + 1);
      std::vector<std::int8_t> rows(static_cast<std::size_t>((end - begin) * w.in + 1), 77);
      matrix.unpack_rows(begin, end, rows.data());
      RC_ASSERT(std::equal(rows.begin(), rows.end() - 1, w.trits.begin() + begin * w.in));
      RC_ASSERT(rows.back() == 77);
      if (layout == TernaryLayout::kHfUint8) return;
      for (std::int64_t o = 0; o < w.out; ++o)
        RC_ASSERT(back.scales[static_cast<std::size_t>(o / back.rows_per_scale)] ==
                  w.scales[static_cast<std::size_t>(o / w.rows_per_scale)]);
    }));
  }
}

TEST(Packing, EveryTq1ByteDecodesAsTheFormatSays) {
  for (unsigned b = 0; b < 256; ++b) {
    std::vector<std::byte> bytes(54, static_cast<std::byte>(b));
    bytes[52] = std::byte{0x00};
    bytes[53] = std::byte{0x3c};  // 1.0
    const TernaryWeights w = unpack(TernaryLayout::kTQ1_0, bytes, 1, 256);
    unsigned power = 1;
    for (unsigned n = 0; n < 5; ++n, power *= 3) {
      const int t = static_cast<int>((static_cast<std::uint8_t>(b * power) * 3u) >> 8) - 1;
      ASSERT_EQ(w.trits[32 * n], t) << b;
      ASSERT_EQ(w.trits[160 + 16 * n], t) << b;
      if (n < 4) {
        ASSERT_EQ(w.trits[240 + 4 * n], t) << b;
      }
    }
  }
}

TEST(Packing, SizesThatDoNotFitAreNamedWithWhatWould) {
  std::string why;
  EXPECT_FALSE(layout_holds(TernaryLayout::kTQ1_0, test::random_weights(2, 384, 1), &why));
  EXPECT_THAT(why, ::testing::HasSubstr("multiples of 256, got 384"));
  BITNET_EXPECT_ERROR(pack(TernaryLayout::kTQ1_0, test::random_weights(2, 384, 1)), ErrorCode::kUnsupported,
                      "types that would do: hf, i2_s, extended");
  TernaryWeights groups = test::random_weights(2, 512, 1);
  groups.scales = {1, 1, 1, 1};
  groups.rows_per_scale = 1;
  groups.cols_per_scale = 256;
  EXPECT_TRUE(layout_holds(TernaryLayout::kTQ2_0, groups));
  BITNET_EXPECT_ERROR(
      pack(TernaryLayout::kI2_S, groups), ErrorCode::kUnsupported,
      "i2_s holds no scales of groups of 256 columns; types that would do: tq1_0, tq2_0, extended");
  groups.scales.resize(8, 1);
  groups.cols_per_scale = 128;
  BITNET_EXPECT_ERROR(pack(TernaryLayout::kTQ2_0, groups), ErrorCode::kUnsupported,
                      "tq2_0 holds no scales of groups of 128 columns; types that would do: extended");
  BITNET_EXPECT_ERROR(pack(TernaryLayout::kI2_S, test::random_weights(4, 256, 1, 2)), ErrorCode::kUnsupported,
                      "one scale a matrix, got 2; types that would do: tq1_0, tq2_0, extended");
  auto huge = test::random_weights(1, 256, 1);
  huge.scales[0] = 1e6f;
  BITNET_EXPECT_ERROR(pack(TernaryLayout::kTQ2_0, huge), ErrorCode::kUnsupported, "f16");
  huge.scales[0] = 1e-9f;
  BITNET_EXPECT_ERROR(pack(TernaryLayout::kTQ2_0, huge), ErrorCode::kUnsupported, "f16");
  BITNET_EXPECT_ERROR(packed_bytes(TernaryLayout::kI2_S, 1, 100), ErrorCode::kInvalidArgument,
                      "multiples of 128");
  BITNET_EXPECT_ERROR(packed_bytes(TernaryLayout::kHfUint8, -1, 4), ErrorCode::kInvalidArgument,
                      "no possible size");
  BITNET_EXPECT_ERROR(packed_bytes(TernaryLayout::kHfUint8, std::int64_t{1} << 40, std::int64_t{1} << 40),
                      ErrorCode::kInvalidArgument, "no possible size");
}

TEST(Packing, WeightsThatContradictThemselvesAreRefused) {
  auto w = test::random_weights(4, 8, 1);
  w.trits[9] = 3;
  BITNET_EXPECT_ERROR(pack(TernaryLayout::kHfUint8, w), ErrorCode::kInvalidArgument, "value 9 is 3");
  w.trits.pop_back();
  BITNET_EXPECT_ERROR(pack(TernaryLayout::kHfUint8, w), ErrorCode::kInvalidArgument, "31 trits");
  w = test::random_weights(4, 8, 1, 2);
  w.scales.pop_back();
  BITNET_EXPECT_ERROR(pack(TernaryLayout::kHfUint8, w), ErrorCode::kInvalidArgument,
                      "1 scales for 4 rows, 2 rows each");
  w.cols_per_scale = 4;
  BITNET_EXPECT_ERROR(pack(TernaryLayout::kHfUint8, w), ErrorCode::kInvalidArgument,
                      "1 scales for 4 rows, 2 rows each, by groups of 4 of 8 columns");
  w.cols_per_scale = -4;
  BITNET_EXPECT_ERROR(pack(TernaryLayout::kHfUint8, w), ErrorCode::kInvalidArgument, "-4 columns a scale");
  w = test::random_weights(4, 8, 1);
  w.scales[0] = std::nanf("");
  BITNET_EXPECT_ERROR(pack(TernaryLayout::kHfUint8, w), ErrorCode::kInvalidArgument, "scale 0 is nan");
}

TEST(Packing, BytesThatAreNotTheFormatAreCorrupt) {
  auto i2s = pack(TernaryLayout::kI2_S, golden(2, 128));
  BITNET_EXPECT_ERROR(unpack(TernaryLayout::kI2_S, std::span(i2s).first(95), 2, 128), ErrorCode::kCorruptFile,
                      "95 bytes for a matrix of 2 x 128, expected 96");
  BITNET_EXPECT_ERROR(unpack(TernaryLayout::kI2_S, i2s, 2, 100), ErrorCode::kCorruptFile, "multiples of 128");
  BITNET_EXPECT_ERROR(unpack(TernaryLayout::kI2_S, i2s, -2, 128), ErrorCode::kCorruptFile,
                      "no possible size");
  auto bad = i2s;
  bad[33] |= std::byte{0x0c};
  BITNET_EXPECT_ERROR(unpack(TernaryLayout::kI2_S, bad, 2, 128), ErrorCode::kCorruptFile,
                      "byte 33 holds code 3");
  const PackedMatrix halves(TernaryLayout::kI2_S, bad, 2, 128);
  std::vector<std::int8_t> row(128);
  halves.unpack_rows(0, 1, row.data());  // the bad code is in row 1
  BITNET_EXPECT_ERROR(halves.unpack_rows(1, 2, row.data()), ErrorCode::kCorruptFile, "byte 33 holds code 3");
  const float nan = std::nanf("");
  std::memcpy(i2s.data() + 64, &nan, 4);
  BITNET_EXPECT_ERROR(unpack(TernaryLayout::kI2_S, i2s, 2, 128), ErrorCode::kCorruptFile,
                      "scale at byte 64 is nan");

  std::vector<std::byte> hf(8, std::byte{0xff});
  BITNET_EXPECT_ERROR(unpack(TernaryLayout::kHfUint8, hf, 8, 4), ErrorCode::kCorruptFile,
                      "byte 0 holds code 3");
  std::vector<std::byte> wide(70, std::byte{0x55});
  wide[19] |= std::byte{0x0c};  // the second row of the byte's four
  EXPECT_NO_THROW(unpack(TernaryLayout::kHfUint8, std::span(wide).first(35), 1, 35));
  BITNET_EXPECT_ERROR(unpack(TernaryLayout::kHfUint8, wide, 6, 35), ErrorCode::kCorruptFile,
                      "byte 19 holds code 3");

  auto tq2 = pack(TernaryLayout::kTQ2_0, golden(2, 512));
  bad = tq2;
  bad[66 + 5] |= std::byte{0xc0};
  BITNET_EXPECT_ERROR(unpack(TernaryLayout::kTQ2_0, bad, 2, 512), ErrorCode::kCorruptFile,
                      "byte 71 holds code 3");
  bad = tq2;
  bad[3 * 66 + 65] = std::byte{0x7c};  // infinity in block 3
  bad[3 * 66 + 64] = std::byte{0};
  BITNET_EXPECT_ERROR(unpack(TernaryLayout::kTQ2_0, bad, 2, 512), ErrorCode::kCorruptFile,
                      "scale of block 3 is inf");
}

TEST(Packing, TqBlocksThatDifferWithinARowAreGroupsOfColumns) {
  for (const TernaryLayout layout : {TernaryLayout::kTQ1_0, TernaryLayout::kTQ2_0}) {
    const std::size_t block = layout == TernaryLayout::kTQ1_0 ? 54 : 66;
    auto bytes = pack(layout, golden(2, 512));
    bytes[2 * block - 1] = std::byte{0x3c};  // 1.0 in the second block of row 0
    bytes[2 * block - 2] = std::byte{0};
    const TernaryWeights w = unpack(layout, bytes, 2, 512);
    EXPECT_EQ(w.trits, golden(2, 512).trits);
    EXPECT_EQ(w.scales, (std::vector<float>{0.5f, 1.0f, 0.5f, 0.5f}));
    EXPECT_EQ(w.rows_per_scale, 1);
    EXPECT_EQ(w.cols_per_scale, 256);
    EXPECT_EQ(pack(layout, w), bytes);
  }
}

TEST(Packing, TqTypesRoundEachScaleToTheNearestHalf) {
  TernaryWeights w = test::random_weights(3, 1024, 5);
  w.rows_per_scale = 1;
  w.cols_per_scale = 512;                                                // each for two blocks
  w.scales = {0.1f, 1 + 0x1p-11f, 1 + 0x3p-11f, 0.5f, 1.0f / 3, 65504};  // two are halfway: to even
  for (const TernaryLayout layout : {TernaryLayout::kTQ1_0, TernaryLayout::kTQ2_0}) {
    const TernaryWeights back = unpack(layout, pack(layout, w), 3, 1024);
    EXPECT_EQ(back.trits, w.trits);
    EXPECT_EQ(back.cols_per_scale, 256);
    const float tenth = 0x1.998p-4f, third = 0x1.554p-2f, up = 1 + 0x1p-9f;
    EXPECT_EQ(back.scales,
              (std::vector<float>{tenth, tenth, 1, 1, up, up, 0.5f, 0.5f, third, third, 65504, 65504}));
  }
  w.scales[3] = 1e-9f;
  BITNET_EXPECT_ERROR(
      pack(TernaryLayout::kTQ1_0, w), ErrorCode::kUnsupported,
      "tq1_0 holds scales as f16, which cannot represent 1e-09; types that would do: extended");
}

TEST(Packing, EmptyTqBlocksHaveAnyScale) {
  for (const TernaryLayout layout : {TernaryLayout::kTQ1_0, TernaryLayout::kTQ2_0}) {
    const std::size_t block = layout == TernaryLayout::kTQ1_0 ? 54 : 66;
    TernaryWeights w = golden(3, 512);
    std::fill(w.trits.begin() + 256, w.trits.begin() + 512, std::int8_t{0});   // the second block of row 0
    std::fill(w.trits.begin() + 512, w.trits.begin() + 1024, std::int8_t{0});  // row 1
    auto bytes = pack(layout, w);
    for (const std::size_t b : {1u, 2u, 3u}) std::memset(bytes.data() + (b + 1) * block - 2, 0, 2);
    const TernaryWeights back = unpack(layout, bytes, 3, 512);
    EXPECT_EQ(back.trits, w.trits);
    EXPECT_EQ(back.scales, w.scales);
    EXPECT_EQ(back.rows_per_scale, 3);
    std::memset(bytes.data() + 5 * block - 2, 0,
                2);  // scale 0 under trits that are not zero says what it says
    const TernaryWeights apart = unpack(layout, bytes, 3, 512);
    EXPECT_EQ(apart.trits, w.trits);
    EXPECT_EQ(apart.scales, (std::vector<float>{0.5f, 0, 0, 0, 0, 0.5f}));
    EXPECT_EQ(apart.cols_per_scale, 256);
  }
}

}  // namespace
}  // namespace bitnet::quant
