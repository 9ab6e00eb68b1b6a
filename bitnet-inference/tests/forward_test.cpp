// What the last layer computes: keys and values of every row, everything else of the rows that logits are
// asked for, with the same bits. That a row depends on nothing else: session_test.cpp.
#include "forward.hpp"

#include <cstring>
#include <map>
#include <span>

#include "bitnet/inference/batch_scheduler.hpp"
#include "bitnet/inference/kv_cache.hpp"
#include "bitnet/testing/forwarding_backend.hpp"
#include "model_weights.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

using RowCounts = std::map<const PreparedWeights*, std::int64_t>;

/// The CPU's single ops, counting the rows that each weight meets.
class RowCounter final : public testing::ForwardingBackend {
 public:
  explicit RowCounter(std::shared_ptr<RowCounts> counts)
      : ForwardingBackend(make_cpu_backend(make_context(1))), counts_(std::move(counts)) {}

 private:
  void do_linear(std::span<const PreparedWeights* const> w, Matrix x, std::span<const Matrix> outs) override {
    for (const PreparedWeights* const one : w) (*counts_)[one] += x.rows;
    ForwardingBackend::do_linear(w, x, outs);
  }
  void do_logits(const PreparedWeights& h, Matrix x, std::span<const std::int32_t> r, Matrix out) override {
    (*counts_)[&h] += out.rows;
    ForwardingBackend::do_logits(h, x, r, out);
  }

  std::shared_ptr<RowCounts> counts_;
};

class Forward : public ::testing::TestWithParam<WeightKind> {
 protected:
  static ModelConfig config() {
    ModelConfig c = testing::tiny_config();
    c.weights = GetParam();
    return c;
  }
  std::shared_ptr<const Model> counted() const {
    return Model::build(config(), nullptr, std::make_unique<RowCounter>(counts_), tensors_);
  }
  /// Rows since the last call: of every linear but the last layer's q, o, gate, up, down; of those; of the
  /// head.
  void expect_rows(const Model& model, std::int64_t every, std::int64_t asked, std::int64_t head) {
    const ModelWeights& w = model.weights();
    for (const LayerWeights& layer : w.layers) {
      const bool last = &layer == &w.layers.back();
      for (const PreparedPtr& one : {layer.k, layer.v}) EXPECT_EQ((*counts_)[one.get()], every);
      for (const PreparedPtr& one : {layer.q, layer.o, layer.gate, layer.up, layer.down})
        EXPECT_EQ((*counts_)[one.get()], last ? asked : every);
    }
    EXPECT_EQ((*counts_)[w.head.get()], head);
    counts_->clear();
  }

  std::shared_ptr<RowCounts> counts_ = std::make_shared<RowCounts>();
  testing::TensorModel tensors_ = testing::random_model(config(), 1);
};

std::vector<TokenId> tokens(std::size_t n, TokenId from) {
  std::vector<TokenId> ids(n);
  for (std::size_t i = 0; i < n; ++i)
    ids[i] = static_cast<TokenId>((static_cast<std::size_t>(from) + 7 * i) % 61);
  return ids;
}

TEST_P(Forward, ALastLayerOfAPromptComputesWhatItsLogitsNeed) {
  const auto model = counted();
  SessionOptions options;
  options.chunk_rows = 8;
  Session session(model, options), plain(make_model(tensors_));
  const std::vector<TokenId> ids = tokens(30, 3);
  std::vector<float> expected;
  plain.evaluate_all(ids, 0, [&](std::int64_t, std::span<const float> row) {
    expected.insert(expected.end(), row.begin(), row.end());
  });
  const auto same = [&](std::span<const float> logits) {
    return std::memcmp(logits.data(), expected.data() + expected.size() - logits.size(),
                       logits.size_bytes()) == 0;
  };
  EXPECT_TRUE(same(session.evaluate(ids)));
  expect_rows(*model, 30, 1, 1);
  session.truncate(0);
  EXPECT_TRUE(same(session.evaluate(ids, 11)));  // 5 of a chunk's 8 rows, and a last chunk of 6
  expect_rows(*model, 30, 11, 11);
  session.truncate(0);
  std::size_t rows = 0;
  session.evaluate_all(ids, 20, [&](std::int64_t position, std::span<const float> row) {
    ++rows;
    EXPECT_EQ(std::memcmp(row.data(), expected.data() + position * 61, row.size_bytes()), 0) << position;
  });
  EXPECT_EQ(rows, 10u);
  expect_rows(*model, 30, 10, 10);
}

