// The model in models/: what its card promises of its shape, and the perplexity of each form that we write of
// it, the same to the last bit where the scales are kept whole and within 0.1 % where they are rounded to
// f16.
#include <cmath>
#include <filesystem>
#include <string>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/gguf.hpp"
#include "bitnet/inference/engine.hpp"
#include "bitnet/inference/perplexity.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::inference {
namespace {

std::filesystem::path shipped() { return testing::source_path("models/bitnet-demo-i2_s.gguf"); }

double perplexity_of(const std::filesystem::path& path, HeadType head = HeadType::kAuto) {
  const InferenceEngine engine({.model = path, .head = head});
  const std::string text = read_file(testing::source_path("tests/data/text/northanger_abbey.txt"));
  return perplexity(engine.model(), text, {.n_ctx = 256}).perplexity;
}

std::filesystem::path converted(const std::filesystem::path& to, const quant::WriteOptions& options) {
  const auto reader = quant::ModelReader::open(shipped());
  quant::write_model(
      to, reader->config(), reader->tokenizer().get(), [&](TensorId id) { return reader->read(id); },
      options);
  return to;
}

TEST(ShippedModel, HasTheShapeThatItsCardSays) {
  EXPECT_LE(std::filesystem::file_size(shipped()), 8'000'000u);
  const auto file = GgufFile::open(shipped());
  std::int64_t parameters = 0, ternary = 0;
  for (const GgufTensorInfo& tensor : file->tensors()) {
    std::int64_t n = 1;
    for (const std::int64_t dim : tensor.dims) n *= dim;
    parameters += n;
    if (tensor.type == GgmlType::kI2_S) ternary += n;
    if (tensor.name == "token_embd.weight") {
      EXPECT_EQ(tensor.type, GgmlType::kF16);
    }
  }
  EXPECT_EQ(parameters, 16'268'800);
  EXPECT_GT(ternary, parameters / 2);
  const ModelConfig config = quant::ModelReader::open(shipped())->config();
  EXPECT_EQ(config.family, ModelFamily::kBitNet25);
  EXPECT_EQ(config.hidden_size % 256, 0);
  EXPECT_EQ(config.intermediate_size % 256, 0);
  EXPECT_GE(config.max_position, 512);
  EXPECT_TRUE(config.tied_embeddings);
}

TEST(ShippedModel, KeepsItsPerplexityInEveryForm) {
  const testing::TempDir dir;
  const double whole = perplexity_of(shipped());
  EXPECT_LT(whole, 150);  // the beginning of the held-out novel; uniform guessing would give 4096
  using quant::LinearType;
  EXPECT_EQ(perplexity_of(converted(dir / "multiply", {.type = LinearType::kHf, .gguf = false})), whole);
  EXPECT_EQ(
      perplexity_of(converted(
          dir / "divide", {.type = LinearType::kHf, .gguf = false, .scale_form = WeightScaleForm::kDivide})),
      whole);
  EXPECT_EQ(perplexity_of(converted(dir / "i2_s.gguf", {.type = LinearType::kI2_S})), whole);
  const double rounded = perplexity_of(converted(dir / "tq1_0.gguf", {.type = LinearType::kTQ1_0}));
  EXPECT_NEAR(rounded / whole, 1, 1e-3);
  EXPECT_EQ(perplexity_of(converted(dir / "tq2_0.gguf", {.type = LinearType::kTQ2_0})), rounded);
}

/// docs/numerics.md: some 0.1 % of noise on so short a text, whichever way.
TEST(ShippedModel, LosesNextToNothingByAnInt8Head) {
  const double stored = perplexity_of(shipped(), HeadType::kStored);
  const double int8 = perplexity_of(shipped());
  EXPECT_NE(int8, stored);
  EXPECT_NEAR(int8 / stored, 1, 5e-3);
}

}  // namespace
}  // namespace bitnet::inference
