// Plain values of core: errors, element types and their conversions, shapes, tensors and views, random
// numbers.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "bitnet/core/dtype.hpp"
#include "bitnet/core/env.hpp"
#include "bitnet/core/error.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/core/shape.hpp"
#include "bitnet/core/tensor.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

TEST(Error, MemoryThatIsRefusedIsOne) {
  BITNET_EXPECT_ERROR(
      with_context("loading 'm.gguf'",
                   [] { with_context("tensor 'x'", []() -> int { throw std::bad_alloc(); }); }),
      ErrorCode::kOutOfMemory, "loading 'm.gguf': tensor 'x': out of memory");
  BITNET_EXPECT_ERROR(with_context("a list",
                                   [] {
                                     std::vector<int> list;
                                     list.reserve(list.max_size() + 1);
                                   }),
                      ErrorCode::kOutOfMemory, "a list: out of memory");
}

TEST(Error, CarriesCodePlaceAndContext) {
  try {
    with_context("loading 'm.gguf'", [] {
      with_context("tensor 'x'", [] { throw Error(ErrorCode::kCorruptFile, "expected 2 dims, got 3"); });
    });
    FAIL();
  } catch (const Error& e) {
    EXPECT_STREQ(e.what(), "loading 'm.gguf': tensor 'x': expected 2 dims, got 3");
    EXPECT_EQ(e.code(), ErrorCode::kCorruptFile);
    EXPECT_EQ(e.severity(), Severity::kRecoverable);
    EXPECT_NE(std::string(e.where().file).find("values_test.cpp"), std::string::npos);
    EXPECT_GT(e.where().line, 0u);
  }
  EXPECT_EQ(Error(ErrorCode::kInternal, "").severity(), Severity::kFatal);
}

TEST(Error, SaysBytesThatAreNoTextAsEscapes) {
  Error e(ErrorCode::kCorruptFile, "tensor '\xFF\xC3(\x1B[31m\x7F': 世界, é\tand\nmore\xE4\xB8");
  const std::string message = "tensor '\\xFF\\xC3(\\x1B[31m\\x7F': 世界, é\tand\nmore\\xE4\\xB8";
  EXPECT_EQ(e.message(), message);
  e.add_context("loading '\xC0\xAF'");
  EXPECT_EQ(e.context(), "loading '\\xC0\\xAF'");
  EXPECT_EQ(e.message(), message);
  EXPECT_EQ(e.what(), "loading '\\xC0\\xAF': " + message);
}

TEST(Error, MemoryThatIsRefusedHasThePlaceOfWhoAskedForIt) {
  const auto place_of = [](auto&& call) {
    try {
      call();
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kOutOfMemory);
      EXPECT_NE(std::string(e.where().file).find("values_test.cpp"), std::string::npos);
      return e.where().line;
    }
    return 0u;
  };
  const unsigned first = place_of([] { with_context("a", []() -> void { throw std::bad_alloc(); }); });
  const unsigned second = place_of([] { with_context("b", []() -> void { throw std::length_error("x"); }); });
  EXPECT_EQ(second, first + 1);
}

TEST(Error, EveryCodeHasAName) {
  for (int c = 0; c <= static_cast<int>(ErrorCode::kInternal); ++c) {
    EXPECT_NE(to_string(static_cast<ErrorCode>(c)), "?");
  }
}

TEST(Env, RefusesUnlistedVariables) { EXPECT_THROW((void)env("PATH"), Error); }

/// Slow reference: the binary16 value nearest to f, ties to the even code, by search over all finite codes.
std::uint16_t nearest_f16(float f) {
  const double magnitude = std::fabs(static_cast<double>(f));
  std::uint16_t best = 0;
  for (std::uint32_t code = 0; code <= 0x7c00; ++code) {
    // The code of infinity stands for 65536 here: what rounds to it overflows.
    const double value = code == 0x7c00 ? 65536.0 : f16_to_f32(static_cast<std::uint16_t>(code));
    const double best_value = best == 0x7c00 ? 65536.0 : f16_to_f32(best);
    const double d = std::fabs(value - magnitude), best_d = std::fabs(best_value - magnitude);
    if (d < best_d || (d == best_d && code % 2 == 0)) best = static_cast<std::uint16_t>(code);
  }
  return static_cast<std::uint16_t>(best | (std::signbit(f) ? 0x8000 : 0));
}