TEST_P(Forward, AnyRowsOfABatchMayBeAskedFor) {
  const auto model = counted();
  const std::vector<std::vector<TokenId>> prompts{tokens(5, 1), tokens(1, 9), tokens(6, 20), tokens(3, 40)};
  std::vector<TokenId> ids;
  for (const auto& p : prompts) ids.insert(ids.end(), p.begin(), p.end());
  const auto logits_of = [&](std::span<const std::int32_t> asked) {
    KvPool pool(model->backend(), model->config(), 8, 4, DType::kF16);
    ForwardPass forward(model, 16, 15, 15);
    std::vector<KvCache> caches;
    caches.reserve(prompts.size());
    std::vector<SequenceSlice> slices;
    std::int64_t row = 0;
    for (const auto& p : prompts) {
      const auto n = static_cast<std::int64_t>(p.size());
      caches.emplace_back(pool, 16);
      EXPECT_TRUE(caches.back().reserve(n));
      slices.push_back({row, n, 0, caches.back().pages()});
      row += n;
    }
    std::vector<float> logits(asked.size() * 61);
    forward.run(pool, slices, ids, asked);
    forward.logits(0, static_cast<std::int64_t>(asked.size()), logits);
    BITNET_EXPECT_ERROR(forward.logits(1, static_cast<std::int64_t>(asked.size()), logits),
                        ErrorCode::kInternal, "asked for");
    return logits;
  };
  std::vector<std::int32_t> every;
  for (std::int32_t r = 0; r < 15; ++r) every.push_back(r);
  const std::vector<float> expected = logits_of(every);
  expect_rows(*model, 15, 15, 15);
  const std::vector<std::vector<std::int32_t>> cases{{4, 5, 11, 14}, {0, 2, 3, 7, 8, 13}, {12, 13}, {}, {5}};
  for (const auto& asked : cases) {
    const std::vector<float> logits = logits_of(asked);
    const auto n = static_cast<std::int64_t>(asked.size());
    expect_rows(*model, 15, n, n);
    for (std::size_t i = 0; i < asked.size(); ++i)
      EXPECT_EQ(std::memcmp(&logits[i * 61], &expected[static_cast<std::size_t>(asked[i]) * 61],
                            61 * sizeof(float)),
                0)
          << "row " << asked[i];
  }
  BITNET_EXPECT_ERROR(logits_of(std::vector<std::int32_t>{3, 3}), ErrorCode::kInvalidArgument,
                      "asked[1] = 3");
  BITNET_EXPECT_ERROR(logits_of(std::vector<std::int32_t>{15}), ErrorCode::kInvalidArgument, "15 ascending");
}

TEST_P(Forward, ABatchComputesTheRowsThatItSamplesFrom) {
  const auto model = counted();
  SchedulerOptions options;
  options.max_sequences = 3;
  options.step_rows = 6;
  BatchScheduler scheduler(model, options);
  std::vector<std::vector<TokenId>> texts(3);
  SamplerOptions greedy;
  greedy.temperature = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    Request r;
    r.prompt = tokens(4 + 5 * i, static_cast<TokenId>(i));
    r.options.max_tokens = 4;
    r.options.ignore_eos = true;
    r.options.sampling = greedy;
    r.on_done = [&texts, i](RequestId, const GenerationResult& result) { texts[i] = result.tokens; };
    scheduler.submit(std::move(r));
  }
  scheduler.run();
  // 4 + 9 + 14 of the prompts and 3 more of each text; logits for the 4 tokens of each.
  expect_rows(*model, 27 + 9, 12, 12);
  for (std::size_t i = 0; i < 3; ++i)
    EXPECT_EQ(texts[i],
              plain_generate(make_model(tensors_), tokens(4 + 5 * i, static_cast<TokenId>(i)), greedy, 4));
}

INSTANTIATE_TEST_SUITE_P(Weights, Forward, ::testing::Values(WeightKind::kTernary, WeightKind::kDense),
                         [](const auto& test) {
                           return test.param == WeightKind::kTernary ? "ternary" : "dense";
                         });

}  // namespace
}  // namespace bitnet::inference
