// Whole runs with other optimisers and quantisers than the default ones; those are trainer_test.cpp.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>

#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/quant/model_io.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/fake_quant.hpp"
#include "bitnet/training/trainer.hpp"
#include "tiny_run.hpp"

namespace bitnet::training {
namespace {

TEST(Trainer, EveryOptimizerLearnsAndResumesToTheSameBits) {
  const Fixture f;
  for (const auto kind : {OptimizerKind::kAdamW8, OptimizerKind::kSgd, OptimizerKind::kMuon}) {
    const std::string name(to_string(kind));
    SCOPED_TRACE(name);
    const auto config = [&](const std::string& output) {
      TrainConfig c = f.config(name + output);
      c.optimizer = kind;
      if (kind == OptimizerKind::kSgd) c.schedule.peak = 0.1;
      return c;
    };
    double first = 0, last = 0;
    TrainCallbacks callbacks;
    callbacks.progress = [&](const Progress& p) { (first == 0 ? first : last) = p.loss; };
    run(config("whole"), false, callbacks);
    EXPECT_LT(last, first - 0.1);
    stop_after(config("stopped"), 5);
    run(config("stopped"), true, {}, 3);
    expect_same_tensors(f.dir / (name + "whole/checkpoint.safetensors"),
                        f.dir / (name + "stopped/checkpoint.safetensors"));
    TrainConfig other = config("stopped");
    other.optimizer = OptimizerKind::kAdamW;
    BITNET_EXPECT_ERROR(run(other, true), ErrorCode::kInvalidArgument, "training.optimizer is " + name);
  }
}

TEST(Trainer, QuantisersOfEveryKindLearnAndResumeToTheSameBits) {
  const Fixture f;
  const auto config = [&](const std::string& output, int kind) {
    TrainConfig c = f.config(output + std::to_string(kind));
    c.quantizer_schedule = {QuantizerScheduleKind::kLinear, 8, kind == 1};
    if (kind == 0) c.quantizer.gradient = StraightThrough::kLearnedScale;
    if (kind == 1) {
      c.quantizer.granularity = ScaleGranularity::kGroup;
      c.quantizer.statistic = ScaleStatistic::kMedian;
      c.quantizer.gradient = StraightThrough::kClipped;
      c.quantizer.activation_bits = 4;
      c.quantizer.hadamard = true;
    }
    return c;
  };
  for (const int kind : {0, 1}) {
    double first = 0, last = 0;
    std::string messages;
    TrainCallbacks callbacks;
    callbacks.message = [&](const std::string& text) { messages += text; };
    callbacks.progress = [&](const Progress& p) { (first == 0 ? first : last) = p.loss; };
    run(config("whole", kind), false, callbacks);
    EXPECT_LT(last, first - 0.3) << kind;
    stop_after(config("stopped", kind), 5);  // in the middle of the warm-up
    run(config("stopped", kind), true, {}, 3);
    const auto name = std::to_string(kind);
    expect_same_tensors(f.dir / ("whole" + name) / "checkpoint.safetensors",
                        f.dir / ("stopped" + name) / "checkpoint.safetensors");
    EXPECT_EQ(std::filesystem::exists(f.dir / ("whole" + name) / "model.gguf"), kind == 0);
    EXPECT_EQ(messages.find("inputs are transformed before they are quantised (hadamard): no model file is "
                            "written") != std::string::npos,
              kind == 1);
    TrainConfig other = config("stopped", kind);
    other.quantizer = {};
    BITNET_EXPECT_ERROR(run(other, true), ErrorCode::kInvalidArgument, "");
  }
  // Scales that were learnt are the file's.
  const auto checkpoint = SafeTensors::open(f.dir / "whole0/checkpoint.safetensors");
  const TensorId id{TensorRole::kAttnQ, 0};
  const auto bytes =
      checkpoint->data(*checkpoint->find("weights/" + hf_name(id, ModelFamily::kBitNet25) + ".scale"));
  float learned = 0;
  std::memcpy(&learned, bytes.data(), sizeof learned);
  EXPECT_THAT(quant::ModelReader::open(f.dir / "whole0/model.gguf")->read(id).weights.scales,
              ::testing::ElementsAre(invertible_scale(std::abs(learned))));
}

/// Configurations whose models not every file holds, what is said of them, and which files there are.
TEST(Trainer, WhichFilesThereWillBeIsSaidBeforeTheFirstStep) {
  const Fixture f;
  const auto config = [&](int kind) {
    TrainConfig c = f.config("out" + std::to_string(kind), kind == 7 ? "none" : "ternary");
    c.schedule.steps = 3;
    if (kind == 0) c.quantizer.granularity = ScaleGranularity::kRow;
    if (kind == 1) c.quantizer.granularity = ScaleGranularity::kGroup;
    if (kind == 2) c.model.intermediate_size = 96;
    if (kind == 3) c.quantizer.activation_bits = 4;
    if (kind == 4) c.quantizer.hadamard = true;
    if (kind == 5) {
      c.quantizer.granularity = ScaleGranularity::kGroup;
      c.model.intermediate_size = 192;
    }
    return c;
  };
  const struct {
    const char* said;
    bool directory, gguf;
  } expected[] = {
      {"model/, and no model.gguf (I2_S holds one scale a tensor, and these have scales by row)", true,
       false},
      {"model/, and no model.gguf (I2_S holds one scale a tensor, and these have scales by group)", true,
       false},
      {"model/, and no model.gguf (I2_S holds columns in multiples of 128 only)", true, false},
      {"model/, and no model.gguf (GGUF does not say that activations have 4 bits)", true, false},
      {"no model file (no file format says that inputs are transformed before they are quantised "
       "(hadamard)): "
       "the checkpoint holds the weights",
       false, false},
      {"no model file (no file format holds groups of 128 columns of which the last in a row is shorter): "
       "the "
       "checkpoint holds the weights",
       false, false},
      {"model/ and model.gguf", true, true},
      {"model/ and model.gguf", true, true},
  };
  for (int kind = 0; kind < 8; ++kind) {
    SCOPED_TRACE(kind);
    const auto& e = expected[kind];
    const TrainConfig c = config(kind);
    std::string before;  // the first step
    bool began = false;
    TrainCallbacks callbacks;
    callbacks.message = [&](const std::string& text) {
      if (!began) before += text + "\n";
    };
    callbacks.progress = [&](const Progress&) { began = true; };
    const ExecutionContext context(ExecutionContext::Options{2, {}});
    const DryRun d = dry_run(c, {}, false, context);
    EXPECT_EQ(d.result, e.said);
    EXPECT_NE(format_dry_run(d).find("\nresult\t" + std::string(e.said) + "\n"), std::string::npos);
    TrainConfig short_run = c;
    short_run.log_every = 1;
    run(short_run, false, callbacks);
    EXPECT_NE(before.find("the result will be " + std::string(e.said) + "\n"), std::string::npos) << before;
    EXPECT_EQ(std::filesystem::exists(c.output / "model/config.json"), e.directory);
    EXPECT_EQ(std::filesystem::exists(c.output / "model.gguf"), e.gguf);
    if (e.directory) {
      const auto reader = quant::ModelReader::open(c.output / "model");
      EXPECT_EQ(reader->tokenizer()->vocab_size(), reader->config().vocab_size);
      for (const TensorId id : reader->tensors())
        EXPECT_EQ(reader->read(id).ternary, kind < 7 && is_linear(id.role));
    }
  }
}

TEST(Trainer, ARunThatGoesOnReplacesAModelOfSeveralFiles) {
  const Fixture f;
  TrainConfig c = f.config("out");
  c.quantizer.granularity = ScaleGranularity::kRow;
  c.schedule.steps = 3;
  run(c);
  const std::string first = read_file(c.output / "model/model-00002-of-00003.safetensors");
  write_file(c.output / "model/notes.md", "mine");
  c.schedule.steps = 6;
  run(c, true);
  EXPECT_NE(read_file(c.output / "model/model-00002-of-00003.safetensors"), first);
  EXPECT_EQ(read_file(c.output / "model/notes.md"), "mine");
  for (const auto& entry : std::filesystem::directory_iterator(c.output))
    EXPECT_FALSE(entry.path().filename().string().starts_with(".")) << entry.path();
  // One file takes the place of several, too.
  std::filesystem::remove(c.output / "checkpoint.safetensors");
  c.quantizer = {};
  run(c);
  EXPECT_FALSE(std::filesystem::exists(c.output / "model/model-00002-of-00003.safetensors"));
  EXPECT_EQ(quant::ModelReader::open(c.output / "model")->tensors().size(),
            quant::ModelReader::open(c.output / "model.gguf")->tensors().size());
}

TEST(Trainer, AModelWithScalesByRowIsATernaryBase) {
  const Fixture f;
  TrainConfig c = f.config("out");
  c.quantizer.granularity = ScaleGranularity::kRow;
  run(c);
  const auto text = [&](const std::string& model) {
    return "model: {base: " + (c.output / "model").string() + model +
           "}\ndata: {train: " + (f.dir / "train.txt").string() +
           ", validation: " + (f.dir / "heldout.txt").string() +
           "}\ntraining: {steps: 8, learning_rate: 1.0e-9, length: 16, batch: 4}\noutput: {directory: " +
           (f.dir / "next").string() + "}\n";
  };
  const TrainConfig next = TrainConfig::from_yaml(text(", scales: row"), "t.yaml");
  EXPECT_EQ(next.quantizer_schedule.kind, QuantizerScheduleKind::kAbrupt);  // no growing: it is ternary
  run(next);
  const auto a = quant::ModelReader::open(c.output / "model"),
             b = quant::ModelReader::open(next.output / "model");
  const auto weights = [](const quant::ModelReader& m) { return m.read({TensorRole::kFfnDown, 0}).weights; };
  EXPECT_EQ(weights(*a).trits, weights(*b).trits);
  BITNET_EXPECT_ERROR(run(TrainConfig::from_yaml(text(""), "t.yaml"), true), ErrorCode::kUnsupported,
                      "choose model.scales: row");
}

}  // namespace
}  // namespace bitnet::training
