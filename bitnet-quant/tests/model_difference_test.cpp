// Tensors of two models beside each other: figures against hand-made ones, every kind of linear, what one of
// them lacks, any number of threads.
#include "bitnet/quant/model_difference.hpp"

#include <cmath>
#include <cstring>
#include <map>

#include "bitnet/core/error.hpp"
#include "bitnet/quant/quantizer.hpp"
#include "bitnet/testing/testing.hpp"
#include "contexts.hpp"
#include "memory_reader.hpp"

namespace bitnet::quant {
namespace {

using test::context;
using testing::dense_config;
using testing::Linears;
using testing::MemoryModel;
using testing::MemoryReader;

class ModelDifferenceTest : public ::testing::Test {
 protected:
  std::unique_ptr<ModelReader> write(const MemoryReader& reader, const QuantConfig& config,
                                     DType norms = DType::kF32) {
    Quantizer q(context(), reader, config);
    return store(
        reader.config(), [&](TensorId id) { return q.read(id); }, norms);
  }
  std::unique_ptr<ModelReader> store(const ModelConfig& config,
                                     const std::function<LogicalTensor(TensorId)>& source,
                                     DType norms = DType::kF32) {
    WriteOptions options;
    options.type = LinearType::kExtended;
    options.gguf = false;
    options.dense_type = DType::kF32;
    options.norm_type = norms;
    const auto path = dir_ / ("m" + std::to_string(++n_));
    write_model(path, config, nullptr, source, options);
    return ModelReader::open(path);
  }
  static MemoryReader reader(ModelConfig config = dense_config(), std::uint64_t seed = 3) {
    return MemoryReader(config, MemoryModel(config, Linears::kFloat, seed));
  }
  static QuantConfig config(const std::string& yaml) {
    return QuantConfig::from_yaml("scheme: mixed_precision\n" + yaml, "config");
  }

