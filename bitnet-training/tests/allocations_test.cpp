// A steady step allocates nothing: operator new of this executable counts, and the pool does not grow.
#include <gtest/gtest.h>

#include <memory>
#include <utility>
#include <vector>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/testing/reference_forward.hpp"
#include "bitnet/testing/refusing_new.hpp"
#include "bitnet/training/language_model.hpp"
#include "bitnet/training/lora.hpp"
#include "bitnet/training/losses.hpp"
#include "bitnet/training/optimizer.hpp"
#include "decoder_shape.hpp"

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
        long before = 0;
        std::size_t held = 0;
        for (int step = 0; step < 6; ++step) {
          if (step == 4) {
            before = testing::allocations;
            held = context.memory()->held();
          }
          const Variable logits = model.forward(tape, ids, {32, positions});
          tape.backward(cross_entropy(tape, logits, targets, 1.0f / 64));
          tape.reset();
          optimizer->step(context, 1e-3f, 0.1f, 1.0f);
          model.refresh(context);
        }
        EXPECT_EQ(testing::allocations - before, 0) << optimizer->name() << " on " << threads << " threads";
        EXPECT_EQ(context.memory()->held(), held) << optimizer->name();
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
    long before = 0;
    std::size_t held = 0;
    for (int step = 0; step < 6; ++step) {
      if (step == 4) {
        before = testing::allocations;
        held = context.memory()->held();
      }
      model.begin_pass(step, 0);
      const Variable logits = model.forward(tape, ids, {32, {}});
      tape.backward(cross_entropy(tape, logits, targets, 1.0f / 64));
      tape.reset();
      optimizer.step(context, 1e-3f, 0, 1.0f);
    }
    EXPECT_EQ(testing::allocations - before, 0) << threads << " threads";
    EXPECT_EQ(context.memory()->held(), held);
  }
}

}  // namespace
}  // namespace bitnet::training
