// Scales and norms trained with integers that stay: gradients against those of training's latent weights and
// against differences, the loop, what it changes and what it leaves.
#include "bitnet/training/tuning.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "bitnet/quant/post_training.hpp"
#include "bitnet/testing/reference_forward.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/fake_quant.hpp"
#include "bitnet/training/language_model.hpp"

namespace bitnet::training {
namespace {

using quant::LogicalTensor;
using testing::TensorModel;

std::vector<std::int32_t> some_ids(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::int32_t> ids(n);
  for (auto& id : ids) id = static_cast<std::int32_t>(rng.below(61));
  return ids;
}

/// A model in full precision, and the same with its linears made ternary by `scales`.
TensorModel original() {
  ModelConfig c = testing::tiny_config();
  c.weights = WeightKind::kDense;
  return testing::random_model(c, 5);
}
TensorModel quantised(const ExecutionContext& context, const TensorModel& of, quant::ScaleGroups groups) {
  TensorModel q = of;
  for (auto& [name, t] : q.tensors)
    if (is_linear(t.id.role)) {
      const std::vector<float> w = t.to_f32();
      t.weights = quant::least_squares(context, w, t.shape[0], t.shape[1], groups);
      t.ternary = true;
      t.dense.clear();
    }
  return q;
}
std::unique_ptr<FrozenModel> teacher_of(const ExecutionContext& context, const TensorModel& m) {
  return std::make_unique<FrozenModel>(context, m.config, m);
}

/// Σ over the logits of logit · weight, in double.
double weighted_logits(const ExecutionContext& context, TunedModel& model,
                       const std::vector<std::int32_t>& ids, const std::vector<float>& weights) {
  model.refresh(context);
  Tape tape(context, false);
  const Variable y = model.forward(tape, ids, {static_cast<std::int64_t>(ids.size())});
  double sum = 0;
  for (std::size_t i = 0; i < weights.size(); ++i)
    sum += static_cast<double>(y.value()[i]) * static_cast<double>(weights[i]);
  return sum;
}
std::vector<float> random_weights(std::size_t n) {
  Rng rng(9);
  std::vector<float> w(n);
  for (float& v : w) v = static_cast<float>(rng.normal());
  return w;
}

/// ‖a − b‖ / ‖b‖
template <class A, class B>
double relative_difference(const A& a, const B& b) {
  double difference = 0, size = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    difference += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    size += std::pow(static_cast<double>(b[i]), 2);
  }
  return std::sqrt(difference / size);
}

Parameter& parameter(TextModel& model, const std::string& name) {
  for (Parameter* p : model.parameters())
    if (p->name() == name) return *p;
  throw Error(ErrorCode::kInvalidArgument, "no parameter " + name);
}

double root_mean_square(const std::vector<float>& v) {
  double sum = 0;
  for (const float x : v) sum += static_cast<double>(x) * static_cast<double>(x);
  return std::sqrt(sum / static_cast<double>(v.size()));
}

TEST(TunedModel, HasTheGradientsOfTrainingsLatentWeights) {
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  // Products of floats here and of integers there: some 1e-6 of a row's largest apart, which rounds no
  // activation to another integer where none of them is near a tie.
  constexpr double kMargin = 1e-3, kBound = 1e-3;
  for (const auto granularity : {ScaleGranularity::kTensor, ScaleGranularity::kRow}) {
    const bool rows = granularity == ScaleGranularity::kRow;
    const TensorModel tensors =
        quantised(context, original(), rows ? quant::ScaleGroups::row() : quant::ScaleGroups::tensor());
    QuantizerOptions quantizer;
    quantizer.granularity = granularity;
    LanguageModel latent(context, testing::tiny_config(), Quantization::kTernary, quantizer);
    for (std::size_t i = 0; i < latent.tensor_ids().size(); ++i) {
      const LogicalTensor t = tensors(latent.tensor_ids()[i]);
      if (auto* l = dynamic_cast<BitLinear*>(latent.linear(t.id))) {
        l->set_weights(context, t.weights);
      } else {
        const std::vector<float> values = t.to_f32();
        std::copy(values.begin(), values.end(), latent.parameters()[i]->value().begin());
      }
    }
    TunedModel tuned(context, tensors.config, tensors, {.embeddings = true});
    tuned.refresh(context);
    std::vector<std::int32_t> ids;
    double margin = 0;
    for (std::uint64_t seed = 3; seed < 5000 && margin < kMargin; ++seed) {
      ids = some_ids(4, seed);
      testing::ReferenceForward reference(tensors);
      static_cast<void>(reference(ids));
      margin = reference.margin();
    }
    ASSERT_GE(margin, kMargin);
    const std::vector<float> weights = random_weights(4 * 61);
    Tape tape(context);
    const Variable theirs = latent.forward(tape, ids, {4});
    const std::vector<float> logits(theirs.value().begin(), theirs.value().end());
    tape.backward(theirs, weights);
    tape.reset();
    const Variable ours = tuned.forward(tape, ids, {4});
    EXPECT_LT(relative_difference(ours.value(), logits), kBound);
    tape.backward(ours, weights);
    tape.reset();
    for (Parameter* p : latent.parameters()) p->finish_grad();
    for (std::size_t i = 0; i < latent.tensor_ids().size(); ++i) {
      const TensorId id = latent.tensor_ids()[i];
      Parameter& p = *latent.parameters()[i];
      const LogicalTensor t = tensors(id);
      // A scale's gradient is a sum, and nearly 0 where a norm follows that takes the scale away (v, gate,
      // up): what it is exact to is a share of its terms.
      std::vector<double> expected, terms;
      if (is_linear(id.role)) {
        expected.resize(t.weights.scales.size());
        terms.resize(expected.size());
        for (std::size_t w = 0; w < p.grad().size(); ++w) {
          const std::size_t scale = rows ? w / static_cast<std::size_t>(t.weights.in) : 0;
          const double term = static_cast<double>(p.grad()[w]) * t.weights.trits[w] *
                              static_cast<double>(t.weights.scales[scale]);
          expected[scale] += term;
          terms[scale] += std::abs(term);
        }
      } else {
        const double unit = root_mean_square(t.to_f32());
        for (const float g : p.grad()) expected.push_back(unit * static_cast<double>(g));
      }
      Parameter& mine = parameter(tuned, p.name() + (is_linear(id.role) ? ".scale" : ""));
      mine.finish_grad();
      if (terms.empty()) {
        EXPECT_LT(relative_difference(mine.grad(), expected), kBound) << p.name();
        continue;
      }
      // Rows that squared ReLU leaves all but nothing of are exact to a share of the others'.
      const double largest = *std::max_element(terms.begin(), terms.end());
      for (std::size_t s = 0; s < terms.size(); ++s)
        EXPECT_NEAR(mine.grad()[s], expected[s], kBound * (terms[s] + 1e-6 * largest))
            << p.name() << " " << s;
    }
  }
}

/// Behind the last down projection nothing is rounded, so that differences say what its gradient is.
TEST(TunedModel, GradientsOfEveryKindOfLinearAreDifferences) {
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  const TensorModel dense = original();
  const TensorId down{TensorRole::kFfnDown, 1};
  const auto ids = some_ids(16, 4);
  const std::vector<float> weights = random_weights(16 * 61);
  for (const std::string kind : {"tensor", "group", "planes", "int8", "four bits"}) {
    TensorModel tensors = quantised(context, dense, quant::ScaleGroups::tensor());
    LogicalTensor& t = tensors.tensors.at(gguf_name(down));
    const std::vector<float> w = dense(down).to_f32();
    const std::int64_t out = t.shape[0], in = t.shape[1];
    if (kind == "group") t.weights = quant::least_squares(context, w, out, in, {1, 24});
    if (kind == "planes") {
      t.ternary = false;
      t.planes = quant::two_planes(context, w, out, in, {1, 0}, 10);
    }
    if (kind == "int8") {
      t.ternary = false;
      t.int8.emplace();
      for (std::int64_t i = 0; i < out * in; ++i)
        t.int8->values.push_back(static_cast<std::int8_t>(i % 255 - 127));
      for (std::int64_t o = 0; o < out; ++o) t.int8->scales.push_back(0.002f + 1e-5f * static_cast<float>(o));
    }
    if (kind == "four bits") t.activations = ActivationForm::kInt4Absmean;
    TunedModel tuned(context, tensors.config, tensors);
    tuned.refresh(context);
    Tape tape(context);
    const Variable y = tuned.forward(tape, ids, {16});
    tape.backward(y, weights);
    tape.reset();
    std::vector<std::string> names{hf_name(down, tensors.config.family) + ".scale", "model.norm.weight"};
    if (kind == "planes") names.push_back(names[0] + "2");
    for (const std::string& name : names) {
      Parameter& p = parameter(tuned, name);
      std::vector<double> expected;
      for (float& v : p.value()) {
        constexpr float kStep = 1e-2f;
        v = kStep;
        const double up = weighted_logits(context, tuned, ids, weights);
        v = -kStep;
        const double low = weighted_logits(context, tuned, ids, weights);
        v = 0;
        expected.push_back((up - low) / (2 * static_cast<double>(kStep)));
      }
      // Logits of f32 in the differences, and their third derivative: 1e-4 of the exponential's.
      EXPECT_LT(relative_difference(p.grad(), expected), 2e-3) << kind << ", " << name;
    }
  }
}

TEST(TunedModel, RecomputedActivationsChangeNoBit) {
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  const TensorModel tensors = quantised(context, original(), quant::ScaleGroups::row());
  const auto ids = some_ids(20, 3);
  const std::vector<float> weights = random_weights(20 * 61);
  std::vector<std::vector<float>> gradients;
  for (const bool recomputed : {false, true}) {
    TunedModel tuned(context, tensors.config, tensors);
    tuned.set_recompute(recomputed);
    tuned.refresh(context);
    Tape tape(context);
    tape.backward(tuned.forward(tape, ids, {10}), weights);
    auto& all = gradients.emplace_back();
    for (Parameter* p : tuned.parameters()) all.insert(all.end(), p->grad().begin(), p->grad().end());
  }
  EXPECT_EQ(gradients[0], gradients[1]);
}

std::vector<std::vector<TokenId>> windows_of(std::size_t n, std::size_t length) {
  std::vector<std::vector<TokenId>> windows;
  for (std::size_t i = 0; i < n; ++i) windows.push_back(some_ids(length, i + 10));
  return windows;
}

/// Integers and scales one behind the other.
struct Bits {
  std::vector<std::int8_t> integers;
  std::vector<float> scales, floats;
  bool operator==(const Bits&) const = default;
};
template <class Source>
Bits bits_of_model(const ModelConfig& config, const Source& source) {
  Bits b;
  for (const TensorId id : model_tensors(config)) {
    const LogicalTensor t = source(id);
    if (t.ternary) {
      b.integers.insert(b.integers.end(), t.weights.trits.begin(), t.weights.trits.end());
      b.scales.insert(b.scales.end(), t.weights.scales.begin(), t.weights.scales.end());
    } else {
      const std::vector<float> f = t.to_f32();
      b.floats.insert(b.floats.end(), f.begin(), f.end());
    }
  }
  return b;
}

TEST(Tuning, LowersTheLossKeepsTritsAndHasTheSameBitsOnAnyNumberOfThreads) {
  const TensorModel dense = original();
  const auto windows = windows_of(6, 17);
  for (const auto unit : {quant::ScaleGroups::tensor(), quant::ScaleGroups::row()}) {
    std::vector<Bits> results;
    for (const std::size_t threads : {1u, 3u}) {
      const ExecutionContext context(ExecutionContext::Options{threads, {}});
      const TensorModel tensors = quantised(context, dense, unit);
      TunedModel tuned(context, tensors.config, tensors);
      std::vector<double> losses;
      TuningOptions options;
      options.steps = 30;
      options.learning_rate = 1e-2;
      const TuningResult r = tune(context, tuned, teacher_of(context, dense), windows, options,
                                  {.progress = [&](std::int64_t step, double loss) {
                                    losses.push_back(loss);
                                    EXPECT_EQ(step, static_cast<std::int64_t>(losses.size()));
                                  }});
      EXPECT_FALSE(r.kept);
      EXPECT_EQ(r.steps, 30);
      EXPECT_EQ(r.tokens, 30 * 4 * 16);
      EXPECT_LT(r.loss_after, 0.9 * r.loss_before);
      EXPECT_EQ(losses.size(), 30u);
      const auto source = [&](TensorId id) { return tuned.tensor(id); };
      results.push_back(bits_of_model(tensors.config, source));
      const Bits before = bits_of_model(tensors.config, tensors);
      EXPECT_EQ(results.back().integers, before.integers);
      EXPECT_NE(results.back().scales, before.scales);
      EXPECT_NE(results.back().floats, before.floats);
      // The embedding is none of what is trained.
      const TensorId table{TensorRole::kTokenEmbedding};
      EXPECT_EQ(tuned.tensor(table).to_f32(), tensors(table).to_f32());
      // What is handed out is what was scored last.
      TunedModel again(context, tensors.config, source);
      const TuningResult next = tune(context, again, teacher_of(context, dense), windows, {.steps = 1});
      EXPECT_DOUBLE_EQ(next.loss_before, r.loss_after);
      EXPECT_DOUBLE_EQ(next.nll_before, r.nll_after);
    }
    EXPECT_TRUE(results[0] == results[1]);
  }
}

TEST(Tuning, TrainsWhatIsChosen) {
  const ExecutionContext context(ExecutionContext::Options{1, {}});
  const TensorModel dense = original(), tensors = quantised(context, dense, quant::ScaleGroups::tensor());
  const Bits before = bits_of_model(tensors.config, tensors);
  const auto after = [&](const TunedParts& parts, const TuningOptions& options) {
    TunedModel tuned(context, tensors.config, tensors, parts);
    EXPECT_FALSE(tune(context, tuned, teacher_of(context, dense), windows_of(6, 9), options).kept);
    return bits_of_model(tensors.config, [&](TensorId id) { return tuned.tensor(id); });
  };
  const Bits scales = after({true, false, false}, {.steps = 5});
  EXPECT_EQ(scales.floats, before.floats);
  EXPECT_NE(scales.scales, before.scales);
  const Bits norms = after({false, true, false}, {.steps = 5});
  EXPECT_NE(norms.floats, before.floats);
  EXPECT_EQ(norms.scales, before.scales);
  EXPECT_NE(after({true, false, false}, {.steps = 5, .text = 1}).scales, scales.scales);
  EXPECT_NE(after({true, false, false}, {.steps = 5, .seed = 2}).scales, scales.scales);
  EXPECT_TRUE(after({true, false, false}, {.steps = 5}) == scales);
  const Bits all = after({true, true, true}, {.steps = 5});
  EXPECT_NE(all.floats[0], before.floats[0]);  // of the embedding
}

TEST(Tuning, AModelThatDoesNotBecomeBetterStaysAsItWas) {
  const ExecutionContext context(ExecutionContext::Options{1, {}});
  const TensorModel tensors = quantised(context, original(), quant::ScaleGroups::tensor());
  TunedModel tuned(context, tensors.config, tensors);
  TuningOptions options;
  options.steps = 3;
  options.learning_rate = 0.5;
  const TuningResult r = tune(context, tuned, teacher_of(context, tensors), windows_of(4, 9), options);
  EXPECT_TRUE(r.kept);
  EXPECT_EQ(r.loss_after, r.loss_before);
  EXPECT_TRUE(bits_of_model(tensors.config, [&](TensorId id) { return tuned.tensor(id); }) ==
              bits_of_model(tensors.config, tensors));
}

TEST(Tuning, WhatCannotBeDoneIsRefused) {
  const ExecutionContext context(ExecutionContext::Options{1, {}});
  const TensorModel dense = original(), tensors = quantised(context, dense, quant::ScaleGroups::tensor());
  const auto refuse = [&](const std::vector<std::vector<TokenId>>& windows, const TuningOptions& options,
                          const char* text, std::unique_ptr<FrozenModel> teacher = nullptr) {
    TunedModel tuned(context, tensors.config, tensors);
    if (!teacher) teacher = teacher_of(context, dense);
    BITNET_EXPECT_ERROR(tune(context, tuned, std::move(teacher), windows, options),
                        ErrorCode::kInvalidArgument, text);
  };
  refuse(windows_of(3, 16), {},
         "gives 48 tokens; a step takes 4 windows of 16, so that at least 64 are needed");
  refuse({}, {}, "two tokens at least");
  refuse({{1}, {2}, {3}, {4}}, {}, "two tokens at least");
  refuse({{1, 2}, {1, 2, 3}}, {.batch = 2}, "windows of 2 and of 3 tokens");
  refuse(windows_of(4, 9), {.steps = 0}, "steps");
  refuse(windows_of(4, 9), {.learning_rate = 0}, "learning_rate");
  refuse(windows_of(4, 9), {.learning_rate = std::numeric_limits<double>::quiet_NaN()}, "learning_rate");
  refuse(windows_of(4, 9), {.batch = 0}, "batch");
  refuse(windows_of(4, 9), {.temperature = 0}, "temperature");
  refuse(windows_of(4, 9), {.text = -1}, "text");
  ModelConfig other = dense.config;
  other.vocab_size = 60;
  refuse(windows_of(4, 9), {}, "60 tokens, the student's 61",
         std::make_unique<FrozenModel>(context, testing::random_model(other, 3).config,
                                       testing::random_model(other, 3)));
  TensorModel broken = dense;
  LogicalTensor& norm = broken.tensors.at(gguf_name({TensorRole::kOutputNorm}));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  std::memcpy(norm.dense.data(), &nan, sizeof nan);
  refuse(windows_of(4, 9), {}, "tuning diverged at step 1", teacher_of(context, broken));
  BITNET_EXPECT_ERROR(TunedModel(context, dense.config, dense, {true, false, false}),
                      ErrorCode::kInvalidArgument, "nothing of this model is to be trained");
  TensorModel odd = tensors;
  odd.tensors.at(gguf_name({TensorRole::kAttnQ, 0})).weights.scales.push_back(1);
  BITNET_EXPECT_ERROR(TunedModel(context, odd.config, odd), ErrorCode::kInvalidArgument, "2 scales");
  ModelConfig with_norms = tensors.config;
  with_norms.input_norms = true;
  BITNET_EXPECT_ERROR(TunedModel(context, with_norms, tensors), ErrorCode::kUnsupported, "cannot be tuned");
}

}  // namespace
}  // namespace bitnet::training
