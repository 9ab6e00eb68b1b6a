// Runs that pass over spikes of the loss, keep their best weights, stop early, or say where values ceased to
// be finite.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>

#include "../src/run_guard.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/training/checkpoint.hpp"
#include "bitnet/training/language_model.hpp"
#include "tiny_run.hpp"

namespace bitnet::training {
namespace {

using ::testing::HasSubstr;

std::string noise(std::uint64_t seed, int characters) {
  Rng rng(seed);
  std::string text;
  for (int i = 0; i < characters; ++i) text += static_cast<char>('!' + rng.below(90));
  return text;
}

TEST(LossGuard, PassesOverWhatIsFarAboveTheLevel) {
  LossLevel level;
  Rng rng(1);
  EXPECT_FALSE(is_spike(level, 50, 4));  // nothing to compare with
  level = {};
  double sum = 0, squares = 0;
  for (int i = 0; i < 40; ++i) {
    const double loss = 2 + 0.1 * rng.normal();
    EXPECT_FALSE(is_spike(level, loss, 4)) << i;
    sum += loss;
    squares += loss * loss;
  }
  const double mean = sum / 40;
  EXPECT_NEAR(level.mean, mean, 1e-12);  // of the first 50 it is the plain mean
  EXPECT_NEAR(level.variance, squares / 40 - mean * mean, 1e-12);
  const LossLevel before = level;
  for (int i = 0; i < 9; ++i) EXPECT_TRUE(is_spike(level, 3, 4));
  EXPECT_EQ(level.mean, before.mean);
  EXPECT_EQ(level.spikes, 9);
  EXPECT_FALSE(is_spike(level, 2.1, 4));
  EXPECT_EQ(level.spikes, 0);
  for (int i = 0; i < 9; ++i) EXPECT_TRUE(is_spike(level, 3, 4));
  EXPECT_FALSE(is_spike(level, 3, 4));  // the tenth is a new level
  EXPECT_EQ(level.mean, 3);
  EXPECT_EQ(level.steps, 1);
  LossLevel even;
  for (int i = 0; i < 30; ++i) EXPECT_FALSE(is_spike(even, 2, 5));
  EXPECT_FALSE(is_spike(even, 2.05, 5));  // five deviations of a hundredth are 0.1
  EXPECT_TRUE(is_spike(even, 2.2, 5));
}

/// A run whose text has noise in eight places.
TrainConfig spiky(const Fixture& f, const std::string& output) {
  std::string text;
  for (std::uint64_t i = 0; i < 8; ++i) text += sample_text(i, 250) + "\n" + noise(i, 80) + "\n";
  write_file(f.dir / "train.txt", text);
  TrainConfig c = f.config(output);
  c.schedule.steps = 250;
  c.schedule.peak = c.schedule.second_peak = 5e-3;
  c.batch = c.micro_batch = 1;
  c.spike_deviations = 4;
  c.log_every = 50;
  c.evaluate_every = 1000;
  return c;
}

TEST(LossGuard, ASkippedStepLeavesTheWeightsAndIsLogged) {
  const Fixture f;
  const TrainConfig c = spiky(f, "out");
  std::string messages;
  TrainCallbacks callbacks;
  callbacks.message = [&](const std::string& text) { messages += text + "\n"; };
  const TrainResult r = run(c, false, callbacks);
  EXPECT_EQ(r.steps, 250);
  EXPECT_GT(r.skipped, 0);
  EXPECT_LT(r.skipped, 30);
  EXPECT_EQ(r.tokens, (250 - r.skipped) * c.batch * c.length);
  EXPECT_THAT(messages, HasSubstr("is passed over: its loss of "));
  EXPECT_THAT(read_file(c.output / "log.jsonl"), HasSubstr(R"({"type":"skipped","step":)"));
  const auto state = SafeTensors::open(c.output / "checkpoint.safetensors");
  EXPECT_EQ(state->metadata().at("optimizer_steps"), std::to_string(250 - r.skipped));

  const TrainConfig parts = spiky(f, "parts");  // the level is part of the checkpoint
  stop_after(parts, 70);
  stop_after(parts, 87, true);
  run(parts, true, {}, 1);
  expect_same_tensors(c.output / "checkpoint.safetensors", parts.output / "checkpoint.safetensors");
  EXPECT_EQ(SafeTensors::open(parts.output / "checkpoint.safetensors")->metadata().at("loss.mean"),
            state->metadata().at("loss.mean"));
}

/// A run whose validation gets worse: it is noise, which the text teaches not to expect.
TrainConfig overfitting(const Fixture& f, const std::string& output) {
  write_file(f.dir / "heldout.txt", noise(7, 600));
  TrainConfig c = f.config(output);
  c.schedule.steps = 400;
  c.schedule.peak = c.schedule.second_peak = 5e-3;
  c.validation_tokens = 1 << 20;
  c.patience = 3;
  c.keep_best = true;
  return c;
}

TEST(BestWeights, AreKeptAndARunThatGetsNoBetterStops) {
  const Fixture f;
  const TrainConfig c = overfitting(f, "out");
  std::map<std::int64_t, double> nlls;
  TrainCallbacks callbacks;
  callbacks.evaluation = [&](std::int64_t step, const Evaluation& e) { nlls.emplace(step, e.nll); };
  const TrainResult r = run(c, false, callbacks);
  EXPECT_TRUE(r.stopped_early);
  EXPECT_LT(r.steps, 400);
  ASSERT_GT(r.best_step, 0);
  EXPECT_EQ(r.steps, r.best_step + c.patience * c.evaluate_every);
  for (const auto& [step, nll] : nlls) EXPECT_GE(nll, nlls.at(r.best_step)) << step;
  EXPECT_EQ(r.final_evaluation.nll, nlls.at(r.best_step));  // the result is the best
  EXPECT_EQ(checkpoint_step(c.output / "best.safetensors"), r.best_step);
  EXPECT_EQ(checkpoint_step(c.output / "checkpoint.safetensors"), r.steps);

  const TrainConfig parts = overfitting(f, "parts");
  stop_after(parts, static_cast<int>(r.best_step) + 3);
  const TrainResult resumed = run(parts, true, {}, 1);
  EXPECT_EQ(resumed.best_step, r.best_step);
  EXPECT_EQ(resumed.steps, r.steps);
  for (const char* name : {"checkpoint.safetensors", "best.safetensors"})
    expect_same_tensors(c.output / name, parts.output / name);
  EXPECT_TRUE(read_file(c.output / "model.gguf") == read_file(parts.output / "model.gguf"));
}

TEST(BestWeights, AreOfWholeQuantisationOnly) {
  const Fixture f;
  TrainConfig c = overfitting(f, "out");
  c.schedule.steps = 120;
  c.quantizer_schedule = {QuantizerScheduleKind::kSigmoid, 100, false};
  c.patience = 1;
  const TrainResult r = run(c);
  // Half quantised the model scores better than it ever will, and would have ended the run.
  EXPECT_GE(r.best_step > 0 ? r.best_step : r.steps, 100);
  EXPECT_GE(r.steps, 100);
  // What is reported is the score of the file, but for its f16 embedding.
  TrainConfig again = f.config("again");
  again.base = c.output / "model.gguf";
  again.model = quant::ModelReader::open(again.base)->config();
  again.tokenizer = c.output;
  again.schedule.steps = 1;
  again.schedule.warmup = 0;
  again.schedule.peak = again.schedule.second_peak = 1e-30;
  again.validation_tokens = 1 << 20;
  EXPECT_NEAR(run(again).final_evaluation.nll, r.final_evaluation.nll, 1e-2);
}

TEST(BestWeights, OfGivenUpStepsAreNotTheResult) {
  const Fixture f;
  const TrainConfig c = overfitting(f, "out");
  const TrainResult r = run(c);
  ASSERT_GT(r.best_step, 0);
  std::filesystem::copy_file(c.output / "checkpoint.safetensors", c.output / "best.safetensors",
                             std::filesystem::copy_options::overwrite_existing);
  std::string messages;
  TrainCallbacks callbacks;
  callbacks.message = [&](const std::string& text) { messages += text + "\n"; };
  const TrainResult again = run(c, true, callbacks);
  EXPECT_THAT(messages, HasSubstr("is not of step " + std::to_string(r.best_step)));
  EXPECT_EQ(again.best_step, 0);
  EXPECT_GT(again.final_evaluation.nll, r.final_evaluation.nll);
}

TEST(Divergence, IsFoundWhereItBegins) {
  const ExecutionContext context;
  const Fixture f;
  ModelConfig shape = f.config("out").model;
  shape.n_layers = 3;
  LanguageModel model(context, shape, Quantization::kNone);
  Rng rng(1);
  model.initialize(rng, 0.02f);
  Tape tape(context, false);
  const std::vector<std::int32_t> ids(16, 7);
  const auto found = [&] { return first_not_finite(model, tape, ids, {16, {}}); };
  EXPECT_EQ(found(), "");
  Parameter& up = model.linear({TensorRole::kFfnUp, 1})->weight();
  const std::vector<float> kept(up.value().begin(), up.value().end());
  for (float& w : up.value()) w = 1e38f;  // its products overflow
  EXPECT_EQ(found(), "the outputs of layer 1");
  std::copy(kept.begin(), kept.end(), up.value().begin());
  up.value()[5] = std::nanf("");
  EXPECT_EQ(found(), "weights of " + up.name());
  up.value()[5] = 0;
  EXPECT_EQ(gradient_not_finite(model), "");
  up.grad()[3] = INFINITY;
  EXPECT_EQ(gradient_not_finite(model), "the gradient of " + up.name());
}

TEST(Divergence, IsSaidWithItsPlace) {
  const Fixture f;
  TrainConfig c = f.config("out", "none");
  c.schedule.peak = 1e37;
  c.schedule.weight_decay = 0;
  try {
    run(c);
    FAIL() << "nothing diverged";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ErrorCode::kInvalidArgument);
    EXPECT_THAT(e.what(),
                ::testing::ContainsRegex("training diverged at step [0-9]+: .*the first values that "
                                         "are not finite are .*(layer|logits|(weights|gradient) of model)"));
  }
}

}  // namespace
}  // namespace bitnet::training