TEST(DType, EveryHalfSurvivesARoundTrip) {
  for (std::uint32_t code = 0; code < 65536; ++code) {
    const auto h = static_cast<std::uint16_t>(code);
    const float f = f16_to_f32(h), b = bf16_to_f32(h);
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(f))));
    } else {
      ASSERT_EQ(f32_to_f16(f), h);
    }
    if (std::isnan(b)) {
      EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(b))));
    } else {
      ASSERT_EQ(f32_to_bf16(b), h);
    }
  }
}

TEST(DType, FloatToHalfRoundsToNearestEven) {
  Rng rng(7);
  std::vector<float> values{0.0f,     -0.0f,          65504.0f,      65519.99f,     65520.0f,
                            1e9f,     5.9604645e-8f,  2.9802322e-8f, 2.9802326e-8f, 6.1035156e-5f,
                            6.09e-5f, 1.00048828125f, 1.00146484375f};
  for (int i = 0; i < 60; ++i) {
    values.push_back(static_cast<float>(rng.normal() * std::exp2(static_cast<double>(rng.below(44)) - 28)));
  }
  for (const float v : values) EXPECT_EQ(f32_to_f16(v), nearest_f16(v)) << v;
  EXPECT_EQ(f32_to_f16(std::numeric_limits<float>::infinity()), 0x7c00);
}

TEST(DType, FloatToBFloat16RoundsHalfToEven) {
  EXPECT_EQ(f32_to_bf16(1.0f + 0x1p-8f), 0x3f80);      // half way, even below
  EXPECT_EQ(f32_to_bf16(1.0f + 3 * 0x1p-8f), 0x3f82);  // half way, even above
  EXPECT_EQ(f32_to_bf16(1.0f + 0x1.02p-8f), 0x3f81);   // above half way
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
}

TEST(Shape, CountsAndRefuses) {
  EXPECT_EQ((Shape{2, 3, 4}).numel(), 24);
  EXPECT_EQ(Shape{}.numel(), 1);
  EXPECT_EQ((Shape{5, 0}).numel(), 0);
  EXPECT_EQ((Shape{2, 3})[-1], 3);
  EXPECT_EQ((Shape{2, 3}).to_string(), "[2, 3]");
  const std::int64_t big = std::int64_t{1} << 62;
  BITNET_EXPECT_ERROR((Shape{big, 4}), ErrorCode::kInvalidArgument, "overflows");
  BITNET_EXPECT_ERROR((Shape{big, 4, 0}), ErrorCode::kInvalidArgument, "overflows");
  BITNET_EXPECT_ERROR((Shape{-1}), ErrorCode::kInvalidArgument, "negative");
  BITNET_EXPECT_ERROR((void)(Shape{2, 3})[2], ErrorCode::kInvalidArgument, "axis 2");
  BITNET_EXPECT_ERROR((Shape{1, 1, 1, 1, 1, 1, 1, 1, 1}), ErrorCode::kInvalidArgument, "at most 8");
}

Tensor counting(Shape shape) {
  std::vector<std::int32_t> v(static_cast<std::size_t>(shape.numel()));
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = static_cast<std::int32_t>(i);
  return Tensor::of<std::int32_t>(shape, v);
}

std::vector<std::int32_t> values(const Tensor& t) {
  const Tensor c = t.contiguous();
  const auto s = c.span<std::int32_t>();
  return {s.begin(), s.end()};
}

TEST(Tensor, ViewsShareElements) {
  Tensor t = counting({2, 3});
  Tensor column = t.slice(1, 1, 2);
  EXPECT_EQ(column.shape(), (Shape{2, 1}));
  EXPECT_FALSE(column.is_contiguous());
  EXPECT_EQ(values(column), (std::vector<std::int32_t>{1, 4}));
  EXPECT_EQ(values(t.transpose(0, 1)), (std::vector<std::int32_t>{0, 3, 1, 4, 2, 5}));
  EXPECT_EQ(values(t.transpose(0, 1).slice(0, 1, 3)), (std::vector<std::int32_t>{1, 4, 2, 5}));
  Tensor flat = t.reshape({6});
  flat.span<std::int32_t>()[5] = 50;
  EXPECT_EQ(t.span<std::int32_t>()[5], 50);
  EXPECT_EQ(values(t.slice(0, 1, 1)), std::vector<std::int32_t>{});
}

TEST(Tensor, PermutesThreeAxes) {
  const std::array<std::int64_t, 3> axes{2, 0, 1};
  const Tensor p = counting({2, 3, 2}).permute(axes);
  EXPECT_EQ(p.shape(), (Shape{2, 2, 3}));
  EXPECT_EQ(values(p), (std::vector<std::int32_t>{0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11}));
}

