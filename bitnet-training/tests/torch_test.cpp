// Every layer, loss and optimiser that PyTorch has, against the numbers that it gives for the same weights
// (tests/data/training/make_modules.py): outputs, and the gradients of Σ coefficient · output.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/training/attention.hpp"
#include "bitnet/training/convolution.hpp"
#include "bitnet/training/losses.hpp"
#include "bitnet/training/optimizer.hpp"
#include "double_ops.hpp"
#include "golden_file.hpp"

namespace bitnet::training {
namespace {

// Both sides round in f32: sums of at most some hundred terms.
constexpr double kTolerance = 1e-5;

struct Case {
  ExecutionContext context;
  GoldenFile golden{"tests/data/training/modules.safetensors"};
  std::string name;
  Tape tape{context};
  std::vector<std::pair<std::string, Parameter*>> parameters;
  std::vector<std::unique_ptr<Parameter>> own;

  explicit Case(std::string n) : name(std::move(n)) {}
  std::vector<float> values(const std::string& tensor) const { return golden.values(name + "/" + tensor); }
  /// Gives a layer's parameter the file's values.
  void give(const std::string& tensor, Parameter& p) {
    const auto v = values(tensor);
    ASSERT_EQ(v.size(), p.value().size()) << tensor;
    std::copy(v.begin(), v.end(), p.value().begin());
    parameters.emplace_back(tensor, &p);
  }
  Parameter& make(const std::string& tensor, std::int64_t rows, std::int64_t cols) {
    own.push_back(std::make_unique<Parameter>(context, tensor, rows, cols, false));
    give(tensor, *own.back());
    return *own.back();
  }
  void expect_near(std::span<const float> ours, const std::string& tensor) const {
    const auto theirs = values(tensor);
    EXPECT_LT(reference::relative_error(ours, {theirs.begin(), theirs.end()}), kTolerance)
        << name << " " << tensor;
  }
  void check(Variable y) {
    ASSERT_EQ(y.value().size(), values("y").size());
    expect_near(y.value(), "y");
    tape.backward(reference::weighted_sum(tape, y));
    for (const auto& [tensor, p] : parameters) expect_near(p->grad(), tensor + ".grad");
  }
};

std::vector<Parameter*> all_of(Module& m) {
  std::vector<Parameter*> all;
  m.parameters(all);
  return all;
}

TEST(Torch, Linear) {
  Case c("linear");
  Linear layer(c.context, "l", 7, 9, true);
  c.give("w", layer.weight());
  c.give("b", *all_of(layer)[1]);
  c.check(layer(c.tape, c.make("x", 5, 9).variable()));
}

TEST(Torch, RmsNorm) {
  Case c("rms_norm");
  RmsNorm layer(c.context, "n", 9, 1e-5f);
  c.give("w", layer.weight());
  c.check(layer.forward(c.tape, c.make("x", 5, 9).variable()));
}

TEST(Torch, Embedding) {
  Case c("embedding");
  Embedding layer(c.context, "e", 11, 6);
  c.give("w", layer.weight());
  const auto ids = c.golden.values<std::int32_t>("embedding/ids");
  c.check(layer.forward(c.tape, ids));
}

TEST(Torch, Attention) {
  Case c("attention");
  Attention layer(
      {std::make_unique<Linear>(c.context, "q", 16, 12), std::make_unique<Linear>(c.context, "k", 8, 12),
       std::make_unique<Linear>(c.context, "v", 8, 12), std::make_unique<Linear>(c.context, "o", 12, 16),
       std::make_unique<RmsNorm>(c.context, "n", 16, 1e-5f)},
      {0, 4, 2, 4});
  for (Parameter* p : all_of(layer)) c.give(p->name(), *p);
  const RopeTable table(6, 4, 10000.0);
  c.check(layer.forward(c.tape, c.make("x", 12, 12).variable(), table, {6}));
}

TEST(Torch, BitLinearOfBothBlockShapes) {
  for (const BlockShape shape : {BlockShape::k2B4T, BlockShape::k2024}) {
    Case c(shape == BlockShape::k2B4T ? "bit_linear_2b4t" : "bit_linear_2024");
    BitLinearOptions options;
    options.shape = shape;
    BitLinear layer(c.context, "l", 10, 32, options);
    c.give("w", layer.weight());
    if (shape == BlockShape::k2024) c.give("norm", *all_of(layer)[1]);
    layer.refresh(c.context);
    c.check(layer(c.tape, c.make("x", 6, 32).variable()));
  }
}

TEST(Torch, BitLinearWithMediansOfRowsClippedGradientsFourBitsAndHalfTheStrength) {
  Case c("bit_linear_clipped");
  BitLinearOptions options;
  options.quantizer.granularity = ScaleGranularity::kRow;
  options.quantizer.statistic = ScaleStatistic::kMedian;
  options.quantizer.gradient = StraightThrough::kClipped;
  options.quantizer.activation_bits = 4;
  BitLinear layer(c.context, "l", 10, 33, options);
  c.give("w", layer.weight());
  layer.set_lambda(0.5f);
  layer.refresh(c.context);
  c.check(layer(c.tape, c.make("x", 6, 33).variable()));
}

TEST(Torch, BitLinearWithLearnedScales) {
  Case c("bit_linear_learned");
  BitLinearOptions options;
  options.quantizer.granularity = ScaleGranularity::kRow;
  options.quantizer.gradient = StraightThrough::kLearnedScale;
  BitLinear layer(c.context, "l", 10, 32, options);
  c.give("w", layer.weight());
  c.give("scale", *layer.scale());
  layer.refresh(c.context);
  c.check(layer(c.tape, c.make("x", 6, 32).variable()));
}

TEST(Torch, Conv2dAndBitConv2d) {
  const ImageWindow window{3, 3, 2, 1};
  Case dense("conv2d"), ternary("bit_conv2d");
  Conv2d layer(dense.context, "c", 4, 3, window);
  dense.give("w", layer.linear().weight());
  dense.give("b", *all_of(layer)[1]);
  dense.check(layer.forward(dense.tape, dense.make("x", 60, 3).variable(), {5, 6}));
  BitConv2d bit(ternary.context, "c", 4, 3, window);
  ternary.give("w", bit.linear().weight());
  bit.refresh(ternary.context);
  ternary.check(bit.forward(ternary.tape, ternary.make("x", 60, 3).variable(), {5, 6}));
}

TEST(Torch, MaxPoolWithEqualValues) {
  Case c("max_pool");
  c.check(max_pool(c.tape, c.make("x", 60, 3).variable(), {5, 6}, {3, 3, 2, 1}));
}

TEST(Torch, Losses) {
  {
    Case c("cross_entropy");
    const auto targets = c.golden.values<std::int32_t>("cross_entropy/targets");
    // The op writes over its logits, so it gets a copy of the parameter.
    Parameter& x = c.make("x", 7, 13);
    Parameter zero(c.context, "0", 7, 13, false);
    c.check(cross_entropy(c.tape, add(c.tape, x.variable(), zero.variable()), targets, 0.125f, {}, 0.1f));
  }
  {
    Case c("kl_divergence");
    const auto teacher = c.values("teacher");
    c.check(kl_divergence(c.tape, c.make("x", 7, 13).variable(), teacher, 5.0f, 0.125f));
  }
  {
    Case c("squared_error");
    const auto target = c.values("target");
    c.check(squared_error(c.tape, c.make("x", 7, 13).variable(), target, 0.125f));
  }
}

TEST(Torch, Optimizers) {
  const ExecutionContext context;
  const GoldenFile golden("tests/data/training/modules.safetensors");
  for (const std::string name : {"adamw", "sgd", "sgd_nesterov"}) {
    Parameter w(context, "w", 10, 10, true);
    Parameter* const all[] = {&w};
    for (std::size_t i = 0; i < 100; ++i)
      w.value()[i] = static_cast<float>(0.01 * static_cast<double>(i) - 0.5);
    std::unique_ptr<Optimizer> optimizer;
    if (name == "adamw")
      optimizer = std::make_unique<AdamW>(context, all, AdamWOptions{});
    else
      optimizer = std::make_unique<Sgd>(context, all, SgdOptions{0.9f, name == "sgd_nesterov"});
    for (int t = 1; t <= 5; ++t) {
      for (std::size_t i = 0; i < 100; ++i)
        w.grad()[i] = static_cast<float>(std::sin(0.37 * t * static_cast<double>(i + 1)));
      w.variable().node()->grad_written = true;
      optimizer->step(context, 0.01f, name == "adamw" ? 0.1f : 0.0f, 0);
    }
    const auto after = golden.values(name + "/after");
    for (std::size_t i = 0; i < 100; ++i) EXPECT_NEAR(w.value()[i], after[i], 1e-6) << name << " " << i;
  }
}

}  // namespace
}  // namespace bitnet::training
