// Activation checkpointing: the same bits as without, in less memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/language_model.hpp"
#include "bitnet/training/losses.hpp"
#include "bitnet/training/recompute.hpp"

namespace bitnet::training {
namespace {

constexpr std::int64_t kLength = 32;

ModelConfig shape(std::int64_t layers) {
  ModelConfig c;
  c.architecture = "bitnet-b1.58";
  c.vocab_size = 96;
  c.hidden_size = 128;
  c.intermediate_size = 256;
  c.n_layers = layers;
  c.n_heads = 4;
  c.n_kv_heads = 2;
  c.head_dim = 32;
  c.max_position = kLength;
  return c;
}

/// What two passes of one model leave.
struct Passes {
  std::vector<float> losses;
  std::vector<std::vector<float>> gradients;  // of each parameter
  std::size_t tape_bytes = 0;
  std::vector<const Node*> heard;  // by who watches the gradients, in the second pass
};

Passes passes(bool recomputes, Quantization quantization, std::int64_t layers, std::int64_t sequences) {
  const ExecutionContext context;
  LanguageModel model(context, shape(layers), quantization);
  Rng rng(5);
  model.initialize(rng, 0.05f);
  model.refresh(context);
  model.set_recompute(recomputes);
  Tape tape(context);
  Passes result;
  for (Parameter* p : model.parameters()) p->zero_grad();
  tape.watch_gradients([&](Node* n) { result.heard.push_back(n); });
  for (int pass = 0; pass < 2; ++pass) {  // whose gradients add up
    std::vector<std::int32_t> ids, targets, positions;
    for (std::int64_t i = 0; i < sequences * kLength; ++i) {
      ids.push_back(static_cast<std::int32_t>(rng.below(96)));
      targets.push_back(static_cast<std::int32_t>(rng.below(96)));
      positions.push_back(static_cast<std::int32_t>(i % kLength % 20));  // two documents a sequence
    }
    const Variable loss = cross_entropy(tape, model.forward(tape, ids, {kLength, positions}), targets, 0.01f);
    result.losses.push_back(loss.value()[0]);
    tape.backward(loss);
    tape.reset();
  }
  result.tape_bytes = tape.bytes_held();
  for (Parameter* p : model.parameters()) {
    p->finish_grad();
    result.gradients.emplace_back(p->grad().begin(), p->grad().end());
  }
  return result;
}

TEST(Recompute, GivesTheSameBits) {
  for (const Quantization q : {Quantization::kTernary, Quantization::kNone}) {
    const Passes kept = passes(false, q, 3, 2), again = passes(true, q, 3, 2);
    EXPECT_EQ(kept.losses, again.losses);
    ASSERT_EQ(kept.gradients.size(), again.gradients.size());
    for (const Passes* p : {&kept, &again}) {  // of each parameter once
      EXPECT_EQ(p->heard.size(), p->gradients.size());
      EXPECT_EQ(std::set(p->heard.begin(), p->heard.end()).size(), p->gradients.size());
    }
    for (std::size_t i = 0; i < kept.gradients.size(); ++i) {
      EXPECT_TRUE(
          std::any_of(kept.gradients[i].begin(), kept.gradients[i].end(), [](float g) { return g != 0; }));
      EXPECT_EQ(kept.gradients[i], again.gradients[i]) << i;
    }
  }
}

TEST(Recompute, TakesTheMemoryOfOneLayer) {
  // Beyond the fixed parts a layer costs its activations, or only its output.
  const auto cost = [](bool recomputes) {
    const std::size_t few = passes(recomputes, Quantization::kTernary, 4, 16).tape_bytes,
                      many = passes(recomputes, Quantization::kTernary, 12, 16).tape_bytes;
    return (static_cast<double>(many) - static_cast<double>(few)) / 8;
  };
  const double output = 16 * kLength * 128 * sizeof(float);
  EXPECT_GT(cost(false), 8 * output);
  EXPECT_LT(cost(true), 3 * output);
}

TEST(Recompute, AConstantInputAndTwoConsumers) {
  const ExecutionContext context;
  Parameter w(context, "w", 1, 4, false);
  std::copy_n(std::vector<float>{1, -2, 3, 4}.begin(), 4, w.value().begin());
  const auto gradient = [&](bool recomputes, bool constant) {
    Tape tape(context);
    w.zero_grad();
    const Variable c = tape.make(1, 4, false);
    std::copy_n(std::vector<float>{5, 6, 7, 8}.begin(), 4, c.value().begin());
    const Variable x = constant ? c : add(tape, w.variable(), c);
    Parameter* p = &w;
    const auto body = [p](Tape& t, Variable v) { return silu_gate(t, p->variable(), v); };
    const Variable y = recomputes ? recompute(tape, x, body) : body(tape, x);
    const Variable z = constant ? y : add(tape, y, x);  // x is used after it, too
    const std::vector<float> ones(4, 1.0f);
    tape.backward(z, ones);
    return std::vector<float>(w.grad().begin(), w.grad().end());
  };
  for (const bool constant : {false, true}) EXPECT_EQ(gradient(true, constant), gradient(false, constant));

  Tape tape(context);
  const Variable y = add(tape, w.variable(), w.variable());
  BITNET_EXPECT_ERROR(tape.backward(y, std::vector<float>(3)), ErrorCode::kInvalidArgument,
                      "as many gradients");
}

}  // namespace
}  // namespace bitnet::training
