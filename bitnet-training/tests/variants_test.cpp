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
    EXPECT_EQ(messages.find("no file format here knows this quantiser") != std::string::npos, kind == 1);
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

}  // namespace
}  // namespace bitnet::training
