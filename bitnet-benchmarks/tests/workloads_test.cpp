// The workloads are what they say: repeatable, of their shapes, and models that run.
#include "bitnet/benchmarks/workloads.hpp"

#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "bitnet/benchmarks/models.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/inference/session.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::benchmarks {
namespace {

TEST(Workloads, WeightsAreRepeatableAndEvenlySpread) {
  const LinearShape shape{"", 300, 500};
  const auto a = random_weights(shape, 1);
  EXPECT_EQ(a.trits, random_weights(shape, 1).trits);
  EXPECT_NE(a.trits, random_weights(shape, 2).trits);
  std::array<double, 3> count{};
  for (const std::int8_t t : a.trits) count.at(static_cast<std::size_t>(t + 1)) += 1;
  const double n = 300.0 * 500.0;
  ASSERT_EQ(a.trits.size(), static_cast<std::size_t>(n));
  // A share of n independent draws has standard deviation sqrt(2/9/n); six of them.
  for (const double c : count) EXPECT_NEAR(c / n, 1.0 / 3, 6 * std::sqrt(2.0 / 9 / n));
}

TEST(Workloads, ShapesAreDistinctAndBeginWithTiny) {
  ASSERT_GE(linear_shapes().size(), 2u);
  EXPECT_EQ(linear_shapes()[0].name, "tiny");
  EXPECT_EQ(model_shapes()[0].name, "tiny");
  for (const ModelShape& m : model_shapes()) EXPECT_NO_THROW(m.config.validate()) << m.name;
}

TEST(Workloads, RandomModelRunsAndIsRepeatable) {
  const auto context =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{.threads = 1, .isa = {}});
  const ModelConfig& config = model_shapes()[0].config;
  const std::vector<TokenId> ids{1, 2, 3};
  std::vector<std::vector<float>> logits;
  for (int i = 0; i < 2; ++i) {
    inference::Session session(random_model(config, inference::make_cpu_backend(context), 7), {.n_ctx = 8});
    const auto row = session.evaluate(ids);
    logits.emplace_back(row.begin(), row.end());
  }
  ASSERT_EQ(logits[0].size(), static_cast<std::size_t>(config.vocab_size));
  EXPECT_EQ(logits[0], logits[1]);
  double squares = 0;
  for (const float v : logits[0]) {
    ASSERT_TRUE(std::isfinite(v));
    squares += static_cast<double>(v) * v;
  }
  EXPECT_GT(squares, 0);
}

}  // namespace
}  // namespace bitnet::benchmarks
