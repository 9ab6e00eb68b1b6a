// LoRA adapters beside the weights: logits against the double-precision reference, several at once, requests
// of one batch with sets of their own, and what must not change without them.
#include "bitnet/inference/adapter_set.hpp"

#include <cstring>
#include <limits>

#include "bitnet/inference/batch_scheduler.hpp"
#include "bitnet/inference/engine.hpp"
#include "bitnet/inference/perplexity.hpp"
#include "support.hpp"

namespace bitnet::inference {
namespace {

using quant::LoraAdapter;
using testing::random_adapter;

const std::vector<TensorRole> kAll{TensorRole::kAttnQ,      TensorRole::kAttnK,   TensorRole::kAttnV,
                                   TensorRole::kAttnOutput, TensorRole::kFfnGate, TensorRole::kFfnUp,
                                   TensorRole::kFfnDown};

std::vector<TokenId> tokens(std::size_t n, std::int64_t vocab, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<TokenId> ids(n);
  for (TokenId& id : ids) id = static_cast<TokenId>(random() % static_cast<std::uint32_t>(vocab));
  return ids;
}

std::vector<float> logits_of(const std::shared_ptr<const Model>& model,
                             const std::shared_ptr<const AdapterSet>& adapters, std::span<const TokenId> ids,
                             std::int64_t chunk_rows = 256) {
  SessionOptions options;
  options.chunk_rows = chunk_rows;
  options.kv_type = DType::kF32;
  Session session(model, options);
  session.set_adapters(adapters);
  std::vector<float> logits;
  session.evaluate_all(ids, 0, [&](std::int64_t, std::span<const float> row) {
    logits.insert(logits.end(), row.begin(), row.end());
  });
  return logits;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Compares the library with the reference on the first seed whose activations stay away from rounding ties.
void expect_reference(ModelConfig config, const std::vector<quant::WeightedAdapter>& adapters) {
  config.tied_embeddings = true;
  const std::vector<TokenId> ids = tokens(7, config.vocab_size, 3);
  for (std::uint32_t seed = 1; seed < 2000; ++seed) {
    const testing::TensorModel tensors = testing::random_model(config, seed);
    testing::ReferenceForward reference(tensors);
    for (const quant::WeightedAdapter& a : adapters)
      reference.add_adapter(*a.adapter, static_cast<double>(a.weight));
    const std::vector<testing::Row> expected = reference(ids);
    if (reference.margin() < 1e-3) continue;
    const auto model = make_model(tensors, 2, nullptr, HeadType::kStored);
    const std::vector<float> logits = logits_of(model, AdapterSet::build(model, adapters), ids);
    double largest = 0;
    for (const testing::Row& row : expected)
      for (const double v : row) largest = std::max(largest, std::abs(v));
    // Three more products and sums in each group than logit_bound() counts.
    const double bound = 2 * testing::logit_bound(config, largest);
    for (std::size_t p = 0; p < expected.size(); ++p)
      for (std::size_t i = 0; i < expected[p].size(); ++i)
        ASSERT_NEAR(static_cast<double>(logits[p * expected[p].size() + i]), expected[p][i], bound);
    return;
  }
  FAIL() << "no seed without rounding ties";
}

TEST(Adapters, LogitsEqualTheReference) {
  const ModelConfig config = testing::tiny_config();
  const LoraAdapter every = random_adapter(config, kAll, 3, 5);
  const LoraAdapter two = random_adapter(config, {TensorRole::kAttnQ, TensorRole::kFfnDown}, 8, 6, 0.5f, 1);
  for (const TensorRole role : kAll) {
    SCOPED_TRACE(gguf_name({role, 0}));
    const LoraAdapter one = random_adapter(config, {role}, 2, 7);
    expect_reference(config, {{&one, 1.0f}});
  }
  expect_reference(config, {{&every, 1.0f}});
  expect_reference(config, {{&every, 0.5f}, {&two, -1.5f}});
}

TEST(Adapters, OfADenseModelWithoutSubNormsEqualTheReference) {
  ModelConfig config = testing::tiny_config();
  config.weights = WeightKind::kDense;
  config.sub_norms = false;
  config.family = ModelFamily::kLlama;
  config.activation = Activation::kSilu;
  const LoraAdapter every = random_adapter(config, kAll, 3, 5);
  expect_reference(config, {{&every, 1.0f}});
}

TEST(Adapters, TheirUpdateIsMergedIntoADenseModelsWeights) {
  ModelConfig config = testing::tiny_config();
  config.weights = WeightKind::kDense;
  const testing::TensorModel tensors = testing::random_model(config, 4);
  const LoraAdapter adapter = random_adapter(config, kAll, 3, 5);
  const quant::WeightedAdapter weighted{&adapter, 1.0f};
  testing::TensorModel merged = tensors;
  std::vector<quant::MergeReport> reports;
  for (auto& [name, t] : merged.tensors) t = quant::merge(t, {&weighted, 1}, reports);
  const std::vector<TokenId> ids = tokens(9, config.vocab_size, 1);
  const auto model = make_model(tensors, 1, nullptr, HeadType::kStored);
  const std::vector<float> beside = logits_of(model, AdapterSet::build(model, {&weighted, 1}), ids);
  const std::vector<float> in_weights =
      logits_of(make_model(merged, 1, nullptr, HeadType::kStored), nullptr, ids);
  ASSERT_EQ(beside.size(), in_weights.size());
  for (std::size_t i = 0; i < beside.size(); ++i) ASSERT_NEAR(beside[i], in_weights[i], 2e-4);
}

TEST(Adapters, OfZerosChangeNoValueAndWithoutThemTheBitsAreTheOldOnes) {
  const ModelConfig config = testing::tiny_config();
  const auto model = make_model(testing::random_model(config, 2));
  LoraAdapter zeros = random_adapter(config, kAll, 4, 1);
  for (quant::LoraLinear& l : zeros.linears) std::fill(l.b.begin(), l.b.end(), 0.0f);
  const quant::WeightedAdapter weighted{&zeros, 1.0f};
  const std::vector<TokenId> ids = tokens(20, config.vocab_size, 2);
  const std::vector<float> plain = logits_of(model, nullptr, ids);
  EXPECT_EQ(plain, logits_of(model, AdapterSet::build(model, {&weighted, 1}), ids));  // −0 equals 0
  SessionOptions options;
  options.kv_type = DType::kF32;
  Session session(model, options);
  session.set_adapters(AdapterSet::build(model, {&weighted, 1}));
  (void)session.evaluate(ids);
  session.set_adapters(nullptr);  // forgets the tokens
  const std::span<const float> last = session.evaluate(ids);
  const auto expected = std::span<const float>(plain).last(last.size());
  EXPECT_EQ(std::memcmp(last.data(), expected.data(), last.size_bytes()), 0);
}

TEST(Adapters, BitsDoNotDependOnThreadsOrChunks) {
  const ModelConfig config = testing::tiny_config();
  const testing::TensorModel tensors = testing::random_model(config, 2);
  const LoraAdapter adapter = random_adapter(config, kAll, 5, 8);
  const quant::WeightedAdapter weighted{&adapter, 1.0f};
  const std::vector<TokenId> ids = tokens(40, config.vocab_size, 2);
  std::vector<float> first;
  for (const std::size_t threads : {1u, 2u, 3u}) {
    const auto model = make_model(tensors, threads);
    const auto set = AdapterSet::build(model, {&weighted, 1});
    for (const std::int64_t chunk : {1, 7, 256}) {
      const std::vector<float> logits = logits_of(model, set, ids, chunk);
      if (first.empty()) first = logits;
      EXPECT_TRUE(same_bits(first, logits)) << threads << " threads, chunks of " << chunk;
    }
  }
}

TEST(Adapters, RequestsOfOneBatchHaveTheirOwn) {
  const ModelConfig config = testing::tiny_config();
  const auto model = make_model(testing::random_model(config, 9), 2);
  const LoraAdapter a = random_adapter(config, kAll, 2, 1), b = random_adapter(config, kAll, 6, 2);
  const quant::WeightedAdapter wa{&a, 1.0f}, wb{&b, 1.0f};
  const std::vector<std::shared_ptr<const AdapterSet>> sets{nullptr, AdapterSet::build(model, {&wa, 1}),
                                                            AdapterSet::build(model, {&wb, 1})};
  SchedulerOptions options;
  options.max_sequences = 5;
  options.step_rows = 16;
  options.n_ctx = 64;
  BatchScheduler scheduler(model, options);
  std::vector<std::vector<TokenId>> got(9);
  std::vector<GenerationOptions> asked(9);
  for (std::size_t i = 0; i < got.size(); ++i) {
    asked[i].max_tokens = 12;
    asked[i].ignore_eos = true;
    asked[i].sampling.temperature = 0;
    asked[i].adapters = sets[i % 3];
    asked[i].draft = i % 2 == 0 ? 0 : 3;
    scheduler.submit({tokens(5 + i, config.vocab_size, static_cast<std::uint32_t>(i)),
                      asked[i],
                      {},
                      [&got, i](RequestId, const GenerationResult& r) { got[i] = r.tokens; }});
  }
  scheduler.run();
  bool differ = false;
  for (std::size_t i = 0; i < got.size(); ++i) {
    BatchScheduler alone(model, options);
    std::vector<TokenId> expected, without;
    const std::vector<TokenId> prompt = tokens(5 + i, config.vocab_size, static_cast<std::uint32_t>(i));
    alone.submit({prompt, asked[i], {}, [&](RequestId, const GenerationResult& r) { expected = r.tokens; }});
    GenerationOptions plain = asked[i];
    plain.adapters = nullptr;
    alone.submit({prompt, plain, {}, [&](RequestId, const GenerationResult& r) { without = r.tokens; }});
    alone.run();
    ASSERT_EQ(expected.size(), 12u);
    EXPECT_EQ(got[i], expected) << i;
    differ = differ || expected != without;
  }
  EXPECT_TRUE(differ);
}

struct AdapterFiles : ::testing::Test {
  testing::TempDir folder;
  ModelConfig config = [] {
    ModelConfig c = text_config();
    c.hidden_size = c.intermediate_size = 128;
    c.head_dim = 32;
    return c;
  }();
  testing::TensorModel tensors = testing::random_model(config, 2, DType::kF16);
  LoraAdapter adapter = random_adapter(config, kAll, 4, 3, 2.0f);

  AdapterFiles() {
    quant::write_model(folder / "m.gguf", config, byte_tokenizer().get(), tensors, {});
    quant::write_adapter(folder / "lora", adapter, config);
  }
  EngineOptions options() const {
    EngineOptions o;
    o.model = folder / "m.gguf";
    o.context = make_context(1);
    return o;
  }
};

TEST_F(AdapterFiles, AnEngineLoadsAndChangesThemAtRunTime) {
  GenerationOptions g;
  g.max_tokens = 16;
  g.ignore_eos = true;
  g.sampling.temperature = 0;
  InferenceEngine plain(options());
  const auto without = plain.generate("the cat", g).tokens;
  EngineOptions o = options();
  o.adapters = {{folder / "lora", 1.0f}};
  InferenceEngine engine(o);
  const auto with = engine.generate("the cat", g).tokens;
  EXPECT_NE(with, without);
  // The cache of a prompt does not outlive its adapters.
  const auto set = engine.adapters();
  engine.set_adapters(nullptr);
  EXPECT_EQ(engine.generate("the cat", g).tokens, without);
  engine.set_adapters(set);
  EXPECT_EQ(engine.generate("the cat", g).tokens, with);
  const GenerationResult again = engine.generate("the cat", g);
  EXPECT_GT(again.reused_tokens, 0);
  EXPECT_EQ(again.tokens, with);
  // A scheduler of the engine has them, too, and a request may bring its own.
  auto scheduler = engine.make_scheduler();
  std::vector<TokenId> in_batch;
  scheduler->submit(
      {engine.model()->tokenizer()->encode("the cat"), g, {}, [&](RequestId, const GenerationResult& r) {
         in_batch = r.tokens;
       }});
  scheduler->run();
  EXPECT_EQ(in_batch, with);
  EXPECT_EQ(plain.generate("the cat", g).tokens, without);
  BITNET_EXPECT_ERROR(plain.set_adapters(set), ErrorCode::kInvalidArgument, "another model");
  g.adapters = set;
  BITNET_EXPECT_ERROR((void)plain.generate("the cat", g), ErrorCode::kInvalidArgument, "another model");
}

TEST_F(AdapterFiles, PerplexityGoesThroughThem) {
  const auto model = Model::load(folder / "m.gguf", make_cpu_backend(make_context(1)));
  const std::vector<TokenId> ids = tokens(256, config.vocab_size, 1);
  PerplexityOptions o;
  o.n_ctx = 64;
  const double plain = perplexity(model, ids, o).perplexity;
  const AdapterSource source{folder / "lora", 1.0f}, half{folder / "lora", 0.5f};
  o.adapters = AdapterSet::load(model, {&source, 1});
  const double with = perplexity(model, ids, o).perplexity;
  EXPECT_NE(plain, with);
  const std::vector<AdapterSource> halves{half, half};  // twice a half is one, but for roundings
  o.adapters = AdapterSet::load(model, halves);
  EXPECT_EQ(o.adapters->rank(), 8);
  EXPECT_NEAR(perplexity(model, ids, o).perplexity, with, 0.02 * with);
  // Many short texts at once go through them, too: each as it does alone.
  const std::vector<std::vector<TokenId>> texts{tokens(9, config.vocab_size, 5),
                                                tokens(30, config.vocab_size, 6)};
  o.adapters = AdapterSet::load(model, {&source, 1});
  double alone = 0;
  for (const auto& text : texts) alone += perplexity_of_texts(model, {&text, 1}, o).nll;
  EXPECT_DOUBLE_EQ(perplexity_of_texts(model, texts, o).nll, alone);
  o.adapters = nullptr;
  EXPECT_NE(perplexity_of_texts(model, texts, o).nll, alone);
}

TEST_F(AdapterFiles, WrongOnesAreRefused) {
  const auto model = Model::load(folder / "m.gguf", make_cpu_backend(make_context(1)));
  BITNET_EXPECT_ERROR(AdapterSet::load(model, {}), ErrorCode::kInvalidArgument, "no adapters");
  const AdapterSource infinite{folder / "lora", std::numeric_limits<float>::infinity()};
  BITNET_EXPECT_ERROR(AdapterSet::load(model, {&infinite, 1}), ErrorCode::kInvalidArgument, "weight inf");
  const AdapterSource missing{folder / "nothing"};
  BITNET_EXPECT_ERROR(AdapterSet::load(model, {&missing, 1}), ErrorCode::kNotFound, "nothing");
  const auto other = make_model(testing::random_model(testing::tiny_config(), 1));
  const AdapterSource source{folder / "lora"};
  BITNET_EXPECT_ERROR(AdapterSet::load(other, {&source, 1}), ErrorCode::kCorruptFile, "expected shape");
  Session session(other);
  BITNET_EXPECT_ERROR(session.set_adapters(AdapterSet::load(model, {&source, 1})),
                      ErrorCode::kInvalidArgument, "another model");
}

}  // namespace
}  // namespace bitnet::inference