TEST(Tensor, RefusesWhatItCannotDo) {
  Tensor t = counting({2, 3});
  BITNET_EXPECT_ERROR((void)t.slice(1, 2, 4), ErrorCode::kInvalidArgument, "slice 2:4");
  BITNET_EXPECT_ERROR((void)t.slice(2, 0, 1), ErrorCode::kInvalidArgument, "axis 2");
  BITNET_EXPECT_ERROR((void)t.reshape({7}), ErrorCode::kInvalidArgument, "other number of elements");
  BITNET_EXPECT_ERROR((void)t.transpose(0, 1).reshape({6}), ErrorCode::kInvalidArgument, "contiguous");
  BITNET_EXPECT_ERROR((void)t.span<float>(), ErrorCode::kInvalidArgument,
                      "tensor [2, 3] of i32 asked for as f32");
  BITNET_EXPECT_ERROR((void)t.span<std::uint16_t>(), ErrorCode::kInvalidArgument, "asked for as f16 or bf16");
  const std::array<std::int64_t, 2> twice{0, 0};
  BITNET_EXPECT_ERROR((void)t.permute(twice), ErrorCode::kInvalidArgument, "twice");
  BITNET_EXPECT_ERROR(Tensor(DType::kTernary, {2, 3}), ErrorCode::kInvalidArgument, "multiple of 4");
  std::vector<std::byte> memory(9);
  BITNET_EXPECT_ERROR(Tensor(DType::kF32, {3}, memory, nullptr), ErrorCode::kInvalidArgument, "12 needed");
  BITNET_EXPECT_ERROR(Tensor(DType::kF32, {1}, std::span(memory).subspan(1), nullptr),
                      ErrorCode::kInvalidArgument, "aligned");
  BITNET_EXPECT_ERROR(Tensor(DType::kF32, {std::int64_t{1} << 50}), ErrorCode::kOutOfMemory, "bytes");
}

TEST(Tensor, ConvertsBetweenTypes) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> v{0.5f, 1.5f, -2.5f, 300.0f, -300.0f, nan, 0.0f, 1.0f};
  const Tensor f = Tensor::of<float>({8}, v);
  const Tensor i8 = f.to(DType::kI8);
  const auto s = i8.span<std::int8_t>();
  EXPECT_EQ((std::vector<int>(s.begin(), s.end())), (std::vector<int>{0, 2, -2, 127, -128, 0, 0, 1}));
  const Tensor ternary = f.to(DType::kTernary);
  EXPECT_EQ(ternary.bytes().size(), 2u);
  const Tensor back = ternary.to(DType::kI32);
  EXPECT_EQ(values(back), (std::vector<std::int32_t>{0, 1, -1, 1, -1, 0, 0, 1}));
  const Tensor h = f.to(DType::kF16).to(DType::kF32);
  EXPECT_EQ(h.span<float>()[3], 300.0f);
  EXPECT_TRUE(std::isnan(h.span<float>()[5]));
  EXPECT_EQ(values(Tensor(DType::kTernary, {4}).to(DType::kI32)), (std::vector<std::int32_t>{0, 0, 0, 0}));
}

TEST(Tensor, StorageOutlivesTheOriginal) {
  Tensor view;
  {
    const Tensor t = counting({4, 4});
    view = t.slice(0, 2, 3);
  }
  EXPECT_EQ(values(view), (std::vector<std::int32_t>{8, 9, 10, 11}));
}

TEST(Rng, IsXoshiro256StarStar) {
  // State {1, 2, 3, 4}: the first outputs of the authors' reference code.
  Rng rng;
  rng.set_state({1, 2, 3, 4});
  EXPECT_EQ(rng.next(), 11520u);
  EXPECT_EQ(rng.next(), 0u);
  EXPECT_EQ(rng.next(), 1509978240u);
  EXPECT_EQ(rng.next(), 1215971899390074240u);
}

TEST(Rng, StreamsRepeatAndLookRight) {
  Rng a(42), b(42), c(43);
  EXPECT_EQ(a.next(), b.next());
  EXPECT_NE(a.next(), c.next());
  double sum = 0, squares = 0;
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    const double x = a.normal();
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kDraws, 0.0, 5 / std::sqrt(kDraws));  // five standard errors
  EXPECT_NEAR(squares / kDraws, 1.0, 5 * std::sqrt(2.0 / kDraws));
  std::array<int, 3> counts{};
  for (int i = 0; i < 3000; ++i) ++counts[a.below(3)];
  for (const int n : counts) EXPECT_NEAR(n, 1000, 5 * std::sqrt(3000 * 2.0 / 9));
}

}  // namespace
}  // namespace bitnet
