// Adapters on a frozen base: products through packed trits against those of training's floats, logits and
// gradients against the double-precision reference, and what a step leaves as it was. Runs from a
// configuration are lora_run_test.cpp; inference with the same adapter is
// tests/integration/lora_logits_test.cpp.
#include "bitnet/training/lora.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/quant/quantizer.hpp"
#include "bitnet/testing/reference_forward.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/fake_quant.hpp"
#include "bitnet/training/language_model.hpp"
#include "bitnet/training/losses.hpp"
#include "bitnet/training/optimizer.hpp"
#include "gradient_check.hpp"

namespace bitnet::training {
namespace {

using testing::TensorModel;

std::vector<std::int32_t> some_ids(std::size_t n, std::int64_t vocab, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::int32_t> ids(n);
  for (auto& id : ids) id = static_cast<std::int32_t>(rng.below(static_cast<std::uint64_t>(vocab)));
  return ids;
}

ModelConfig dense_config() {
  ModelConfig c = testing::tiny_config();
  c.weights = WeightKind::kDense;
  return c;
}

std::unique_ptr<FrozenModel> frozen(const ExecutionContext& context, const TensorModel& tensors) {
  return std::make_unique<FrozenModel>(context, tensors.config, tensors);
}

LoraOptions options_of(std::int64_t rank, double dropout = 0) {
  LoraOptions o;
  o.rank = rank;
  o.alpha = static_cast<double>(2 * rank);  // scaling 2, as random_adapter() has
  o.dropout = dropout;
  return o;
}

const std::vector<TensorRole> kAll = LoraOptions().targets;

TEST(FrozenLinear, HasTheBitsOfBitLinearForwardAndBackward) {
  for (const std::size_t threads : {1u, 2u}) {
    const ExecutionContext context(ExecutionContext::Options{threads, {}});
    for (const auto& [n, in, out] :
         {std::array<std::int64_t, 3>{1, 1, 1}, {5, 130, 15}, {9, 96, 64}, {3, 77, 200}}) {
      Rng rng(1);
      std::vector<float> latent(static_cast<std::size_t>(in * out));
      for (float& w : latent) w = static_cast<float>(rng.normal());
      TernaryCache cache(context, out, in);
      cache.update(context, latent);
      quant::LogicalTensor t;
      t.shape = Shape{out, in};
      t.ternary = true;
      t.weights = cache.weights();
      const FrozenLinear frozen_linear(context, t);
      EXPECT_EQ(frozen_linear.trits()->trits(), t.weights.trits);

      Parameter x(context, "x", n, in, false), w(context, "w", out, in, false);
      reference::fill(x, reference::random(rng, n, in));
      Tape tape(context);
      const auto begin = [&] {  // a gradient to add to
        x.zero_grad();
        tape.backward(reference::weighted_sum(tape, add(tape, x.variable(), x.variable())));
      };
      begin();
      quant::QuantizedRows rows;
      quant::quantize_rows(context, x.value(), n, in, rows);
      const Variable ours_y = frozen_linear.forward(tape, x.variable(), rows);
      const std::vector<float> ours(ours_y.value().begin(), ours_y.value().end());
      tape.backward(reference::weighted_sum(tape, ours_y));
      tape.reset();
      const std::vector<float> our_gradient(x.grad().begin(), x.grad().end());

      begin();
      const Variable y = bit_linear(tape, quantize_activations(tape, x.variable()), w.variable(), cache);
      EXPECT_EQ(ours, std::vector<float>(y.value().begin(), y.value().end()));
      tape.backward(reference::weighted_sum(tape, y));
      EXPECT_EQ(our_gradient, std::vector<float>(x.grad().begin(), x.grad().end()));
    }
  }
}

/// A linear of every kind of quantised weights against sums in double, and the same bits of any number of
/// threads.
TEST(FrozenLinear, MultipliesByEveryKindOfLinear) {
  constexpr std::int64_t kRows = 5, kIn = 96, kOut = 73;
  const auto in = static_cast<std::size_t>(kIn), out = static_cast<std::size_t>(kOut);
  Rng rng(1);
  std::vector<float> latent(out * in);
  for (float& w : latent) w = static_cast<float>(rng.normal());
  using quant::ScaleUnit;
  using quant::WeightMethod;
  for (const quant::LinearPlan& plan : {quant::LinearPlan{WeightMethod::kLeastSquares, ScaleUnit::kRow},
                                        {WeightMethod::kLeastSquares, ScaleUnit::kGroup32},
                                        {WeightMethod::kTwoPlane, ScaleUnit::kTensor},
                                        {WeightMethod::kTwoPlane, ScaleUnit::kRow},
                                        {WeightMethod::kTwoPlane, ScaleUnit::kGroup32},
                                        {WeightMethod::kInt8, ScaleUnit::kRow},
                                        {WeightMethod::kInt8, ScaleUnit::kRow, 4},
                                        {WeightMethod::kTwoPlane, ScaleUnit::kGroup32, 4}}) {
    SCOPED_TRACE(std::string(to_string(plan.method)) + " " + std::string(to_string(plan.scales)));
    std::vector<float> first_y, first_dx;
    for (const std::size_t threads : {1u, 2u, 3u}) {
      const ExecutionContext context(ExecutionContext::Options{threads, {}});
      const quant::LogicalTensor t = quant::quantize_linear(context, {}, latent, kOut, kIn, plan, {}).tensor;
      const FrozenLinear linear(context, t);
      EXPECT_TRUE(linear.quantised());
      EXPECT_EQ(linear.activations(), t.activations);
      BITNET_EXPECT_ERROR(linear.constant(), ErrorCode::kInvalidArgument, "are no variable");
      Parameter x(context, "x", kRows, kIn, false);
      Rng inputs(2);
      reference::fill(x, reference::random(inputs, kRows, kIn));
      quant::QuantizedRows rows;
      quant::quantize_rows(context, x.value(), kRows, kIn, rows, t.activations);
      Tape tape(context);
      x.zero_grad();
      const Variable y = linear.forward(tape, x.variable(), rows);
      const std::vector<float> ours(y.value().begin(), y.value().end());
      std::vector<float> dy(ours.size());
      for (float& d : dy) d = static_cast<float>(inputs.normal());
      tape.backward(y, dy);
      const std::vector<float> dx(x.grad().begin(), x.grad().end());
      ASSERT_EQ(dx.size(), static_cast<std::size_t>(kRows * kIn));
      if (first_y.empty()) {
        first_y = ours;
        first_dx = dx;
      }
      EXPECT_EQ(ours, first_y);
      EXPECT_EQ(dx, first_dx);
      const std::vector<float> w = t.to_f32();
      std::vector<double> sizes(w.begin(), w.end());  // of what a weight is the sum of
      if (t.planes) {
        const auto first = quant::dequantise(t.planes->first), second = quant::dequantise(t.planes->second);
        for (std::size_t i = 0; i < w.size(); ++i)
          sizes[i] = std::abs(static_cast<double>(first[i])) + std::abs(static_cast<double>(second[i]));
      }
      // In units of 2^-24: a part's product is rounded for its scales and itself, the sums of six parts at
      // most five times; weights here for two products and their sum, and int8 rows anew from such (three).
      constexpr double kForward = (2 + 5 + 3 + 3) * 0x1p-24, kBack = (kOut + 3 + 3) * 0x1p-24;
      for (std::size_t r = 0; r < static_cast<std::size_t>(kRows); ++r) {
        for (std::size_t o = 0; o < out; ++o) {
          double sum = 0, size = 0;
          for (std::size_t i = 0; i < in; ++i) {
            const double x_i = rows.values[r * static_cast<std::size_t>(rows.stride) + i] *
                               static_cast<double>(rows.inv_scales[r]);
            sum += x_i * static_cast<double>(w[o * in + i]);
            size += std::abs(x_i * sizes[o * in + i]);
          }
          ASSERT_NEAR(ours[r * out + o], sum, kForward * size);
        }
        for (std::size_t i = 0; i < in; ++i) {
          double sum = 0, size = 0;
          for (std::size_t o = 0; o < out; ++o) {
            const auto d = static_cast<double>(dy[r * out + o]);
            sum += d * static_cast<double>(w[o * in + i]);
            size += std::abs(d * sizes[o * in + i]);
          }
          ASSERT_NEAR(dx[r * in + i], sum, kBack * size);
        }
      }
    }
  }
}

TEST(FrozenModel, AnotherSecondPlaneIsAnotherBase) {
  const ExecutionContext context;
  TensorModel tensors = testing::random_model(dense_config(), 2);
  quant::LogicalTensor& t = tensors.tensors.at(gguf_name({TensorRole::kFfnUp, 1}));
  t = quant::quantize_linear(context, t.id, t.to_f32(), t.shape[0], t.shape[1],
                             {quant::WeightMethod::kTwoPlane, quant::ScaleUnit::kRow}, {})
          .tensor;
  const auto before = frozen(context, tensors)->identity();
  EXPECT_EQ(frozen(context, tensors)->identity(), before);
  std::int8_t& trit = t.planes.value().second.trits[5];
  trit = static_cast<std::int8_t>(trit == 0 ? 1 : -trit);
  EXPECT_NE(frozen(context, tensors)->identity(), before);
}

TEST(BitLinearRows, AreUnpackedFromWholeTilesOnly) {
  const ExecutionContext context;
  Rng rng(3);
  quant::TernaryWeights w;
  w.out = w.rows_per_scale = 40;
  w.in = 21;
  w.scales = {1};
  for (int i = 0; i < 40 * 21; ++i)
    w.trits.push_back(static_cast<std::int8_t>(static_cast<int>(rng.below(3)) - 1));
  for (const auto code : {quant::TileCode::kTwoBit, quant::TileCode::kBase3}) {
    const quant::BitLinear linear(context, w, code);
    for (const auto& [begin, end] :
         {std::pair<std::int64_t, std::int64_t>{0, 40}, {16, 21}, {32, 40}, {16, 16}}) {
      std::vector<std::int8_t> rows(static_cast<std::size_t>((end - begin) * 21));
      linear.unpack_rows(begin, end, rows);
      EXPECT_TRUE(std::equal(rows.begin(), rows.end(), w.trits.begin() + begin * 21));
    }
    std::vector<std::int8_t> room(21);
    BITNET_EXPECT_ERROR(linear.unpack_rows(1, 2, room), ErrorCode::kInvalidArgument, "multiple of 16");
    BITNET_EXPECT_ERROR(linear.unpack_rows(32, 41, room), ErrorCode::kInvalidArgument, "rows 32 to 41 of 40");
    BITNET_EXPECT_ERROR(linear.unpack_rows(16, 18, room), ErrorCode::kInvalidArgument, "room for 21 trits");
  }
}

TEST(Gradient, SiluGateAndScaledSums) {
  Rng rng(5);
  reference::check({{reference::random(rng, 5, 19), reference::random(rng, 5, 19)},
                    [](Tape& t, const auto& v) { return silu_gate(t, v[0], v[1]); },
                    [](const auto& m) {
                      reference::Matrix h = m[0];
                      for (std::size_t i = 0; i < h.v.size(); ++i)
                        h.v[i] = m[0].v[i] / (1 + std::exp(-m[0].v[i])) * m[1].v[i];
                      return h;
                    }});
  reference::check({{reference::random(rng, 5, 19), reference::random(rng, 5, 19)},
                    [](Tape& t, const auto& v) { return add_scaled(t, v[0], v[1], 0.75f); },
                    [](const auto& m) {
                      reference::Matrix z = m[0];
                      for (std::size_t i = 0; i < z.v.size(); ++i) z.v[i] += 0.75 * m[1].v[i];
                      return z;
                    }});
}

/// Training's logits with `adapter` against the reference, on the first seed without rounding ties.
void expect_reference(ModelConfig config) {
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  const auto adapter = testing::random_adapter(config, kAll, 3, 5);
  const auto ids = some_ids(7, config.vocab_size, 3);
  for (std::uint32_t seed = 1; seed < 2000; ++seed) {
    const TensorModel tensors = testing::random_model(config, seed);
    testing::ReferenceForward reference(tensors);
    reference.add_adapter(adapter, 1);
    const std::vector<testing::Row> expected = reference(ids);
    if (config.weights == WeightKind::kTernary && reference.margin() < 1e-3) continue;
    LoraModel model(context, frozen(context, tensors), options_of(3), 1);
    model.set_adapter(adapter);
    Tape tape(context, false);
    const Variable logits = model.forward(tape, ids, {7, {}});
    double largest = 0;
    for (const testing::Row& row : expected)
      for (const double v : row) largest = std::max(largest, std::abs(v));
    // logit_bound() counts sums over 16 lanes; these have one: 16 times the roundings, 4 times their sum. And
    // the adapter's products are as many again.
    const double bound = 8 * testing::logit_bound(config, largest);
    for (std::size_t p = 0; p < expected.size(); ++p)
      for (std::size_t i = 0; i < expected[p].size(); ++i)
        ASSERT_NEAR(logits.value()[p * expected[p].size() + i], expected[p][i], bound);
    return;
  }
  FAIL() << "no seed without rounding ties";
}

TEST(LoraModel, LogitsOfEveryShapeEqualTheReference) {
  expect_reference(testing::tiny_config());
  expect_reference(dense_config());
  ModelConfig llama = dense_config();
  llama.family = ModelFamily::kLlama;
  llama.sub_norms = false;
  llama.activation = Activation::kSilu;
  expect_reference(llama);
  llama.tied_embeddings = false;
  expect_reference(llama);
}

TEST(LoraModel, GradientsOfTheFactorsAreThoseOfDifferences) {
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  ModelConfig config = dense_config();  // without quantisers the whole model is a smooth function
  config.activation = Activation::kSilu;
  const TensorModel tensors = testing::random_model(config, 4);
  auto adapter = testing::random_adapter(config, kAll, 2, 5, 0.2f);
  LoraModel model(context, frozen(context, tensors), options_of(2), 1);
  model.set_adapter(adapter);
  const auto ids = some_ids(6, config.vocab_size, 3);
  Tape tape(context);
  tape.backward(reference::weighted_sum(tape, model.forward(tape, ids, {6, {}})));
  testing::ReferenceForward reference(tensors);
  reference.add_adapter(adapter, 1);
  const auto loss = [&] {
    double sum = 0;
    std::size_t i = 0;
    for (const testing::Row& row : reference(ids))
      for (const double v : row) sum += reference::coefficient(i++) * v;
    return sum;
  };
  ASSERT_EQ(model.parameters().size(), 2 * adapter.linears.size());
  Rng rng(9);
  double largest = 0, worst = 0;
  for (std::size_t l = 0; l < adapter.linears.size(); ++l)
    for (const bool of_a : {true, false}) {
      auto& values = of_a ? adapter.linears[l].a : adapter.linears[l].b;
      const auto ours = model.parameters()[2 * l + (of_a ? 0 : 1)]->grad();
      ASSERT_EQ(ours.size(), values.size());
      for (int probe = 0; probe < 6; ++probe) {
        const std::size_t i = rng.below(values.size());
        const float x = values[i], up = x + 0x1p-10f, down = x - 0x1p-10f;
        values[i] = up;
        const double high = loss();
        values[i] = down;
        const double low = loss();
        values[i] = x;
        const double expected = (high - low) / (static_cast<double>(up) - static_cast<double>(down));
        largest = std::max(largest, std::abs(expected));
        worst = std::max(worst, std::abs(expected - static_cast<double>(ours[i])));
      }
    }
  EXPECT_GT(largest, 1e-2);
  EXPECT_LT(worst / largest, 2e-4);  // a step of 2^-10 leaves h² = 1e-6 of third derivatives
}

struct Trained {
  ExecutionContext context{ExecutionContext::Options{2, {}}};
  TensorModel tensors = testing::random_model(testing::tiny_config(), 2);
  LoraModel model;
  AdamW optimizer;
  Tape tape{context};
  std::vector<std::int32_t> ids = some_ids(32, 61, 1), targets = some_ids(32, 61, 2);

