// One whole step of a tiny decoder against PyTorch (tests/data/training/make_step.py): loss, every gradient,
// every weight after AdamW. And the library's promise that threads change nothing.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <optional>

#include "bitnet/testing/testing.hpp"
#include "bitnet/training/decoder_shape.hpp"
#include "bitnet/training/language_model.hpp"
#include "bitnet/training/losses.hpp"
#include "bitnet/training/optimizer.hpp"
#include "golden_file.hpp"

namespace bitnet::training {
namespace {

struct Golden : GoldenFile {
  Golden() : GoldenFile("tests/data/training/step.safetensors") {}
  std::int64_t number(const std::string& key) const { return std::stoll(file->metadata().at(key)); }
  ModelConfig config() const {
    ModelConfig c;
    c.architecture = "bitnet-b1.58";
    c.vocab_size = number("vocab");
    c.hidden_size = number("hidden");
    c.intermediate_size = number("inter");
    c.n_layers = number("layers");
    c.n_heads = number("heads");
    c.n_kv_heads = number("kv_heads");
    c.head_dim = number("head_dim");
    c.max_position = number("length");
    return c;
  }
};

/// The step of the golden file, on our side.
struct Step {
  Golden golden;
  ExecutionContext context;
  LanguageModel model{context, golden.config(), Quantization::kTernary};
  AdamW optimizer{context, model.parameters(), {}};
  double loss = 0, norm = 0;
  std::vector<std::vector<float>> gradients;