  bitnet::testing::TempDir dir_;
  int n_ = 0;
};

const TensorDifference& find(const ModelDifference& d, TensorId id) {
  for (const TensorDifference& t : d.tensors)
    if (t.id == id) return t;
  ADD_FAILURE() << gguf_name(id);
  return d.tensors.front();
}

TEST_F(ModelDifferenceTest, FiguresAreThoseOfTheValues) {
  const MemoryReader floats = reader();
  const auto a = write(floats, config("weights: {method: keep}\n")),
             b = write(floats, config("weights: {method: ls, scales: group32}\n"
                                      "layers:\n"
                                      "  - {match: '*ffn_up', method: two-plane}\n"
                                      "  - {match: '*ffn_gate', method: int8}\n"
                                      "  - {match: '*attn_k', method: ls, scales: row}\n"));
  const ModelDifference d = compare_tensors(context(), *a, *b);
  EXPECT_EQ(d.tensors.size(), model_tensors(floats.config()).size());
  EXPECT_TRUE(d.only_first.empty() && d.only_other.empty());
  for (const TensorDifference& t : d.tensors) {
    const std::vector<float> x = a->read(t.id).to_f32(), y = b->read(t.id).to_f32();
    double squares = 0, noise = 0, product = 0, largest = 0;
    std::int64_t same = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double p = static_cast<double>(x[i]), q = static_cast<double>(y[i]);
      squares += p * p;
      noise += (p - q) * (p - q);
      product += p * q;
      largest = std::max(largest, std::fabs(p - q));
      same += p == q ? 1 : 0;
    }
    SCOPED_TRACE(gguf_name(t.id));
    EXPECT_NEAR(t.squares, squares, 1e-9 * squares);
    EXPECT_NEAR(t.noise, noise, 1e-9 * squares);
    EXPECT_NEAR(t.product, product, 1e-9 * squares);
    EXPECT_EQ(t.largest, largest);
    EXPECT_EQ(t.same, same);
    EXPECT_EQ(t.noise > 0, is_linear(t.id.role));
    EXPECT_FALSE(t.same_trits.has_value());
  }
  // The same model with itself, and with trits on both sides.
  for (const TensorDifference& t : compare_tensors(context(), *b, *b).tensors) {
    EXPECT_EQ(t.relative(), 0);
    EXPECT_NEAR(t.cosine(), 1, 1e-12);
    EXPECT_EQ(t.same, t.shape.numel());
    const bool plane =
        is_linear(t.id.role) && t.id.role != TensorRole::kFfnUp && t.id.role != TensorRole::kFfnGate;
    EXPECT_EQ(t.same_trits.has_value(), plane) << gguf_name(t.id);
    EXPECT_EQ(t.same_trits.value_or(t.shape.numel()), t.shape.numel());
  }
}

TEST_F(ModelDifferenceTest, TritsAreComparedWhereBothHaveThem) {
  const MemoryReader floats = reader();
  const auto a = write(floats, config("weights: {method: ls}\n")),
             b = write(floats, config("weights: {method: absmean}\n"));
  const TensorId id{TensorRole::kFfnDown, 1};
  const ModelDifference d = compare_tensors(context(), *a, *b);
  const TernaryWeights x = a->read(id).weights, y = b->read(id).weights;
  std::int64_t same = 0;
  for (std::size_t i = 0; i < x.trits.size(); ++i) same += x.trits[i] == y.trits[i] ? 1 : 0;
  EXPECT_EQ(find(d, id).same_trits, same);
  EXPECT_LT(same, static_cast<std::int64_t>(x.trits.size()));
  EXPECT_LT(find(d, id).cosine(), 1);
}

TEST_F(ModelDifferenceTest, ThreadsChangeNoBitAndProgressIsTold) {
  ModelConfig wide = dense_config();
  wide.vocab_size = 9000;  // several blocks
  const MemoryReader floats = reader(wide), others = reader(wide, 4);
  const auto a = write(floats, config("weights: {method: keep}\n")),
             b = write(others, config("weights: {method: ls}\n"));
  std::vector<std::int64_t> told;
  const ModelDifference one = compare_tensors(context(1), *a, *b, [&](std::int64_t done, std::int64_t all) {
    EXPECT_EQ(all, static_cast<std::int64_t>(model_tensors(wide).size()));
    told.push_back(done);
  });
  ASSERT_EQ(told.size(), one.tensors.size());
  EXPECT_EQ(told.back(), static_cast<std::int64_t>(told.size()));
  const ModelDifference three = compare_tensors(context(3), *a, *b);
  for (std::size_t i = 0; i < one.tensors.size(); ++i) {
    EXPECT_EQ(one.tensors[i].noise, three.tensors[i].noise);
    EXPECT_EQ(one.tensors[i].product, three.tensors[i].product);
    EXPECT_EQ(one.tensors[i].largest, three.tensors[i].largest);
  }
}

TEST_F(ModelDifferenceTest, OtherShapesAndTensorsOfOneModelAlone) {
  ModelConfig small = dense_config(), tied = dense_config();
  small.n_layers = 1;
  small.intermediate_size = 64;
  tied.tied_embeddings = true;
  const auto keep = config("weights: {method: keep}\n");
  const auto a = write(reader(), keep), b = write(reader(small), keep), c = write(reader(tied), keep);
  const ModelDifference d = compare_tensors(context(), *a, *b);
  EXPECT_FALSE(find(d, {TensorRole::kFfnUp, 0}).comparable());
  EXPECT_EQ(find(d, {TensorRole::kFfnUp, 0}).noise, 0);
  EXPECT_TRUE(find(d, {TensorRole::kAttnQ, 0}).comparable());
  EXPECT_EQ(d.only_first.size(), 9u);  // the second layer
  EXPECT_TRUE(d.only_other.empty());
  EXPECT_EQ(compare_tensors(context(), *b, *a).only_other.size(), 9u);
  EXPECT_EQ(compare_tensors(context(), *a, *c).only_first.size(), a->config().tied_embeddings ? 0u : 1u);
}

TEST_F(ModelDifferenceTest, ValuesThatAreNotFiniteAreNamed) {
  MemoryReader floats = reader();
  const auto a = write(floats, config("weights: {method: keep}\n"));
  LogicalTensor& norm = floats.model()[{TensorRole::kAttnNorm, 1}];
  const float bad = INFINITY;
  std::memcpy(norm.dense.data() + 8, &bad, sizeof(bad));
  const auto b = store(floats.config(), [&](TensorId id) { return floats.read(id); });
  BITNET_EXPECT_ERROR(compare_tensors(context(), *a, *b), ErrorCode::kCorruptFile, "blk.1.attn_norm.weight");
}

}  // namespace
}  // namespace bitnet::quant
