// A steady step allocates nothing: operator new of this executable counts, and the pool does not grow.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/testing/reference_forward.hpp"
#include "bitnet/testing/refusing_new.hpp"
#include "bitnet/training/decoder_shape.hpp"
#include "bitnet/training/language_model.hpp"
#include "bitnet/training/lora.hpp"
#include "bitnet/training/losses.hpp"
#include "bitnet/training/optimizer.hpp"

namespace bitnet::training {
namespace {

ModelConfig shape() {
  return decoder_config({.vocab = 300,
                         .hidden = 128,
                         .intermediate = 128,
                         .layers = 2,
                         .heads = 4,
                         .kv_heads = 2,
                         .context = 32});
}

/// Runs step(0) … step(5), of which the last two may take no memory.
template <class Step>
void expect_steady(const ExecutionContext& context, Step&& step) {
  for (int i = 0; i < 4; ++i) step(i);
  const long before = testing::allocations;
  const std::size_t held = context.memory()->held();
  for (int i = 4; i < 6; ++i) step(i);
  EXPECT_EQ(testing::allocations - before, 0);
  EXPECT_EQ(context.memory()->held(), held);
}

TEST(Allocations, ASteadyStepMakesNone) {
  QuantizerOptions learned;
  learned.gradient = StraightThrough::kLearnedScale;
  learned.granularity = ScaleGranularity::kRow;
  for (const std::size_t threads : {1, 2})
    for (const QuantizerOptions& quantizer : {QuantizerOptions{}, learned})
      for (const int kind : {0, 1, 2, 3, 4}) {
        const ExecutionContext context(ExecutionContext::Options{threads, {}});
        LanguageModel model(context, shape(), Quantization::kTernary, quantizer);
        Rng rng(1);
        model.initialize(rng, 0.05f);
        model.refresh(context);
        model.set_recompute(kind == 4);
        std::unique_ptr<Optimizer> optimizer;
        const auto all = model.parameters();
        if (kind == 0 || kind == 4) optimizer = std::make_unique<AdamW>(context, all, AdamWOptions{});
        if (kind == 1) optimizer = std::make_unique<AdamW8>(context, all, AdamWOptions{});
        if (kind == 2) optimizer = std::make_unique<Sgd>(context, all, SgdOptions{});
        if (kind == 3) optimizer = std::make_unique<Muon>(context, all, all.subspan(2, 2), MuonOptions{});
        Tape tape(context);
        std::vector<std::int32_t> ids(64, 7), targets(64, 8), positions(64);
        for (std::int32_t i = 0; i < 64; ++i) positions[static_cast<std::size_t>(i)] = i % 16;
        SCOPED_TRACE(std::string(optimizer->name()) + " on " + std::to_string(threads) + " threads");
        expect_steady(context, [&](int) {
          const Variable logits = model.forward(tape, ids, {32, positions});
          tape.backward(cross_entropy(tape, logits, targets, 1.0f / 64));
          tape.reset();
          optimizer->step(context, 1e-3f, 0.1f, 1.0f);
          model.refresh(context);
        });
      }
}

TEST(Allocations, ASteadyStepOfAnAdapterMakesNone) {
  for (const auto& [threads, recomputes] : {std::pair<std::size_t, bool>{1, false}, {2, false}, {2, true}}) {
    const ExecutionContext context(ExecutionContext::Options{threads, {}});
    const testing::TensorModel tensors = testing::random_model(testing::tiny_config(), 1);
    LoraOptions options;
    options.dropout = 0.1;
    LoraModel model(context, std::make_unique<FrozenModel>(context, tensors.config, tensors), options, 1);
    model.set_recompute(recomputes);
    AdamW optimizer(context, model.parameters(), {});
    Tape tape(context);
    const std::vector<std::int32_t> ids(64, 7), targets(64, 8);
    SCOPED_TRACE(std::to_string(threads) + " threads");
    expect_steady(context, [&](int step) {
      model.begin_pass(step, 0);
      const Variable logits = model.forward(tape, ids, {32, {}});
      tape.backward(cross_entropy(tape, logits, targets, 1.0f / 64));
      tape.reset();
      optimizer.step(context, 1e-3f, 0, 1.0f);
    });
  }
}

}  // namespace
}  // namespace bitnet::training
