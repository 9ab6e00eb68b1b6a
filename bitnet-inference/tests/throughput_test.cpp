// Measuring speed: names, the bytes and operations that limits are made of, and that tests run what they say.
// No test looks at how fast anything is.
#include "bitnet/inference/throughput.hpp"

#include <array>
#include <atomic>
#include <cmath>

#include "support.hpp"

namespace bitnet::inference {
namespace {

using Kind = ThroughputTest::Kind;
constexpr ThroughputTest kPrompt{Kind::kPrompt, 300, 1};
constexpr ThroughputTest kDecode{Kind::kDecode, 9, 1};
constexpr ThroughputTest kBatch{Kind::kDecode, 9, 5};

TEST(Throughput, NamesAreThoseOfLlamaBench) {
  EXPECT_EQ(kPrompt.name(), "pp300");
  EXPECT_EQ(kDecode.name(), "tg9");
  EXPECT_EQ(kBatch.name(), "tg9@b5");
  EXPECT_EQ(kBatch.total_tokens(), 45);
}

TEST(Throughput, CountsWeightsOnce) {
  ModelConfig config = testing::tiny_config();
  const std::int64_t per_layer =
      config.hidden_size * (config.n_heads + 2 * config.n_kv_heads) * config.head_dim +
      config.n_heads * config.head_dim * config.hidden_size +
      3 * config.hidden_size * config.intermediate_size;
  const auto tied = make_model(testing::random_model(config, 1, DType::kF16));
  const WeightCost cost = weight_cost(*tied);
  EXPECT_EQ(cost.ternary_weights, config.n_layers * per_layer);
  EXPECT_EQ(cost.step_bytes(), tied->weight_bytes());  // everything is read, a tied head once
  const std::int64_t norms = config.n_layers * (2 * config.hidden_size + config.n_heads * config.head_dim +
                                                config.intermediate_size) +
                             config.hidden_size;
  EXPECT_EQ(cost.norm_bytes, static_cast<std::size_t>(norms) * sizeof(float));
  EXPECT_GE(cost.bits_per_weight, 1.6);

  config.tied_embeddings = false;
  const auto own = make_model(testing::random_model(config, 1, DType::kF16));
  EXPECT_LT(weight_cost(*own).step_bytes(), own->weight_bytes());  // all but the table of embeddings
  EXPECT_EQ(weight_cost(*own).step_bytes(), cost.step_bytes());

  config.weights = WeightKind::kDense;
  const auto dense = make_model(testing::random_model(config, 1, DType::kF16));
  EXPECT_EQ(weight_cost(*dense).ternary_weights, 0);
  EXPECT_GE(weight_cost(*dense).bits_per_weight, 16);
}

TEST(Throughput, LimitsAreTheLowerOfBandwidthAndIntegers) {
  WeightCost cost;
  cost.linear_bytes = 600;
  cost.head_bytes = 300;
  cost.norm_bytes = 100;
  cost.ternary_weights = 2000;
  // One sequence: weights, and 10 bytes for each of 5 positions in the mean of 1 … 9.
  const ThroughputLimit one = throughput_limit(kDecode, cost, 10, 256, {1e-6, 1e-9});
  EXPECT_DOUBLE_EQ(one.bytes_per_token, 1000 + 50);
  EXPECT_DOUBLE_EQ(*one.tokens_per_second, 1000.0 / 1050);
  EXPECT_EQ(one.bound, Bound::kBandwidth);
  // Five sequences share the weights; 4000 operations a token.
  const ThroughputLimit five = throughput_limit(kBatch, cost, 10, 256, {1e-6, 1.0});
  EXPECT_DOUBLE_EQ(five.bytes_per_token, 200 + 50);
  EXPECT_DOUBLE_EQ(*five.tokens_per_second, 4);
  EXPECT_EQ(five.bound, Bound::kBandwidth);
  const ThroughputLimit integers = throughput_limit(kBatch, cost, 10, 256, {1e-6, 8e-6});
  EXPECT_DOUBLE_EQ(*integers.tokens_per_second, 2);
  EXPECT_EQ(integers.bound, Bound::kInteger);
  // 300 tokens in chunks of 256: the linears twice, the head once.
  const ThroughputLimit prompt = throughput_limit(kPrompt, cost, 10, 256, {1.0, 4e-6});
  EXPECT_DOUBLE_EQ(prompt.bytes_per_token, (2 * 700.0 + 300) / 300 + 10);
  EXPECT_DOUBLE_EQ(*prompt.tokens_per_second, 1);
  EXPECT_EQ(prompt.bound, Bound::kInteger);
  EXPECT_FALSE(throughput_limit(kDecode, cost, 10, 256, {}).tokens_per_second.has_value());
  EXPECT_EQ(throughput_limit(kPrompt, cost, 10, 256, {}).bound, Bound::kUnknown);
  cost.ternary_weights = 0;  // a dense model's prompt is limited by floats, which are not counted
  EXPECT_FALSE(throughput_limit(kPrompt, cost, 10, 256, {1.0, 1.0}).tokens_per_second.has_value());
  EXPECT_TRUE(throughput_limit(kDecode, cost, 10, 256, {1.0, 1.0}).tokens_per_second.has_value());
}

TEST(Throughput, RunsEveryTestAgainAndAgain) {
  const auto model = make_model(testing::random_model(testing::tiny_config(), 1), 2);
  const std::array tests{kPrompt, kDecode, kBatch};
  ThroughputRunner runner(model, tests);
  EXPECT_EQ(runner.chunk_rows(), SessionOptions{}.chunk_rows);
  EXPECT_GT(runner.kv_bytes_per_position(), 0u);
  for (const ThroughputTest& test : tests) {
    runner.warm_up(test);
    for (int i = 0; i < 2; ++i) {
      const double seconds = runner.seconds(test);
      EXPECT_GT(seconds, 0) << test.name();
      EXPECT_TRUE(std::isfinite(seconds));
    }
  }
}

TEST(Throughput, RefusesTestsThatItHasNoRoomForAndStopsWhenAsked) {
  const auto model = make_model(testing::random_model(testing::tiny_config(), 1));
  const std::array tests{kDecode};
  CancellationToken token;
  ThroughputRunner runner(model, tests, token);
  BITNET_EXPECT_ERROR(runner.seconds(kPrompt), ErrorCode::kInvalidArgument, "pp300 is larger");
  BITNET_EXPECT_ERROR(runner.seconds(ThroughputTest{}), ErrorCode::kInvalidArgument, "0 tokens");
  const std::array bad{ThroughputTest{Kind::kDecode, 1, 0}};
  BITNET_EXPECT_ERROR(ThroughputRunner(model, bad), ErrorCode::kInvalidArgument, "0 sequences");
  token.cancel();
  BITNET_EXPECT_ERROR(runner.seconds(kDecode), ErrorCode::kCancelled, "interrupted");
}

}  // namespace
}  // namespace bitnet::inference
