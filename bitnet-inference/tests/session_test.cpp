// Models and sessions: logits against the double-precision reference for every architecture and weight type;
// bits that do not depend on threads, chunks or history; refusals.
#include "bitnet/inference/session.hpp"

#include <cstring>
#include <functional>
#include <limits>

#include "support.hpp"

namespace bitnet::inference {
namespace {

std::vector<TokenId> random_tokens(std::size_t n, std::int64_t vocab, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<TokenId> ids(n);
  for (TokenId& id : ids) id = static_cast<TokenId>(random() % static_cast<std::uint32_t>(vocab));
  return ids;
}

std::vector<float> all_logits(const std::shared_ptr<const Model>& model, std::span<const TokenId> ids,
                              std::int64_t chunk_rows = 256, DType kv_type = DType::kF16) {
  SessionOptions options;
  options.chunk_rows = chunk_rows;
  options.kv_type = kv_type;
  Session session(model, options);
  std::vector<float> logits;
  session.evaluate_all(ids, 0, [&](std::int64_t position, std::span<const float> row) {
    EXPECT_EQ(position * static_cast<std::int64_t>(row.size()), static_cast<std::int64_t>(logits.size()));
    logits.insert(logits.end(), row.begin(), row.end());
  });
  return logits;
}

struct Architecture {
  const char* name;
  std::function<void(ModelConfig&)> change;
  DType dense_type = DType::kF32;
};

const Architecture kArchitectures[] = {
    {"2B-4T", [](ModelConfig&) {}},
    {"f16 embeddings", [](ModelConfig&) {}, DType::kF16},
    {"bf16 embeddings, own head", [](ModelConfig& c) { c.tied_embeddings = false; }, DType::kBF16},
    {"1bitLLM",
     [](ModelConfig& c) {
       c.activation = Activation::kSilu;
       c.family = ModelFamily::kBitNetOld;
       c.n_kv_heads = 4;
     }},
    {"Llama",
     [](ModelConfig& c) {
       c.activation = Activation::kSilu;
       c.family = ModelFamily::kLlama;
       c.sub_norms = false;
       c.n_heads = 6;
       c.n_kv_heads = 1;
       c.head_dim = 14;
     }},
    {"dense f32", [](ModelConfig& c) { c.weights = WeightKind::kDense; }},
    {"dense f16", [](ModelConfig& c) { c.weights = WeightKind::kDense; }, DType::kF16},
    {"dense bf16, no sub-norms",
     [](ModelConfig& c) {
       c.weights = WeightKind::kDense;
       c.sub_norms = false;
       c.family = ModelFamily::kLlama;
       c.activation = Activation::kSilu;
     },
     DType::kBF16},
};

TEST(Session, LogitsEqualTheReferenceForEveryArchitecture) {
  for (const Architecture& a : kArchitectures) {
    SCOPED_TRACE(a.name);
    ModelConfig config = testing::tiny_config();
    a.change(config);
    const std::vector<TokenId> ids = random_tokens(7, config.vocab_size, 3);
    bool compared = false;
    for (std::uint32_t seed = 1; seed < 2000 && !compared; ++seed) {
      const testing::TensorModel tensors = testing::random_model(config, seed, a.dense_type);
      testing::ReferenceForward reference(tensors);
      const std::vector<testing::Row> expected = reference(ids);
      if (reference.margin() < 1e-4) continue;  // float and double would round an activation apart
      compared = true;
      const std::vector<float> logits =
          all_logits(make_model(tensors, 1, nullptr, HeadType::kStored), ids, 256, DType::kF32);
      double largest = 0, worst = 0;
      for (std::size_t i = 0; i < logits.size(); ++i) {
        const double e = expected[i / expected[0].size()][i % expected[0].size()];
        largest = std::max(largest, std::abs(e));
        worst = std::max(worst, std::abs(e - static_cast<double>(logits[i])));
      }
      EXPECT_LE(worst, testing::logit_bound(config, largest)) << "largest logit " << largest;
    }
    EXPECT_TRUE(compared);
  }
}

TEST(Session, SameBitsForAnyThreadsAndChunks) {
  ModelConfig config = testing::tiny_config();
  config.hidden_size = 320;  // large enough that ops are cut over threads
  config.intermediate_size = 700;
  config.vocab_size = 500;
  for (const WeightKind kind : {WeightKind::kTernary, WeightKind::kDense}) {
    config.weights = kind;
    const testing::TensorModel tensors = testing::random_model(config, 1, DType::kF16);
    const std::vector<TokenId> ids = random_tokens(60, config.vocab_size, 4);
    for (const DType kv : {DType::kF16, DType::kI8, DType::kF32}) {
      const std::vector<float> once = all_logits(make_model(tensors), ids, 256, kv);
      for (const std::size_t threads : {1, 2, 3, 8}) {
        for (const std::int64_t chunk : {1, 7, 33}) {
          const std::vector<float> again = all_logits(make_model(tensors, threads), ids, chunk, kv);
          ASSERT_EQ(std::memcmp(once.data(), again.data(), once.size() * sizeof(float)), 0)
              << threads << " threads, chunk " << chunk << ", " << to_string(kv);
        }
      }
    }
  }
}

TEST(Session, LogitsOfTheLastTokensAreThoseOfEach) {
  const auto model = make_model(testing::random_model(testing::tiny_config(), 1));
  const std::vector<TokenId> ids = random_tokens(40, 61, 6);
  const std::vector<float> expected = all_logits(model, ids);
  for (const std::int64_t chunk : {1, 7, 33, 256}) {
    for (const std::int64_t n : {1, 2, 17, 32}) {
      SessionOptions options;
      options.chunk_rows = chunk;
      Session session(model, options);
      session.evaluate(std::span<const TokenId>(ids).first(5));
      const std::span<const float> logits = session.evaluate(std::span<const TokenId>(ids).subspan(5), n);
      ASSERT_EQ(logits.size(), static_cast<std::size_t>(n * 61));
      EXPECT_EQ(
          std::memcmp(logits.data(), expected.data() + expected.size() - logits.size(), logits.size_bytes()),
          0)
          << n << " rows, chunk " << chunk;
    }
  }
  Session session(model);
  BITNET_EXPECT_ERROR(session.evaluate(ids, 0), ErrorCode::kInvalidArgument, "the last 0 of 40");
  BITNET_EXPECT_ERROR(session.evaluate(ids, 33), ErrorCode::kInvalidArgument, "expected 1 … 32");
  BITNET_EXPECT_ERROR(session.evaluate(std::span<const TokenId>(ids).first(2), 3),
                      ErrorCode::kInvalidArgument, "expected 1 … 2");
  EXPECT_TRUE(session.tokens().empty());
}

TEST(Session, ForgettingAndReusingAPrefixChangesNothing) {
  const auto model = make_model(testing::random_model(testing::tiny_config(), 1));
  const std::vector<TokenId> first = random_tokens(30, 61, 5);
  std::vector<TokenId> second(first.begin(), first.begin() + 20);
  second.push_back((first[20] + 1) % 61);
  second.push_back(7);
  Session session(model);
  session.evaluate(first);
  EXPECT_EQ(session.keep_prefix(second), 20);
  EXPECT_EQ(session.tokens().size(), 20u);
  const std::span<const float> logits = session.evaluate(std::span<const TokenId>(second).subspan(20));
  Session fresh(model);
  const std::span<const float> expected = fresh.evaluate(second);
  EXPECT_EQ(std::memcmp(logits.data(), expected.data(), logits.size_bytes()), 0);
  EXPECT_EQ(session.keep_prefix(second), 21);  // the last token must be evaluated again to have logits
  session.truncate(0);
  EXPECT_TRUE(session.tokens().empty());
}

TEST(Session, RefusesWhatDoesNotFit) {
  const auto model = make_model(testing::random_model(testing::tiny_config(), 1));
  SessionOptions options;
  options.n_ctx = 10;
  Session session(model, options);
  BITNET_EXPECT_ERROR(session.evaluate(random_tokens(11, 61, 1)), ErrorCode::kInvalidArgument,
                      "11 tokens do not fit the context of 10");
  session.evaluate(random_tokens(6, 61, 1));
  BITNET_EXPECT_ERROR(session.evaluate(random_tokens(5, 61, 1)), ErrorCode::kInvalidArgument, "11 tokens");
  BITNET_EXPECT_ERROR(session.evaluate(std::vector<TokenId>{61}), ErrorCode::kInvalidArgument, "token id 61");
  BITNET_EXPECT_ERROR(session.evaluate(std::vector<TokenId>{-1}), ErrorCode::kInvalidArgument, "token id -1");
  BITNET_EXPECT_ERROR(session.evaluate({}), ErrorCode::kInvalidArgument, "no tokens");
  EXPECT_EQ(session.tokens().size(), 6u);
  EXPECT_NO_THROW(session.evaluate(random_tokens(4, 61, 1)));
  options.n_ctx = -1;
  BITNET_EXPECT_ERROR(Session(model, options), ErrorCode::kInvalidArgument, "context of -1");
  options.n_ctx = 16;
  options.chunk_rows = 0;
  BITNET_EXPECT_ERROR(Session(model, options), ErrorCode::kInvalidArgument, "chunk_rows 0");
}

TEST(Session, ContextIsTheModelsUnlessAskedFor) {
  ModelConfig config = testing::tiny_config();
  EXPECT_EQ(resolve_context(config, 0), 128);
  EXPECT_EQ(resolve_context(config, 500), 500);
  config.max_position = 131072;
  EXPECT_EQ(resolve_context(config, 0), 4096);
}

TEST(Model, ReportsWhatItIs) {
  ModelConfig config = text_config();
  config.eos_ids = {5, 3, 5};
  const auto tensors = testing::random_model(config, 1);
  const auto model = make_model(tensors, 1, byte_tokenizer());
  EXPECT_TRUE(model->ternary());
  std::int64_t parameters = 0;
  for (const auto& [name, t] : tensors.tensors) parameters += t.shape.numel();
  EXPECT_EQ(model->n_parameters(), parameters);
  EXPECT_GT(model->weight_bytes(), 0u);
  EXPECT_EQ(model->eos(), (std::vector<TokenId>{1, 3, 5}));  // the tokenizer's <|end_of_text|> is 1
  EXPECT_TRUE(model->is_eos(3));
  EXPECT_FALSE(model->is_eos(4));
  BITNET_EXPECT_ERROR(make_model(tensors)->require_tokenizer(), ErrorCode::kNotFound, "no tokenizer");
}

TEST(Model, RefusesTensorsThatDoNotFit) {
  const ModelConfig config = testing::tiny_config();
  testing::TensorModel wrong = testing::random_model(config, 1);
  wrong.tensors.at("blk.1.ffn_up.weight") = wrong.tensors.at("blk.1.ffn_down.weight");
  BITNET_EXPECT_ERROR(make_model(wrong), ErrorCode::kInvalidArgument, "blk.1.ffn_up.weight");
  wrong = testing::random_model(config, 1);
  wrong.tensors.at("blk.0.attn_q.weight").weights.trits[5] = 3;
  BITNET_EXPECT_ERROR(make_model(wrong), ErrorCode::kInvalidArgument, "trit");
  ModelConfig normed = config;
  normed.input_norms = true;
  BITNET_EXPECT_ERROR(make_model(testing::random_model(normed, 1)), ErrorCode::kUnsupported, "use_rms_norm");
  BITNET_EXPECT_ERROR(make_model(testing::random_model(config, 1), 1, byte_tokenizer()),
                      ErrorCode::kCorruptFile, "vocabulary");
}

TEST(Model, AddedTokensMayLieBeyondTheModelsVocabulary) {
  BpeTrainerOptions options;
  options.vocab_size = 280;
  BpeTrainer trainer(options);
  trainer.feed("the cat and the hat and the rat sat on the mat, the end. the cat and the hat");
  std::string json = trainer.train();
  const std::int64_t n = Tokenizer::from_json(json)->vocab_size();
  const std::size_t list = json.find('[', json.find("\"added_tokens\""));
  ASSERT_NE(list, std::string::npos);
  json.insert(list + 1, R"({"id": )" + std::to_string(n) +
                            R"(, "content": "<pad>", "single_word": false, "lstrip": false, "rstrip": false,)"
                            R"( "normalized": false, "special": true},)");
  const auto tokenizer = Tokenizer::from_json(json);
  ASSERT_EQ(tokenizer->vocab_size(), n + 1);
  ModelConfig config = testing::tiny_config();
  config.vocab_size = n;
  const auto model = make_model(testing::random_model(config, 1), 1, tokenizer);
  ASSERT_EQ(model->notes().size(), 1u);
  EXPECT_THAT(model->notes()[0], ::testing::HasSubstr(std::to_string(n)));
  Session session(model);
  BITNET_EXPECT_ERROR(
      session.evaluate(tokenizer->encode("a<pad>", {.add_bos = false, .parse_special = true})),
      ErrorCode::kInvalidArgument, "outside the vocabulary");
  EXPECT_EQ(session.evaluate(tokenizer->encode("a")).size(), static_cast<std::size_t>(n));
  config.vocab_size = n - 1;
  BITNET_EXPECT_ERROR(make_model(testing::random_model(config, 1), 1, tokenizer), ErrorCode::kCorruptFile,
                      "no added one");
}

}  // namespace
}  // namespace bitnet::inference
