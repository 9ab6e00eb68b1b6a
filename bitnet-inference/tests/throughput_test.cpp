// Measuring speed: names, the bytes and operations that limits are made of, and that tests run what they say.
// No test looks at how fast anything is.
#include "bitnet/inference/throughput.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <utility>
#include <vector>

#include "bitnet/testing/forwarding_backend.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

using Kind = ThroughputTest::Kind;
constexpr ThroughputTest kPrompt{Kind::kPrompt, 300, 1};
constexpr ThroughputTest kDecode{Kind::kDecode, 9, 1};
constexpr ThroughputTest kBatch{Kind::kDecode, 9, 5};

/// The CPU backend, with a count of what goes in and comes out of a forward pass.
class CountingBackend final : public testing::ForwardingBackend {
 public:
  CountingBackend() : ForwardingBackend(make_cpu_backend(make_context(2))) {}
  std::vector<TokenId> embedded;          // in the order of the calls
  std::vector<std::int64_t> logits_rows;  // of each call
  std::int64_t most_past = 0;             // of any attention
  std::function<void()> on_logits = [] {};

 private:
  void do_embed(const PreparedWeights& table, std::span<const std::int32_t> ids, Matrix out) override {
    embedded.insert(embedded.end(), ids.begin(), ids.end());
    ForwardingBackend::do_embed(table, ids, out);
  }
  void do_attention(const AttentionArgs& args) override {
    for (const SequenceSlice& slice : args.sequences) most_past = std::max(most_past, slice.past);
    ForwardingBackend::do_attention(args);
  }
  void do_logits(const PreparedWeights& head, Matrix hidden, std::span<const std::int32_t> rows,
                 Matrix out) override {
    logits_rows.push_back(static_cast<std::int64_t>(rows.size()));
    ForwardingBackend::do_logits(head, hidden, rows, out);
    on_logits();
  }
};

/// A model on such a backend.
struct Counted {
  std::shared_ptr<CountingBackend> backend = std::make_shared<CountingBackend>();
  std::shared_ptr<const Model> model;
  Counted() {
    const auto tensors = testing::random_model(testing::tiny_config(), 1);
    model = Model::build(tensors.config, nullptr, backend, tensors);
  }
};

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
  EXPECT_EQ(cost.asked_ternary_weights,
            per_layer - 2 * config.hidden_size * config.n_kv_heads * config.head_dim);
  EXPECT_GT(cost.asked_linear_bytes, 0u);
  EXPECT_LT(cost.asked_linear_bytes, cost.linear_bytes / static_cast<std::size_t>(config.n_layers));
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
  // Half of the weights for the last token alone: read in one chunk of two, used by one token of 300.
  WeightCost asked = cost;
  asked.asked_linear_bytes = 300;
  asked.asked_ternary_weights = 1000;
  const ThroughputLimit fewer = throughput_limit(kPrompt, asked, 10, 256, {1.0, 4e-6});
  EXPECT_DOUBLE_EQ(fewer.bytes_per_token, (2 * 700.0 - 300 + 300) / 300 + 10);
  EXPECT_DOUBLE_EQ(*fewer.tokens_per_second, 4000.0 / (2 * (1000 + 1000.0 / 300)));
  EXPECT_EQ(throughput_limit(kBatch, asked, 10, 256, {1e-6, 8e-6}).tokens_per_second,
            integers.tokens_per_second);
  EXPECT_FALSE(throughput_limit(kDecode, cost, 10, 256, {}).tokens_per_second.has_value());
  EXPECT_EQ(throughput_limit(kPrompt, cost, 10, 256, {}).bound, Bound::kUnknown);
  cost.ternary_weights = 0;  // a dense model's prompt is limited by floats, which are not counted
  EXPECT_FALSE(throughput_limit(kPrompt, cost, 10, 256, {1.0, 1.0}).tokens_per_second.has_value());
  EXPECT_TRUE(throughput_limit(kDecode, cost, 10, 256, {1.0, 1.0}).tokens_per_second.has_value());
}

TEST(Throughput, RunsWhatItsNameSaysAgainAndAgain) {
  const Counted counted;
  CountingBackend& backend = *counted.backend;
  const std::array tests{kPrompt, kDecode, kBatch};
  ThroughputRunner runner(counted.model, tests);
  EXPECT_EQ(runner.chunk_rows(), SessionOptions{}.chunk_rows);
  EXPECT_GT(runner.kv_bytes_per_position(), 0u);
  using Rows = std::vector<std::int64_t>;
  // A prompt asks for the logits of its last token, a decoded token for its own, of all sequences at once.
  const std::array expected{Rows{1}, Rows(9, 1), Rows(9, 5)};
  for (std::size_t i = 0; i < tests.size(); ++i) {
    SCOPED_TRACE(tests[i].name());
    runner.warm_up(tests[i]);
    for (int again = 0; again < 2; ++again) {
      backend.embedded.clear();
      backend.logits_rows.clear();
      backend.most_past = 0;
      const double seconds = runner.seconds(tests[i]);
      EXPECT_GT(seconds, 0);
      EXPECT_TRUE(std::isfinite(seconds));
      EXPECT_EQ(static_cast<std::int64_t>(backend.embedded.size()), tests[i].total_tokens());
      EXPECT_EQ(backend.logits_rows, expected[i]);
      // The context grows to the whole test: chunks of 256, or token by token.
      EXPECT_EQ(backend.most_past, tests[i].kind == Kind::kPrompt ? 256 : tests[i].tokens - 1);
    }
  }
  backend.logits_rows.clear();
  runner.warm_up(kBatch);
  EXPECT_EQ(backend.logits_rows, expected[2]);  // of 16 tokens at most
}

TEST(Throughput, StopsBetweenTwoTokens) {
  const Counted counted;
  const std::array tests{kBatch};
  CancellationToken token;
  ThroughputRunner runner(counted.model, tests, token);
  counted.backend->on_logits = [&] {
    if (counted.backend->logits_rows.size() == 4) token.cancel();
  };
  BITNET_EXPECT_ERROR(runner.seconds(kBatch), ErrorCode::kCancelled, "interrupted");
  EXPECT_EQ(counted.backend->logits_rows.size(), 4u);
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
