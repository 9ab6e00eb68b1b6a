// Models from training to inference: what a run exports has there the logits of the training's forward pass,
// for every kind of scales that files hold.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/core/rng.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/inference/session.hpp"
#include "bitnet/testing/reference_forward.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/export.hpp"
#include "bitnet/training/losses.hpp"
#include "bitnet/training/optimizer.hpp"

namespace bitnet {
namespace {

using training::QuantizerOptions;
using training::ScaleGranularity;

/// Widths of more than one group of 128.
ModelConfig config_of(std::int64_t intermediate) {
  ModelConfig c = testing::tiny_config();
  c.hidden_size = 256;
  c.head_dim = 64;
  c.intermediate_size = intermediate;
  return c;
}

std::vector<std::int32_t> some_ids(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::int32_t> ids(n);
  for (auto& id : ids) id = static_cast<std::int32_t>(rng.below(61));
  return ids;
}

class ExportLogits : public ::testing::Test {
 protected:
  void train(training::LanguageModel& model) {
    Rng rng(5);
    model.initialize(rng, 0.05f);
    model.refresh(*context_);
    training::AdamW optimizer(*context_, model.parameters(), {});
    training::Tape tape(*context_);
    const auto ids = some_ids(32, 1), targets = some_ids(32, 2);
    for (int step = 0; step < 10; ++step) {
      tape.backward(training::cross_entropy(tape, model.forward(tape, ids, {16, {}}), targets, 1.0f / 32));
      tape.reset();
      optimizer.step(*context_, 3e-3f, 0, 1);
      model.refresh(*context_);
    }
  }

  std::vector<float> served_logits(const std::shared_ptr<const inference::Model>& model,
                                   const std::vector<std::int32_t>& ids) {
    inference::SessionOptions options;
    options.kv_type = DType::kF32;
    inference::Session session(model, options);
    std::vector<float> logits;
    session.evaluate_all(ids, 0, [&](std::int64_t, std::span<const float> row) {
      logits.insert(logits.end(), row.begin(), row.end());
    });
    return logits;
  }

  /// Trains, exports in f32 as model_files() says, loads, and compares the logits of three sequences.
  void expect_same_logits(std::int64_t intermediate, const QuantizerOptions& quantizer,
                          quant::LinearType type) {
    const ModelConfig config = config_of(intermediate);
    training::LanguageModel model(*context_, config, training::Quantization::kTernary, quantizer);
    train(model);
    quant::WriteOptions options;
    options.gguf = false;
    options.type = training::model_files(config, training::Quantization::kTernary, quantizer).type;
    ASSERT_EQ(options.type, type);
    options.dense_type = DType::kF32;
    const testing::TempDir dir;
    training::export_model(dir / "model", model, nullptr, options);
    inference::LoadOptions load;
    load.head = inference::HeadType::kStored;
    const auto served = inference::Model::load(dir / "model", inference::make_cpu_backend(context_), load);

    testing::TensorModel tensors{config, {}};
    for (const TensorId id : model_tensors(config))
      tensors.tensors[gguf_name(id)] = training::export_tensor(model, id);
    int compared = 0;
    for (std::uint64_t seed = 10; seed < 2000 && compared < 3; ++seed) {
      const auto ids = some_ids(3, seed);
      testing::ReferenceForward reference(tensors);
      const auto expected = reference(ids);
      if (reference.margin() < 3e-4) continue;  // float and double would quantise differently
      ++compared;
      double largest = 0;
      for (const testing::Row& row : expected)
        for (const double v : row) largest = std::max(largest, std::abs(v));
      training::Tape tape(*context_, false);
      const training::Variable ours = model.forward(tape, ids, {3, {}});
      const std::vector<float> theirs = served_logits(served, ids);
      ASSERT_EQ(ours.value().size(), theirs.size());
      // As in lora_logits_test.cpp: inference within 1 of the exact value, training within 8.
      const double bound = 9 * testing::logit_bound(config, largest);
      for (std::size_t i = 0; i < theirs.size(); ++i) {
        ASSERT_NEAR(ours.value()[i], theirs[i], bound);
        ASSERT_NEAR(theirs[i], expected[i / 61][i % 61], bound);
      }
      EXPECT_GT(largest, 1000 * bound);  // logits of another model are not within it
    }
    EXPECT_EQ(compared, 3) << "too few sequences without rounding ties";
  }

  std::shared_ptr<const ExecutionContext> context_ =
      std::make_shared<const ExecutionContext>(ExecutionContext::Options{2, {}});
};

TEST_F(ExportLogits, OneScaleATensor) { expect_same_logits(384, {}, quant::LinearType::kHf); }

TEST_F(ExportLogits, ColumnsThatAreNoMultipleOf128) { expect_same_logits(200, {}, quant::LinearType::kHf); }

TEST_F(ExportLogits, ScalesByRow) {
  expect_same_logits(384, {.granularity = ScaleGranularity::kRow}, quant::LinearType::kExtended);
}

TEST_F(ExportLogits, LearnedScalesByRow) {
  expect_same_logits(
      200, {.granularity = ScaleGranularity::kRow, .gradient = training::StraightThrough::kLearnedScale},
      quant::LinearType::kExtended);
}

TEST_F(ExportLogits, ActivationsOf4Bits) {
  expect_same_logits(384, {.activation_bits = 4}, quant::LinearType::kExtended);
}

TEST_F(ExportLogits, MediansByGroup) {
  expect_same_logits(
      384, {.granularity = ScaleGranularity::kGroup, .statistic = training::ScaleStatistic::kMedian},
      quant::LinearType::kExtended);
}

}  // namespace
}  // namespace bitnet
