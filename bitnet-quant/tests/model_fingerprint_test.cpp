// Fingerprints: the same for a model in every container and type that holds its values, others for others;
// few rows are read.
#include "bitnet/quant/model_fingerprint.hpp"

#include <set>

#include "bitnet/testing/testing.hpp"
#include "model_io_support.hpp"

namespace bitnet::quant {
namespace {

using testing::Linears;
using testing::MemoryModel;
using testing::small_config;

class Fingerprints : public ::testing::Test {
 protected:
  std::string of(const ModelConfig& config, const MemoryModel& model, const WriteOptions& options,
                 FloatLinears floats = FloatLinears::kKeep) {
    const std::filesystem::path to = dir_ / ("m" + std::to_string(++n_) + (options.gguf ? ".gguf" : ""));
    write_model(to, config, nullptr, model.source(), options);
    return model_fingerprint(*ModelReader::open(to, floats));
  }
  bitnet::testing::TempDir dir_;
  int n_ = 0;
};

constexpr WriteOptions kDenseGguf{.type = LinearType::kDense, .gguf = true, .dense_type = DType::kF32};

ModelConfig dense() {
  ModelConfig c = small_config(ModelFamily::kLlama);
  c.weights = WeightKind::kDense;
  return c;
}

TEST_F(Fingerprints, AreThoseOfTheValues) {
  const MemoryModel model(dense(), Linears::kFloat);
  const std::string first = of(dense(), model, kDenseGguf);
  EXPECT_EQ(first.size(), 16u);
  EXPECT_EQ(first.find_first_not_of("0123456789abcdef"), std::string::npos);
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})  // all of them hold the values
    for (const bool gguf : {true, false})
      EXPECT_EQ(of(dense(), model, {.type = LinearType::kDense, .gguf = gguf, .dense_type = type}), first);
  EXPECT_EQ(
      of(dense(), model,
         {.type = LinearType::kDense, .gguf = false, .dense_type = DType::kF32, .shard_bytes = 100'000}),
      first);
}

TEST_F(Fingerprints, OfOtherModelsDiffer) {
  const std::string first = of(dense(), MemoryModel(dense(), Linears::kFloat), kDenseGguf);
  std::set<std::string> seen{first};
  const auto expect_other = [&](const ModelConfig& c, const MemoryModel& m, const std::string& what) {
    EXPECT_TRUE(seen.insert(of(c, m, kDenseGguf)).second) << what;
  };
  expect_other(dense(), MemoryModel(dense(), Linears::kFloat, 2), "another seed");
  ModelConfig theta = dense();
  theta.rope_theta = 10000;
  expect_other(theta, MemoryModel(dense(), Linears::kFloat), "rotation");
  for (const TensorId id : model_tensors(dense())) {  // each tensor, all of its rows a little
    MemoryModel m(dense(), Linears::kFloat);
    std::vector<float> w = m[id].to_f32();
    for (float& v : w) v *= 1.001f;
    std::memcpy(m[id].dense.data(), w.data(), w.size() * sizeof(float));
    expect_other(dense(), m, gguf_name(id));
  }
}

TEST_F(Fingerprints, OfTernaryModelsAreOfTritsAndScales) {
  const ModelConfig c = small_config(ModelFamily::kBitNet25);
  const TensorId down{TensorRole::kFfnDown, 1};
  MemoryModel model(c, Linears::kTernary);
  const WriteOptions i2{.type = LinearType::kI2_S}, hf{.type = LinearType::kHf, .gguf = false};
  const std::string first = of(c, model, i2);
  EXPECT_EQ(of(c, model, hf), first);
  model[down].weights.scales[0] *= 1.0001f;
  const std::string scaled = of(c, model, i2);
  EXPECT_NE(scaled, first);
  for (auto& t : model[down].weights.trits) t = static_cast<std::int8_t>(-t);
  EXPECT_NE(of(c, model, i2), scaled);
}

/// Counts the rows that are asked for.
class Counting final : public ModelReader {
 public:
  explicit Counting(std::unique_ptr<ModelReader> inner) : inner_(std::move(inner)) {}
  ModelFormat format() const noexcept override { return inner_->format(); }
  const ModelConfig& config() const noexcept override { return inner_->config(); }
  std::shared_ptr<const Tokenizer> tokenizer() const override { return inner_->tokenizer(); }
  std::vector<TensorId> tensors() const override { return inner_->tensors(); }
  LogicalTensor read(TensorId) const override { throw Error(ErrorCode::kInternal, "a whole tensor"); }
  TensorRows rows(TensorId id) const override {
    TensorRows t = inner_->rows(id);
    t.dense = [this, inner = t.dense](std::int64_t begin, std::int64_t end, std::byte* to) {
      rows_read += end - begin;
      inner(begin, end, to);
    };
    return t;
  }
  bool float_linears() const noexcept override { return inner_->float_linears(); }
  std::optional<DType> float_type(TensorId id) const override { return inner_->float_type(id); }
  std::string stored_type(TensorId id) const override { return inner_->stored_type(id); }
  std::uint64_t stored_bytes(TensorId id) const override { return inner_->stored_bytes(id); }
  std::uint64_t file_bytes() const override { return inner_->file_bytes(); }
  std::vector<std::string> notes() const override { return inner_->notes(); }
  mutable std::int64_t rows_read = 0;

 private:
  std::unique_ptr<ModelReader> inner_;
};

TEST_F(Fingerprints, TakeEightRowsOfATensor) {
  write_model(dir_ / "m.gguf", dense(), nullptr, MemoryModel(dense(), Linears::kFloat).source(), kDenseGguf);
  const Counting reader(ModelReader::open(dir_ / "m.gguf", FloatLinears::kKeep));
  model_fingerprint(reader);
  std::int64_t expected = 0;
  for (const TensorId id : reader.tensors()) {
    const Shape shape = tensor_shape(id, reader.config());
    expected += shape.rank() == 2 ? std::min<std::int64_t>(8, shape[0]) : 1;
  }
  EXPECT_EQ(reader.rows_read, expected);
}

}  // namespace
}  // namespace bitnet::quant
