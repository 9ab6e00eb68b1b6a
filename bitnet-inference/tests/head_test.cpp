// Embeddings and heads of the CPU backend in both forms: int8 by its definition and within a derived bound of
// the float product, which form a model gets, and what cannot be rounded.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "support.hpp"

namespace bitnet::inference {
namespace {

struct Table {
  std::int64_t out = 0, in = 0;
  std::vector<float> values;  // [out, in], all of them bf16 and f16 numbers
};

Table random_table(std::int64_t out, std::int64_t in, std::uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> eighth(-100, 100);
  Table t{out, in, {}};
  for (std::int64_t i = 0; i < out * in; ++i) t.values.push_back(static_cast<float>(eighth(random)) / 64);
  return t;
}

std::vector<std::byte> stored_as(DType type, const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * bits_of(type) / 8);
  for (std::size_t i = 0; i < values.size(); ++i) {
    const std::uint16_t h = type == DType::kF16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
    if (type == DType::kF32) {
      std::memcpy(bytes.data() + 4 * i, &values[i], 4);
    } else {
      std::memcpy(bytes.data() + 2 * i, &h, 2);
    }
  }
  return bytes;
}

PreparedPtr prepare(Backend& backend, const Table& t, DenseForm form, DType type = DType::kF32) {
  const std::vector<std::byte> bytes = stored_as(type, t.values);
  LinearWeights w;
  w.out = t.out;
  w.in = t.in;
  w.dense = bytes;
  w.dense_type = type;
  w.dense_form = form;
  return backend.prepare_embedding(w);
}

std::vector<float> floats_of(Backend& backend, const Buffer& buffer) {
  std::vector<float> v(buffer.bytes() / sizeof(float));
  backend.download(buffer, 0, std::as_writable_bytes(std::span(v)));
  return v;
}

std::vector<float> logits(Backend& backend, const PreparedWeights& head, const std::vector<float>& hidden,
                          const std::vector<std::int32_t>& rows) {
  const auto n = static_cast<std::int64_t>(hidden.size()) / head.in();
  const BufferPtr x = backend.allocate(hidden.size() * sizeof(float));
  backend.upload(*x, 0, std::as_bytes(std::span(hidden)));
  const BufferPtr y = backend.allocate(rows.size() * static_cast<std::size_t>(head.out()) * sizeof(float));
  backend.logits(head, {x.get(), 0, n, head.in()}, rows,
                 {y.get(), 0, static_cast<std::int64_t>(rows.size()), head.out()});
  return floats_of(backend, *y);
}

/// A row as int8: q and the factor that gives it back.
struct Rounded {
  std::vector<int> q;
  float step = 0;
};

Rounded round_row(const float* x, std::int64_t n, float smallest) {
  float m = smallest;
  for (std::int64_t i = 0; i < n; ++i) m = std::max(m, std::fabs(x[i]));
  Rounded r;
  for (std::int64_t i = 0; i < n; ++i) r.q.push_back(static_cast<int>(std::nearbyint(x[i] * (127.0f / m))));
  r.step = m;
  return r;
}

constexpr std::int64_t kOut = 75, kIn = 130, kRows = 21;

TEST(Head, Int8LogitsAreTheDefinitionForAnyRows) {
  const auto backend = make_cpu_backend(make_context(2));
  const Table table = random_table(kOut, kIn, 1);
  const PreparedPtr head = prepare(*backend, table, DenseForm::kInt8);
  const std::vector<float> x = random_table(kRows, kIn, 2).values;
  std::vector<std::int32_t> all;
  for (std::int32_t r = 0; r < kRows; ++r) all.push_back(r);
  for (const auto& rows : {all, {0}, {20}, {3, 4, 5}, {7, 2, 2, 20, 0}}) {
    const std::vector<float> y = logits(*backend, *head, x, rows);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const Rounded a = round_row(x.data() + rows[i] * kIn, kIn, 1e-5f);
      for (std::int64_t o = 0; o < kOut; ++o) {
        const Rounded w = round_row(table.values.data() + o * kIn, kIn, 1e-30f);
        std::int32_t sum = 0;
        for (std::size_t k = 0; k < a.q.size(); ++k) sum += a.q[k] * w.q[k];
        const float scale = (w.step / 127.0f) * (1.0f / (127.0f / a.step));
        ASSERT_EQ(y[i * kOut + static_cast<std::size_t>(o)], static_cast<float>(sum) * scale)
            << i << ", " << o;
      }
    }
  }
}

