// The two quantisers against their definitions, evaluated with the C library's rounding.
#include "bitnet/quant/quantize.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <limits>

#include "bitnet/testing/testing.hpp"
#include "quant_support.hpp"

namespace bitnet::quant {
namespace {

/// The definition in one line each, with nearbyint (half to even).
std::int8_t quantize_by_definition(float x, float a) {
  const float v = std::nearbyint(x * a);
  return static_cast<std::int8_t>(std::clamp(v, -128.0f, 127.0f));
}

TEST(Absmean, FollowsItsDefinition) {
  for (const std::int64_t n : {1, 7, 64, 1000, 4096}) {
    const auto w = test::random_floats(n, 1);
    const TernaryWeights q = absmean(w, 1, n);
    double sum = 0;
    for (const float v : w) sum += std::fabs(v);
    const float scale = std::max(static_cast<float>(sum / static_cast<double>(n)), 1e-5f);
    ASSERT_EQ(q.scales, std::vector<float>{scale});
    EXPECT_EQ(q.rows_per_scale, 1);
    for (std::size_t i = 0; i < w.size(); ++i)
      ASSERT_EQ(q.trits[i], static_cast<int>(std::clamp(std::nearbyint(w[i] * (1.0f / scale)), -1.0f, 1.0f)));
  }
}

TEST(Absmean, HalvesRoundToEven) {
  // mean |w| = 1, so that ±0.5 and ±1.5 are exact halves: 0.5 → 0, 1.5 → 2 → 1.
  const std::vector<float> w{0.5f, -0.5f, 1.5f, -1.5f};
  EXPECT_EQ(absmean(w, 2, 2).trits, (std::vector<std::int8_t>{0, 0, 1, -1}));
  EXPECT_EQ(absmean(w, 2, 2).scales, std::vector<float>{1.0f});
}

TEST(Absmean, TinyAndEmptyMatricesKeepTheSmallestScale) {
  const std::vector<float> zeros(6, 0.0f);
  const TernaryWeights q = absmean(zeros, 2, 3);
  EXPECT_EQ(q.scales, std::vector<float>{1e-5f});
  EXPECT_EQ(q.trits, std::vector<std::int8_t>(6, 0));
  EXPECT_EQ(absmean({}, 0, 3).trits.size(), 0u);
}

TEST(Absmean, RefusesWhatIsNoMatrixOfNumbers) {
  std::vector<float> w(6, 1.0f);
  BITNET_EXPECT_ERROR(absmean(w, 2, 4), ErrorCode::kInvalidArgument,
                      "6 weights do not make a matrix of 2 x 4");
  BITNET_EXPECT_ERROR(absmean(w, -2, -3), ErrorCode::kInvalidArgument, "-2 x -3");
  BITNET_EXPECT_ERROR(absmean(w, std::int64_t{1} << 62, 8), ErrorCode::kInvalidArgument, "do not make");
  w[4] = std::nanf("");
  BITNET_EXPECT_ERROR(absmean(w, 2, 3), ErrorCode::kInvalidArgument, "weight 4 is nan");
  w[4] = std::numeric_limits<float>::infinity();
  BITNET_EXPECT_ERROR(absmean(w, 2, 3), ErrorCode::kInvalidArgument, "weight 4 is inf");
}

TEST(Absmax, FollowsItsDefinition) {
  const ExecutionContext context;
  for (const std::int64_t n : {1, 3, 15, 16, 17, 100, 1000, 4099})
    for (const float size : {1e-7f, 1e-5f, 1.0f, 3e4f, 1e30f}) {
      auto x = test::random_floats(n, static_cast<std::uint64_t>(n));
      float largest = 0;
      for (float& v : x) {
        v *= size;
        largest = std::max(largest, std::fabs(v));
      }
      std::vector<std::int8_t> q(x.size());
      const float a = quantize_row(context, x, q);
      ASSERT_EQ(a, 127.0f / std::max(largest, 1e-5f));
      for (std::size_t i = 0; i < x.size(); ++i)
        ASSERT_EQ(q[i], quantize_by_definition(x[i], a)) << x[i] << " " << a;
    }
}

TEST(Absmax, HalvesRoundToEven) {
  const ExecutionContext context;
  std::vector<float> x{127.0f};  // a = 1
  for (int i = -126; i < 126; ++i) x.push_back(static_cast<float>(i) + 0.5f);
  std::vector<std::int8_t> q(x.size());
  EXPECT_EQ(quantize_row(context, x, q), 1.0f);
  for (std::size_t i = 1; i < x.size(); ++i) {
    ASSERT_EQ(q[i] % 2, 0) << x[i];
    ASSERT_LE(std::fabs(static_cast<float>(q[i]) - x[i]), 0.5f);
  }
}

TEST(Absmax, ARowWithNotANumberOrInfinityIsZeroTimesNotANumber) {
  const ExecutionContext context;
  const std::vector<std::int8_t> zeros(40, 0);
  for (const std::size_t at : {0u, 3u, 39u}) {
    std::vector<float> x(40, 2.0f);
    std::vector<std::int8_t> q(x.size(), 1);
    x[at] = std::numeric_limits<float>::infinity();
    EXPECT_EQ(quantize_row(context, x, q), 0.0f);
    EXPECT_EQ(q, zeros);
    x[(at + 1) % 40] = std::nanf("");
    EXPECT_TRUE(std::isnan(quantize_row(context, x, q)));
    EXPECT_EQ(q, zeros);
    x[at] = 2.0f;
    EXPECT_TRUE(std::isnan(quantize_row(context, x, q)));
    EXPECT_EQ(q, zeros);
    std::vector<float> rows(120, 1.0f);
    std::copy(x.begin(), x.end(), rows.begin() + 40);
    QuantizedRows quantized;
    quantize_rows(context, rows, 3, 40, quantized);
    for (const std::size_t r : {0u, 1u, 2u}) {
      EXPECT_EQ(std::isnan(quantized.inv_scales[r]), r == 1);
      EXPECT_EQ(quantized.sums[r], r == 1 ? 0 : 40 * 127);
    }
  }
}

TEST(Absmax, RowsCarrySumsInverseScalesAndZeroPadding) {
  for (const std::size_t threads : {1u, 3u}) {
    const ExecutionContext context({.threads = threads, .isa = {}});
    for (const std::int64_t cols : {1, 63, 64, 65, 3200}) {
      const std::int64_t rows = 50;
      const auto x = test::random_floats(rows * cols, 5);
      QuantizedRows q;
      q.values.assign(100, 7);  // a former use
      quantize_rows(context, x, rows, cols, q);
      EXPECT_EQ(q.rows, rows);
      EXPECT_EQ(q.cols, cols);
      ASSERT_GE(q.stride, (cols + 15) / 16 * 16);
      for (std::int64_t r = 0; r < rows; ++r) {
        const auto n = static_cast<std::size_t>(cols);
        std::vector<std::int8_t> expected(n);
        const float a =
            quantize_row(context, std::span(x).subspan(static_cast<std::size_t>(r) * n, n), expected);
        std::int32_t sum = 0;
        for (const std::int8_t v : expected) sum += v;
        ASSERT_EQ(q.inv_scales[static_cast<std::size_t>(r)], 1.0f / a);
        ASSERT_EQ(q.sums[static_cast<std::size_t>(r)], sum);
        expected.resize(static_cast<std::size_t>(q.stride), 0);
        const auto* row = q.values.data() + r * q.stride;
        ASSERT_EQ(std::vector<std::int8_t>(row, row + q.stride), expected);
      }
    }
  }
}

TEST(FourBits, FollowTheirDefinitions) {
  const struct {
    ActivationForm form;
    bool absmean;
  } kForms[] = {{ActivationForm::kInt4Absmax, false}, {ActivationForm::kInt4Absmean, true}};
  for (const auto& [form, absmean] : kForms) {
    for (const std::size_t threads : {1u, 3u}) {
      const ExecutionContext context({.threads = threads, .isa = {}});
      for (const std::int64_t cols : {1, 17, 64, 3203}) {
        const std::int64_t rows = 7;
        auto x = test::random_floats(rows * cols, 9);
        x[0] = 40.0f;  // an outlier, which absmean cuts off
        if (cols > 16) std::fill_n(x.begin() + cols, cols, 0.0f);
        QuantizedRows q, made;
        quantize_rows(context, x, rows, cols, q, form);
        const auto copy = [&](std::int64_t row, float* to) { std::copy_n(x.data() + row * cols, cols, to); };
        quantize_made_rows(context, rows, cols, copy, made, form);
        EXPECT_EQ(made.values, q.values);
        EXPECT_EQ(made.inv_scales, q.inv_scales);
        EXPECT_EQ(made.sums, q.sums);
        std::int32_t least = 0, most = 0;
        for (std::int64_t r = 0; r < rows; ++r) {
          double sum = 0;
          float peak = 0;
          for (std::int64_t c = 0; c < cols; ++c) {
            const float v = std::fabs(x[static_cast<std::size_t>(r * cols + c)]);
            sum += static_cast<double>(v);
            peak = std::max(peak, v);
          }
          const auto mean = static_cast<float>(sum / static_cast<double>(cols));
          const float a = absmean ? std::sqrt(7.0f) / std::max(mean, 1e-5f) : 7.0f / std::max(peak, 1e-5f);
          ASSERT_EQ(q.inv_scales[static_cast<std::size_t>(r)], 1.0f / a);
          std::int32_t total = 0;
          for (std::int64_t c = 0; c < cols; ++c) {
            const float rounded = std::nearbyint(x[static_cast<std::size_t>(r * cols + c)] * a);
            const auto expected = static_cast<std::int32_t>(std::clamp(rounded, -8.0f, 7.0f));
            ASSERT_EQ(q.values[static_cast<std::size_t>(r * q.stride + c)], expected);
            total += expected;
            least = std::min(least, expected);
            most = std::max(most, expected);
          }
          ASSERT_EQ(q.sums[static_cast<std::size_t>(r)], total);
        }
        if (cols > 1000) {
          EXPECT_EQ(most, 7);
          EXPECT_EQ(least, absmean ? -5 : -7);  // |x| ≤ 1 and mean 1/2: √7 · 2 = 5.3
        }
      }
    }
  }
}

TEST(FourBits, RowsThatAreNotFiniteStayNaN) {
  const ExecutionContext context;
  for (const ActivationForm form : {ActivationForm::kInt4Absmax, ActivationForm::kInt4Absmean})
    for (const float bad : {std::nanf(""), std::numeric_limits<float>::infinity()}) {
      std::vector<float> x(80, 1.0f);
      x[45] = bad;
      QuantizedRows q;
      quantize_rows(context, x, 2, 40, q, form);
      EXPECT_EQ(q.sums[1], 0);
      EXPECT_TRUE(std::isnan(0.0f * q.inv_scales[1]));
      EXPECT_EQ(q.sums[0], 40 * (form == ActivationForm::kInt4Absmax ? 7 : 3));
    }
}

TEST(Absmax, RowsReuseTheirMemory) {
  const ExecutionContext context;
  const auto x = test::random_floats(300, 6);
  QuantizedRows q;
  quantize_rows(context, x, 3, 100, q);
  const auto* const before = q.values.data();
  quantize_rows(context, std::span(x).first(200), 2, 100, q);
  EXPECT_EQ(q.values.data(), before);
  EXPECT_EQ(q.sums.size(), 2u);
}

TEST(Absmax, MadeRowsEqualStoredOnesAndBeginCacheLines) {
  for (const std::size_t threads : {1u, 2u, 3u}) {
    const ExecutionContext context({.threads = threads, .isa = {}});
    QuantizedRows made, stored;
    for (const std::int64_t rows : {0, 1, 40}) {
      for (const std::int64_t cols : {1, 37, 5000}) {
        const auto x = test::random_floats(rows * cols, 8);
        std::atomic<int> in_a_line{0};
        quantize_made_rows(
            context, rows, cols,
            [&](std::int64_t row, float* to) {
              if (reinterpret_cast<std::uintptr_t>(to) % 64 != 0) ++in_a_line;
              std::copy_n(x.data() + row * cols, cols, to);
            },
            made);
        quantize_rows(context, x, rows, cols, stored);
        EXPECT_EQ(in_a_line, 0);
        EXPECT_EQ(made.values, stored.values);
        EXPECT_EQ(made.inv_scales, stored.inv_scales);
        EXPECT_EQ(made.sums, stored.sums);
      }
    }
  }
}

TEST(Absmax, RefusesSizesThatDisagree) {
  const ExecutionContext context;
  const auto x = test::random_floats(10, 7);
  std::vector<std::int8_t> q(9);
  QuantizedRows rows;
  BITNET_EXPECT_ERROR(quantize_row(context, x, q), ErrorCode::kInvalidArgument, "10 values into 9 places");
  BITNET_EXPECT_ERROR(quantize_rows(context, x, 3, 3, rows), ErrorCode::kInvalidArgument, "3 rows of 3");
  BITNET_EXPECT_ERROR(quantize_rows(context, x, -1, -10, rows), ErrorCode::kInvalidArgument, "-1 rows");
}

}  // namespace
}  // namespace bitnet::quant