  explicit Step(std::size_t threads, std::optional<Isa> isa = {})
      : context(ExecutionContext::Options{threads, isa}) {
    for (Parameter* p : model.parameters()) {
      const auto w = golden.values(p->name());
      if (w.size() != p->value().size()) throw Error(ErrorCode::kCorruptFile, p->name());
      std::copy(w.begin(), w.end(), p->value().begin());
    }
    model.refresh(context);
    const auto inputs = golden.values<std::int32_t>("inputs"),
               targets = golden.values<std::int32_t>("targets");
    Tape tape(context);
    const Variable l = cross_entropy(tape, model.forward(tape, inputs, {golden.number("length")}), targets,
                                     1.0f / static_cast<float>(targets.size()));
    loss = l.value()[0];
    tape.backward(l);
    for (Parameter* p : model.parameters()) {
      p->finish_grad();
      gradients.emplace_back(p->grad().begin(), p->grad().end());
    }
    norm = optimizer.step(context, 1e-3f, 0.1f, 1.0f);
  }
};

TEST(Step, AgreesWithPyTorch) {
  Step step(2);
  EXPECT_NEAR(step.loss, step.golden.values("loss")[0], 1e-5);
  EXPECT_NEAR(step.norm, step.golden.values("grad_norm")[0], 1e-4 * step.norm);
  for (std::size_t i = 0; i < step.gradients.size(); ++i) {
    const std::string& name = step.model.parameters()[i]->name();
    const auto expected = step.golden.values(name + ".grad");
    double largest = 0;
    for (const float g : expected) largest = std::max(largest, std::abs(static_cast<double>(g)));
    ASSERT_GT(largest, 0) << name;
    // Roundings of two layers in f32 on both sides; no activation is near a tie, so nothing jumps.
    for (std::size_t k = 0; k < expected.size(); ++k)
      ASSERT_NEAR(step.gradients[i][k], expected[k], 1e-4 * largest) << name << " " << k;

    // The first AdamW step moves by lr · g / (|g| + eps'), so only gradients that are not all rounding error
    // count.
    const auto after = step.golden.values(name + ".after");
    const auto now = step.model.parameters()[i]->value();
    for (std::size_t k = 0; k < after.size(); ++k) {
      if (std::abs(expected[k]) > 1e-2 * largest) {
        ASSERT_NEAR(now[k], after[k], 2e-6) << name << " " << k;
      } else {
        ASSERT_NEAR(now[k], after[k], 2.1e-3) << name << " " << k;  // at most lr to either side
      }
    }
  }
}

/// The first losses differ by roundings; later ones by trits and int8 values that roundings near a tie have
/// turned, each of some 1e-3 of a loss here, as many as fall apart.
TEST(Step, TenStepsFollowPyTorchsCurve) {
  const Golden golden;
  const ExecutionContext context;
  LanguageModel model(context, golden.config(), Quantization::kTernary);
  for (Parameter* p : model.parameters()) {
    const auto w = golden.values(p->name());
    std::copy(w.begin(), w.end(), p->value().begin());
  }
  AdamW optimizer(context, model.parameters(), {});
  const auto inputs = golden.values<std::int32_t>("inputs"), targets = golden.values<std::int32_t>("targets");
  const auto curve = GoldenFile("tests/data/training/modules.safetensors").values("curve");
  ASSERT_EQ(curve.size(), 10u);
  Tape tape(context);
  for (std::size_t step = 0; step < curve.size(); ++step) {
    model.refresh(context);
    const Variable l = cross_entropy(tape, model.forward(tape, inputs, {golden.number("length")}), targets,
                                     1.0f / static_cast<float>(targets.size()));
    EXPECT_NEAR(l.value()[0], curve[step], (step < 2 ? 1e-4 : 2e-2) * curve[step]) << step;
    tape.backward(l);
    optimizer.step(context, 1e-3f, 0.1f, 1.0f);
    tape.reset();
  }
}

TEST(Step, IsTheSameForAnyNumberOfThreads) {
  Step one(1), three(3);
  EXPECT_EQ(one.loss, three.loss);
  EXPECT_EQ(one.norm, three.norm);
  for (std::size_t i = 0; i < one.gradients.size(); ++i) {
    EXPECT_EQ(one.gradients[i], three.gradients[i]);
    const auto a = one.model.parameters()[i]->value(), b = three.model.parameters()[i]->value();
    EXPECT_TRUE(std::equal(a.begin(), a.end(), b.begin()));
  }
}

/// With products that are cut over the threads, which those of the golden file are too small for.
TEST(Step, LargerStepsAreTheSameForAnyNumberOfThreads) {
  const ModelConfig config = decoder_config({.vocab = 512,
                                             .hidden = 256,
                                             .intermediate = 512,
                                             .layers = 1,
                                             .heads = 4,
                                             .kv_heads = 4,
                                             .context = 64});
  for (const Quantization quantization : {Quantization::kNone, Quantization::kTernary}) {
    std::vector<std::vector<float>> first;
    for (const std::size_t threads : {1, 2, 3}) {
      const ExecutionContext context(ExecutionContext::Options{threads, {}});
      LanguageModel model(context, config, quantization);
      Rng rng(4);
      model.initialize(rng, 0.05f);
      model.refresh(context);
      AdamW optimizer(context, model.parameters(), {});
      std::vector<std::int32_t> inputs(128), targets(128);
      for (auto* ids : {&inputs, &targets})
        for (std::int32_t& id : *ids) id = static_cast<std::int32_t>(rng.below(512));
      Tape tape(context);
      for (int step = 0; step < 2; ++step) {
        tape.backward(
            cross_entropy(tape, model.forward(tape, inputs, {config.max_position}), targets, 1.0f / 128));
        tape.reset();
        optimizer.step(context, 1e-3f, 0.1f, 1.0f);
        model.refresh(context);
      }
      std::vector<std::vector<float>> weights;
      for (const Parameter* p : model.parameters())
        weights.emplace_back(p->value().begin(), p->value().end());
      if (first.empty())
        first = weights;
      else
        EXPECT_EQ(first, weights) << threads;
    }
  }
}

TEST(Step, IsTheSameOnEveryInstructionSetWithFma) {
  std::unique_ptr<Step> first;
  for (const Isa isa : compiled_isas()) {
    if (!is_supported(isa) || to_string(isa) == "scalar" || to_string(isa) == "sse41") continue;
    auto step = std::make_unique<Step>(2, isa);
    if (first) {
      EXPECT_EQ(first->loss, step->loss) << to_string(isa);
      EXPECT_EQ(first->gradients, step->gradients) << to_string(isa);
    } else {
      first = std::move(step);
    }
  }
}

TEST(LanguageModel, WhatCannotBeTrainedIsRefused) {
  const ExecutionContext context;
  const ModelConfig good = Golden().config();
  const auto refuse = [&](auto change, const char* text) {
    ModelConfig c = good;
    change(c);
    BITNET_EXPECT_ERROR(LanguageModel(context, c, Quantization::kTernary), ErrorCode::kUnsupported, text);
  };
  refuse([](ModelConfig& c) { c.family = ModelFamily::kLlama; }, "another model family");
  refuse([](ModelConfig& c) { c.sub_norms = false; }, "sub_norms");
}

TEST(LanguageModel, APackedDocumentHasTheBitsThatItHasAlone) {
  const ExecutionContext context;
  const ModelConfig config = Golden().config();
  LanguageModel model(context, config, Quantization::kTernary);
  Rng rng(2);
  model.initialize(rng, 0.1f);
  model.refresh(context);
  Tape tape(context, false);
  const std::vector<std::int32_t> first = {1, 2, 3}, second = {4, 1};
  const std::vector<std::int32_t> row = {1, 2, 3, 4, 1, 0}, positions = {0, 1, 2, 0, 1, -1};
  const auto vocab = static_cast<std::size_t>(config.vocab_size);
  const auto together = model.forward(tape, row, {6, positions}).value();
  const auto a = model.forward(tape, first, {3}).value(), b = model.forward(tape, second, {2}).value();
  EXPECT_TRUE(std::equal(a.begin(), a.end(), together.begin()));
  EXPECT_TRUE(std::equal(b.begin(), b.end(), together.begin() + static_cast<std::ptrdiff_t>(3 * vocab)));
  const auto blind = model.forward(tape, row, {6}).value();  // as one document: the second sees the first
  EXPECT_FALSE(std::equal(b.begin(), b.end(), blind.begin() + static_cast<std::ptrdiff_t>(3 * vocab)));
}

TEST(LanguageModel, FullPrecisionHasNoTrits) {
  const ExecutionContext context;
  LanguageModel model(context, Golden().config(), Quantization::kNone);
  EXPECT_EQ(model.trit_counts().all, 0);
  Rng rng(1);
  model.initialize(rng, 0.1f);
  model.refresh(context);
  Tape tape(context, false);
  const std::vector<std::int32_t> ids = {1, 2, 3};
  const Variable logits = model.forward(tape, ids, {3});
  EXPECT_EQ(logits.rows(), 3);
  EXPECT_EQ(logits.cols(), model.config().vocab_size);
}

}  // namespace
}  // namespace bitnet::training
