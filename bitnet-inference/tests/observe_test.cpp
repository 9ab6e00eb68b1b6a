// The inputs of linears that an observer sees against those that a backend is handed, bit for bit.
#include "bitnet/inference/observe.hpp"

#include <cstring>
#include <map>
#include <mutex>

#include "bitnet/testing/forwarding_backend.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

/// Linears numbered as they are prepared, and the rows that each was given.
struct Record {
  std::map<const PreparedWeights*, std::size_t> number;
  std::map<std::size_t, std::vector<float>> rows;
};

/// The CPU's single ops, keeping what linears are given.
class Recorder final : public testing::ForwardingBackend {
 public:
  explicit Recorder(std::shared_ptr<Record> record)
      : ForwardingBackend(make_cpu_backend(make_context(1))), record_(std::move(record)) {}

 private:
  PreparedPtr do_prepare(const LinearWeights& w) override {
    PreparedPtr p = ForwardingBackend::do_prepare(w);
    const std::size_t n = record_->number.size();
    record_->number[p.get()] = n;
    return p;
  }
  void do_linear(std::span<const PreparedWeights* const> weights, Matrix x,
                 std::span<const Matrix> outs) override {
    std::vector<float> rows(static_cast<std::size_t>(x.rows * x.cols));
    download(*x.buffer, x.offset, std::as_writable_bytes(std::span(rows)));
    for (const PreparedWeights* const w : weights) {
      std::vector<float>& to = record_->rows[record_->number.at(w)];
      to.insert(to.end(), rows.begin(), rows.end());
    }
    ForwardingBackend::do_linear(weights, x, outs);
  }
  std::shared_ptr<Record> record_;
};

using Seen = std::map<std::pair<TensorRole, std::int64_t>, std::vector<float>>;

class Observing : public ::testing::TestWithParam<std::tuple<WeightKind, bool>> {
 protected:
  static ModelConfig config() {
    ModelConfig c = testing::tiny_config();
    c.weights = std::get<0>(GetParam());
    c.sub_norms = std::get<1>(GetParam());
    if (!c.sub_norms) c.family = ModelFamily::kLlama;
    return c;
  }

  static Seen observe(const std::shared_ptr<const Model>& model,
                      const std::vector<std::vector<TokenId>>& texts,
                      const std::function<bool(TensorId)>& wanted, std::int64_t chunk) {
    Seen seen;
    ObserveOptions options;
    options.chunk_rows = chunk;
    observe_linear_inputs(
        model, texts, wanted,
        [&](TensorId input, std::span<const float> rows) {
          std::vector<float>& to = seen[{input.role, input.layer}];
          to.insert(to.end(), rows.begin(), rows.end());
        },
        options);
    return seen;
  }

  const testing::TensorModel tensors_ = testing::random_model(config(), 3);
  const std::vector<std::vector<TokenId>> texts_{{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {7}, {9, 8, 7, 6}};
};

TEST_P(Observing, SeesWhatLinearsAreGiven) {
  const auto record = std::make_shared<Record>();
  const auto recorded = Model::build(config(), nullptr, std::make_unique<Recorder>(record), tensors_);
  std::vector<TensorId> linears;  // in the order in which they are prepared
  for (const TensorId id : model_tensors(config()))
    if (is_linear(id.role)) linears.push_back(id);
  for (const auto& text : texts_) {
    Session session(recorded, {.n_ctx = 32, .chunk_rows = 5});
    session.evaluate_all(text, 0, [](std::int64_t, std::span<const float>) {});
  }
  for (const std::size_t threads : {1u, 3u}) {
    const Seen seen = observe(
        make_model(tensors_, threads), texts_, [](TensorId) { return true; }, 5);
    EXPECT_EQ(seen.size(), 8u);
    for (std::size_t i = 0; i < linears.size(); ++i) {
      const auto& got = seen.at({input_role(linears[i].role), linears[i].layer});
      const auto& expected = record->rows.at(i);
      ASSERT_EQ(got.size(), expected.size()) << gguf_name(linears[i]);
      EXPECT_EQ(got.size() % 16, 0u);  // tokens
      EXPECT_EQ(std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)), 0)
          << gguf_name(linears[i]);
    }
  }
}

TEST_P(Observing, ShowsWhatIsWantedAndRunsNoFurther) {
  const auto record = std::make_shared<Record>();
  const auto model = Model::build(config(), nullptr, std::make_unique<Recorder>(record), tensors_);
  const Seen whole = observe(
      model, texts_, [](TensorId) { return true; }, 64);
  record->rows.clear();
  const Seen part = observe(
      model, texts_,
      [](TensorId id) {
        return id == TensorId{TensorRole::kFfnGate, 0};
      },
      64);
  ASSERT_EQ(part.size(), 1u);
  EXPECT_EQ(part.begin()->second, whole.at({TensorRole::kFfnGate, 0}));
  EXPECT_EQ(record->rows.size(), 7u);  // the first layer's linears
  record->rows.clear();
  EXPECT_TRUE(observe(
                  model, texts_, [](TensorId) { return false; }, 64)
                  .empty());
  EXPECT_TRUE(record->rows.empty());
}

INSTANTIATE_TEST_SUITE_P(Kinds, Observing,
                         ::testing::Combine(::testing::Values(WeightKind::kTernary, WeightKind::kDense),
                                            ::testing::Bool()));

TEST(ObservingRefuses, BadInputAndStops) {
  const auto model = make_model(testing::random_model(testing::tiny_config(), 3));
  const auto run = [&](const std::vector<std::vector<TokenId>>& texts, const ObserveOptions& options = {}) {
    observe_linear_inputs(
        model, texts, [](TensorId) { return true; }, [](TensorId, std::span<const float>) {}, options);
  };
  BITNET_EXPECT_ERROR(run({{1}, {}}), ErrorCode::kInvalidArgument, "sequence 1 has no tokens");
  BITNET_EXPECT_ERROR(run({{1, 61}}), ErrorCode::kInvalidArgument,
                      "token id 61 is outside the vocabulary of 61");
  ObserveOptions options;
  options.chunk_rows = 0;
  BITNET_EXPECT_ERROR(run({{1}}, options), ErrorCode::kInvalidArgument, "chunk_rows 0");
  std::vector<std::int64_t> done;
  options.chunk_rows = 2;
  options.progress = [&](std::int64_t n, std::int64_t total) {
    done.push_back(n);
    EXPECT_EQ(total, 5);
  };
  run({{1, 2, 3}, {4, 5}}, options);
  EXPECT_EQ(done, (std::vector<std::int64_t>{2, 3, 5}));
  options.cancellation = CancellationToken();

  options.cancellation.cancel();
  BITNET_EXPECT_ERROR(run({{1}}, options), ErrorCode::kCancelled, "cancelled");
}

}  // namespace
}  // namespace bitnet::inference
