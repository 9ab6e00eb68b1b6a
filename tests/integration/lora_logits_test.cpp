// An adapter from training to inference: trained on a ternary base, written, read back beside the weights of
// an inference model, and the same logits there.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "bitnet/core/rng.hpp"
#include "bitnet/inference/adapter_set.hpp"
#include "bitnet/inference/register.hpp"
#include "bitnet/inference/session.hpp"
#include "bitnet/quant/quantizer.hpp"
#include "bitnet/testing/reference_forward.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/lora.hpp"
#include "bitnet/training/losses.hpp"
#include "bitnet/training/optimizer.hpp"

namespace bitnet {
namespace {

std::vector<std::int32_t> some_ids(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::int32_t> ids(n);
  for (auto& id : ids) id = static_cast<std::int32_t>(rng.below(61));
  return ids;
}

void train(const ExecutionContext& context, training::LoraModel& model) {
  training::AdamW optimizer(context, model.parameters(), {});
  training::Tape tape(context);
  const auto ids = some_ids(32, 1), targets = some_ids(32, 2);
  for (int step = 0; step < 20; ++step) {
    model.begin_pass(step, 0);
    tape.backward(training::cross_entropy(tape, model.forward(tape, ids, {16, {}}), targets, 1.0f / 32));
    tape.reset();
    optimizer.step(context, 1e-2f, 0, 1);
  }
}

std::vector<float> logits_of(const std::shared_ptr<const inference::Model>& model,
                             const std::shared_ptr<const inference::AdapterSet>& adapters,
                             std::span<const std::int32_t> ids) {
  inference::SessionOptions options;
  options.kv_type = DType::kF32;
  inference::Session session(model, options);
  session.set_adapters(adapters);
  std::vector<float> logits;
  session.evaluate_all(ids, 0, [&](std::int64_t, std::span<const float> row) {
    logits.insert(logits.end(), row.begin(), row.end());
  });
  return logits;
}

void expect_same_logits(const testing::TensorModel& tensors) {
  ExecutionContext::Options machine;
  machine.threads = 2;
  const auto context = std::make_shared<const ExecutionContext>(machine);
  training::LoraOptions options;
  options.rank = 4;
  options.dropout = 0.1;
  training::LoraModel model(
      *context, std::make_unique<training::FrozenModel>(*context, tensors.config, tensors), options, 3);
  train(*context, model);
  const testing::TempDir dir;
  quant::write_adapter(dir / "adapter", model.adapter("base"), tensors.config);

  inference::LoadOptions load;
  load.head = inference::HeadType::kStored;
  const auto served =
      inference::Model::build(tensors.config, nullptr, inference::make_cpu_backend(context), tensors, load);
  const inference::AdapterSource source{dir / "adapter", 1.0f};
  const auto adapters = inference::AdapterSet::load(served, {&source, 1});
  const quant::LoraAdapter trained = model.adapter();
  testing::ReferenceForward reference(tensors);
  reference.add_adapter(trained, 1);
  int compared = 0;
  for (std::uint64_t seed = 10; seed < 2000 && compared < 3; ++seed) {
    const auto ids = some_ids(5, seed);
    testing::ReferenceForward fresh = reference;  // margins of these tokens only
    const auto expected = fresh(ids);
    if (fresh.margin() < 1e-3) continue;  // float and double would quantise differently
    ++compared;
    double largest = 0;
    for (const testing::Row& row : expected)
      for (const double v : row) largest = std::max(largest, std::abs(v));
    training::Tape tape(*context, false);
    const training::Variable ours = model.forward(tape, ids, {5, {}});
    const auto theirs = logits_of(served, adapters, ids);
    ASSERT_EQ(ours.value().size(), theirs.size());
    // Both are within a multiple of logit_bound() of the exact value: inference within 2 (its adapters'
    // products beside the linears'), training within 8 (sums over one lane instead of 16 as well). The
    // quantised linears have the same bits in both, of whatever kind they are.
    const double bound = 10 * testing::logit_bound(tensors.config, largest);
    double change = 0;
    const auto plain = logits_of(served, nullptr, ids);
    for (std::size_t i = 0; i < theirs.size(); ++i) {
      ASSERT_NEAR(ours.value()[i], theirs[i], bound);
      change = std::max(change, std::abs(static_cast<double>(plain[i]) - static_cast<double>(theirs[i])));
    }
    EXPECT_GT(change, 100 * bound);  // the adapter does something
  }
  EXPECT_EQ(compared, 3) << "too few sequences without rounding ties";
}

TEST(LoraLogits, AreTheSameInTrainingAndInInference) {
  expect_same_logits(testing::random_model(testing::tiny_config(), 2));
}

/// Among them some that share their input with others of 8 bits.
TEST(LoraLogits, OfABaseWithActivationsOf4Bits) {
  testing::TensorModel tensors = testing::random_model(testing::tiny_config(), 2);
  for (auto& [name, tensor] : tensors.tensors)
    if (tensor.id.role == TensorRole::kAttnK || tensor.id.role == TensorRole::kFfnDown)
      tensor.activations = ActivationForm::kInt4Absmax;
  expect_same_logits(tensors);
}

/// A float model whose linears are made what a plan says.
testing::TensorModel quantised(const char* plan) {
  ModelConfig config = testing::tiny_config();
  config.weights = WeightKind::kDense;
  config.hidden_size = 64;
  config.intermediate_size = 96;
  config.head_dim = 16;
  testing::TensorModel model = testing::random_model(config, 2);
  const ExecutionContext context;
  const quant::QuantConfig how = quant::QuantConfig::from_yaml(plan, "plan");
  for (const quant::PlannedLinear& l : quant::plan_linears(how, config)) {
    quant::LogicalTensor& t = model.tensors.at(gguf_name(l.id));
    const std::vector<float> w = t.to_f32();
    t = quant::quantize_linear(context, l.id, w, t.shape[0], t.shape[1], l.plan, how).tensor;
  }
  return model;
}

TEST(LoraLogits, OfABaseOfEveryKindOfLinear) {
  expect_same_logits(
      quantised("scheme: mixed_precision\n"
                "weights: {method: ls, scales: group32}\n"
                "layers:\n"
                "  - {match: ['blk.0.attn_k', 'blk.1.ffn_up'], method: int8}\n"
                "  - {match: ['blk.0.attn_v', 'blk.*.ffn_down'], method: two-plane, scales: row}\n"
                "  - {match: 'blk.1.attn_v', method: two-plane, scales: group32}\n"
                "  - {match: 'blk.1.attn_output', method: ls, scales: tensor, activation_bits: 4}\n"
                "  - {match: 'blk.0.ffn_gate', method: int8, activation_bits: 4}\n"
                "keep: [blk.1.attn_q]\n"));
}

}  // namespace
}  // namespace bitnet