  explicit Trained(const LoraOptions& o)
      : model(context, frozen(context, tensors), o, 3), optimizer(context, model.parameters(), {}) {}
  float step(std::int64_t i) {
    model.begin_pass(i, 0);
    const Variable logits = model.forward(tape, ids, {16, {}});
    const Variable loss = cross_entropy(tape, logits, targets, 1.0f / 32);
    const float value = loss.value()[0];
    tape.backward(loss);
    tape.reset();
    optimizer.step(context, 1e-2f, 0, 1);
    return value;
  }
};

TEST(LoraModel, LearnsWhileTheTritsStay) {
  Trained t(options_of(4));
  const float first = t.step(0);
  float last = first;
  for (std::int64_t i = 1; i < 60; ++i) last = t.step(i);
  EXPECT_LT(last, 0.7f * first);
  for (const TensorId id : model_tensors(t.tensors.config)) {
    if (!is_linear(id.role)) continue;
    const FrozenLinear* linear = t.model.base().linear(id);
    ASSERT_TRUE(linear && linear->trits());
    EXPECT_EQ(linear->trits()->trits(), t.tensors(id).weights.trits) << gguf_name(id);
  }
  EXPECT_EQ(t.model.identity(),
            LoraModel(t.context, frozen(t.context, t.tensors), options_of(4), 8).identity());
}

TEST(LoraModel, BeginsAsItsBaseAndHasOnlyItsTargets) {
  const ExecutionContext context;
  const TensorModel tensors = testing::random_model(testing::tiny_config(), 2);
  LoraOptions o = options_of(4, 0.5);
  o.targets = {TensorRole::kFfnDown, TensorRole::kAttnQ};
  o.rslora = true;
  EXPECT_FLOAT_EQ(o.scaling(), 4);  // 8 / √4
  LoraModel model(context, frozen(context, tensors), o, 3);
  EXPECT_EQ(model.parameters().size(), 8u);
  EXPECT_EQ(model.parameters()[0]->name(), "model.layers.0.mlp.down_proj.lora_A");
  const auto ids = some_ids(8, 61, 1);
  Tape tape(context, false);
  const Variable with = model.forward(tape, ids, {8, {}});
  const auto base = frozen(context, tensors);
  const Variable without = base->forward(tape, ids, {8, {}});
  for (std::size_t i = 0; i < with.value().size(); ++i) ASSERT_EQ(with.value()[i], without.value()[i]);
}

TEST(LoraModel, DropoutDependsOnStepAndSequenceAlone) {
  Trained a(options_of(2, 0.5)), b(options_of(2, 0.5));
  const auto adapter = testing::random_adapter(a.tensors.config, kAll, 2, 5);
  const auto logits = [&](Trained& t, std::int64_t step, std::int64_t sequence) {
    t.model.set_adapter(adapter);
    t.model.begin_pass(step, sequence);
    const Variable y = t.model.forward(t.tape, t.ids, {16, {}});
    std::vector<float> values(y.value().begin(), y.value().end());
    t.tape.reset();
    return values;
  };
  const auto first = logits(a, 7, 2);
  EXPECT_NE(first, logits(a, 8, 2));
  EXPECT_NE(first, logits(a, 7, 0));
  EXPECT_EQ(first, logits(b, 7, 2));
}

TEST(LoraModel, TakesLessMemoryThanTrainingAllWeights) {
  ModelConfig config = testing::tiny_config();
  config.hidden_size = config.intermediate_size = 256;
  config.head_dim = 64;
  const TensorModel tensors = testing::random_model(config, 1);
  const auto ids = some_ids(16, config.vocab_size, 1), targets = some_ids(16, config.vocab_size, 2);
  const auto of_weights = [&](bool lora) {
    MemoryPoolOptions options;
    options.tracking = TrackingLevel::kStandard;
    const auto pool = std::make_shared<HybridMemoryPool>(options);
    const ExecutionContext context(ExecutionContext::Options{2, {}, pool});
    std::unique_ptr<TextModel> model;
    std::size_t packed = 0;  // tiles are no blocks of the pool
    if (lora) {
      auto adapted = std::make_unique<LoraModel>(context, frozen(context, tensors), options_of(4), 1);
      for (const TensorId id : model_tensors(config))
        if (is_linear(id.role)) packed += adapted->base().linear(id)->bytes();
      model = std::move(adapted);
    } else {
      auto whole = std::make_unique<LanguageModel>(context, config, Quantization::kTernary);
      Rng rng(1);
      whole->initialize(rng, 0.05f);
      model = std::move(whole);
    }
    model->refresh(context);
    AdamW optimizer(context, model->parameters(), {});
    Tape tape(context);
    tape.backward(cross_entropy(tape, model->forward(tape, ids, {16, {}}), targets, 1.0f / 16));
    tape.reset();
    optimizer.step(context, 1e-3f, 0, 1);
    std::size_t bytes = packed;
    for (const TagStats& tag : pool->tags())
      if (tag.tag == "parameters" || tag.tag == "gradients" || tag.tag == "optimizer" ||
          tag.tag == "ternary weights" || tag.tag == "frozen weights")
        bytes += tag.used;
    return bytes;
  };
  const std::size_t adapter = of_weights(true), whole = of_weights(false);
  // 24 bytes a linear weight (latent, gradient, two moments, trits, effective) against at most 1/4 for the
  // packed trits, and for the adapter 16 bytes for each of 4 · (in + out) factors of a linear: 1/32 of its
  // weights.
  EXPECT_LT(adapter * 10, whole);
}

TEST(LoraModel, WhatCannotBeTunedIsRefused) {
  const ExecutionContext context;
  const TensorModel tensors = testing::random_model(testing::tiny_config(), 2);
  const auto refuse = [&](auto change, const char* text) {
    LoraOptions o;
    change(o);
    BITNET_EXPECT_ERROR(LoraModel(context, frozen(context, tensors), o, 1), ErrorCode::kInvalidArgument,
                        text);
  };
  refuse([](LoraOptions& o) { o.rank = 0; }, "rank: from 1 to 4096");
  refuse([](LoraOptions& o) { o.alpha = 0; }, "alpha: must be positive");
  refuse([](LoraOptions& o) { o.dropout = 1; }, "dropout: must be");
  refuse([](LoraOptions& o) { o.targets.clear(); }, "targets: at least one");
  refuse([](LoraOptions& o) { o.targets.push_back(TensorRole::kAttnQ); }, "q_proj is named twice");
  refuse([](LoraOptions& o) { o.targets = {TensorRole::kFfnNorm}; }, "only the seven linears");
  BITNET_EXPECT_ERROR(target_from_string("lm_head"), ErrorCode::kInvalidArgument, "expected q_proj, k_proj");
  TensorModel normed = tensors;
  normed.config.input_norms = true;
  BITNET_EXPECT_ERROR(frozen(context, normed), ErrorCode::kUnsupported, "use_rms_norm");
  LoraModel model(context, frozen(context, tensors), options_of(2), 1);
  BITNET_EXPECT_ERROR(model.set_adapter(testing::random_adapter(tensors.config, kAll, 3, 1)),
                      ErrorCode::kInvalidArgument, "of rank 3");
  Tape tape(context);
  AttentionStates states;
  states.layer = 2;
  const auto ids = some_ids(8, 61, 1);
  BITNET_EXPECT_ERROR(model.forward(tape, ids, {8, {}}, &states), ErrorCode::kInvalidArgument,
                      "layer 2 of 2");
}

}  // namespace
}  // namespace bitnet::training