/// |x·w − x̂·ŵ| ≤ Σ |x||w − ŵ| + |x − x̂||ŵ|, each difference at most half a step (1 % for the float errors).
TEST(Head, Int8LogitsAreWithinHalfAStepOfTheFloatOnes) {
  const auto backend = make_cpu_backend(make_context(1));
  const Table table = random_table(kOut, kIn, 3);
  const std::vector<float> x = random_table(1, kIn, 4).values;
  const std::vector<float> rounded = logits(*backend, *prepare(*backend, table, DenseForm::kInt8), x, {0});
  const std::vector<float> exact = logits(*backend, *prepare(*backend, table, DenseForm::kAsGiven), x, {0});
  const Rounded a = round_row(x.data(), kIn, 1e-5f);
  for (std::int64_t o = 0; o < kOut; ++o) {
    const Rounded w = round_row(table.values.data() + o * kIn, kIn, 1e-30f);
    double bound = 0;
    for (std::size_t k = 0; k < w.q.size(); ++k)
      bound += std::fabs(x[k]) * w.step / 254 + std::abs(w.q[k]) * (w.step / 127) * a.step / 254;
    const auto i = static_cast<std::size_t>(o);
    EXPECT_LE(std::fabs(rounded[i] - exact[i]), 1.01 * bound) << o;
  }
}

TEST(Head, EveryFloatTypeGivesTheSameInt8) {
  const auto backend = make_cpu_backend(make_context(2));
  const Table table = random_table(kOut, kIn, 5);
  const std::vector<float> x = random_table(2, kIn, 6).values;
  const auto expected = logits(*backend, *prepare(*backend, table, DenseForm::kInt8), x, {0, 1});
  for (const DType type : {DType::kF16, DType::kBF16}) {
    const PreparedPtr head = prepare(*backend, table, DenseForm::kInt8, type);
    EXPECT_EQ(logits(*backend, *head, x, {0, 1}), expected);
    EXPECT_LT(head->bytes(), prepare(*backend, table, DenseForm::kAsGiven, type)->bytes());
  }
}

TEST(Head, F16IsHalfToEvenOfEveryFloatType) {
  const auto backend = make_cpu_backend(make_context(2));
  Table table = random_table(kOut, kIn, 8);
  for (float& v : table.values) v *= 1.0f + 0x1p-9f + 0x1p-12f;  // f16 lacks the bits
  const std::vector<float> x = random_table(3, kIn, 9).values;
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    SCOPED_TRACE(std::string(to_string(type)));
    Table given = table, rounded = table;  // what is stored, and that as f16
    for (std::size_t i = 0; i < table.values.size(); ++i) {
      const float v = table.values[i];
      given.values[i] = type == DType::kF16    ? f16_to_f32(f32_to_f16(v))
                        : type == DType::kBF16 ? bf16_to_f32(f32_to_bf16(v))
                                               : v;
      rounded.values[i] = f16_to_f32(f32_to_f16(given.values[i]));
    }
    const PreparedPtr head = prepare(*backend, given, DenseForm::kF16, type);
    EXPECT_EQ(head->bytes(), table.values.size() * 2);
    EXPECT_EQ(logits(*backend, *head, x, {2, 0}),
              logits(*backend, *prepare(*backend, rounded, DenseForm::kAsGiven), x, {2, 0}));
    const BufferPtr out = backend->allocate(2 * kIn * sizeof(float));
    backend->embed(*head, std::vector<std::int32_t>{74, 3}, {out.get(), 0, 2, kIn});
    const std::vector<float> y = floats_of(*backend, *out);
    for (std::size_t k = 0; k < kIn; ++k) {
      ASSERT_EQ(y[k], rounded.values[74 * kIn + k]);
      ASSERT_EQ(y[kIn + k], rounded.values[3 * kIn + k]);
    }
  }
}

TEST(Head, EmbedsTheRoundedRows) {
  const auto backend = make_cpu_backend(make_context(2));
  const Table table = random_table(kOut, kIn, 7);
  const std::vector<std::int32_t> ids{74, 0, 15, 16, 16};
  const BufferPtr out = backend->allocate(ids.size() * kIn * sizeof(float));
  backend->embed(*prepare(*backend, table, DenseForm::kInt8), ids, {out.get(), 0, 5, kIn});
  const std::vector<float> y = floats_of(*backend, *out);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const Rounded w = round_row(table.values.data() + ids[i] * kIn, kIn, 1e-30f);
    for (std::size_t k = 0; k < w.q.size(); ++k)
      ASSERT_EQ(y[i * kIn + k], static_cast<float>(w.q[k]) * (w.step / 127.0f));
  }
}

TEST(Head, AModelTakesInt8OnlyBesideTernaryLinears) {
  ModelConfig config = testing::tiny_config();
  for (const bool tied : {true, false}) {
    config.tied_embeddings = tied;
    for (const WeightKind kind : {WeightKind::kTernary, WeightKind::kDense}) {
      config.weights = kind;
      const auto tensors = testing::random_model(config, 1, DType::kF16);
      const auto automatic = make_model(tensors), stored = make_model(tensors, 1, nullptr, HeadType::kStored),
                 int8 = make_model(tensors, 1, nullptr, HeadType::kInt8);
      const auto expected = kind == WeightKind::kTernary ? HeadType::kInt8 : HeadType::kStored;
      EXPECT_EQ(automatic->head_type(), expected);
      EXPECT_EQ(stored->head_type(), HeadType::kStored);
      EXPECT_EQ(int8->head_type(), HeadType::kInt8);
      // f16 [61, 48] as int8 [64, 48] and 61 scales, once or twice.
      const std::size_t saved = 61 * 48 * 2 - (64 * 48 + 61 * 4);
      EXPECT_EQ(stored->weight_bytes() - int8->weight_bytes(), (tied ? 1 : 2) * saved);
      EXPECT_EQ(automatic->weight_bytes(), (expected == HeadType::kInt8 ? int8 : stored)->weight_bytes());
    }
  }
}

TEST(Head, AModelKeepsATiedTableAsF16Once) {
  ModelConfig config = testing::tiny_config();
  for (const bool tied : {true, false}) {
    config.tied_embeddings = tied;
    const auto tensors = testing::random_model(config, 1, DType::kF32);
    const auto stored = make_model(tensors, 1, nullptr, HeadType::kStored),
               f16 = make_model(tensors, 1, nullptr, HeadType::kF16);
    EXPECT_EQ(f16->head_type(), HeadType::kF16);
    EXPECT_EQ(to_string(f16->head_type()), "f16");
    EXPECT_EQ(stored->weight_bytes() - f16->weight_bytes(), (tied ? 1u : 2u) * 61 * 48 * 2);
  }
}

TEST(Head, APolicyMayStoreEmbeddingAndHeadDifferently) {
  ModelConfig config = testing::tiny_config();
  LoadOptions options;
  options.precision =
      PrecisionPolicy::inference().set(OpClass::kEmbedding, {DType::kF16, DType::kF32, DType::kF32});
  const auto load = [&] {
    const auto tensors = testing::random_model(config, 1, DType::kF32);
    return Model::build(config, nullptr, make_cpu_backend(make_context(1)), tensors, options);
  };
  config.tied_embeddings = false;
  EXPECT_EQ(load()->head_type(), HeadType::kInt8);
  // An f16 table of 61 × 48 where the int8 one has 64 × 48 and 61 scales.
  const auto int8 = make_model(testing::random_model(config, 1, DType::kF32));
  EXPECT_EQ(load()->weight_bytes() - int8->weight_bytes(), 61u * 48 * 2 - (64 * 48 + 61 * 4));
  config.tied_embeddings = true;
  BITNET_EXPECT_ERROR(
      load(), ErrorCode::kUnsupported,
      "precision of embedding: storage f16, compute f32, accumulate f32; of head: storage i8");
}

TEST(Head, WeightsThatF16CannotHoldAreNamed) {
  auto tensors = testing::random_model(testing::tiny_config(), 1);
  const auto put = [&](float v) {
    std::memcpy(tensors.tensors.at("token_embd.weight").dense.data() + (7 * 48 + 5) * sizeof v, &v, sizeof v);
  };
  put(65519.0f);  // rounds to 65504
  EXPECT_NE(make_model(tensors, 1, nullptr, HeadType::kF16), nullptr);
  put(-65520.0f);
  BITNET_EXPECT_ERROR(
      make_model(tensors, 1, nullptr, HeadType::kF16), ErrorCode::kUnsupported,
      "tensor 'token_embd.weight' (head type f16): the weight in row 7, column 5 is -65520, beyond f16's");
  put(std::numeric_limits<float>::infinity());  // as it is stored
  EXPECT_NE(make_model(tensors, 1, nullptr, HeadType::kF16), nullptr);
}

TEST(Head, AutoLooksAtWhatTheLinearsAre) {
  EXPECT_EQ(resolve_head(HeadType::kAuto, true), HeadType::kInt8);
  EXPECT_EQ(resolve_head(HeadType::kAuto, false), HeadType::kStored);
  EXPECT_EQ(resolve_head(HeadType::kF16, true), HeadType::kF16);
  const std::filesystem::path models = testing::source_path("tests/data/models");
  LoadOptions keep;
  keep.floats = quant::FloatLinears::kKeep;
  const auto head_of = [&](const char* name, const LoadOptions& options) {
    return Model::load(models / name, make_cpu_backend(make_context(1)), options)->head_type();
  };
  EXPECT_EQ(head_of("bitnet-25-packed", keep), HeadType::kInt8);  // nothing is float that could be kept
  EXPECT_EQ(head_of("bitnet-25-online", {}), HeadType::kInt8);
  EXPECT_EQ(head_of("bitnet-25-online", keep), HeadType::kStored);
  EXPECT_EQ(head_of("llama-dense", {}), HeadType::kStored);
  LoadOptions rounded;
  rounded.floats = quant::FloatLinears::kTernarise;
  EXPECT_EQ(head_of("llama-dense", rounded), HeadType::kInt8);
}

TEST(Head, WeightsThatInt8CannotHoldAreNamed) {
  auto tensors = testing::random_model(testing::tiny_config(), 1);
  const float bad = std::numeric_limits<float>::infinity();
  std::memcpy(tensors.tensors.at("token_embd.weight").dense.data() + (7 * 48 + 5) * sizeof bad, &bad,
              sizeof bad);
  BITNET_EXPECT_ERROR(
      make_model(tensors), ErrorCode::kInvalidArgument,
      "tensor 'token_embd.weight' (head type int8): Int8Linear: the weight in row 7, column 5 is inf");
  EXPECT_NE(make_model(tensors, 1, nullptr, HeadType::kStored), nullptr);
}

}  // namespace
}  // namespace bitnet::inference
