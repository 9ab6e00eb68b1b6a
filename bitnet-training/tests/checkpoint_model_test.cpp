// The model of a checkpoint, beside what the run itself exports.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "bitnet/quant/model_io.hpp"
#include "bitnet/training/checkpoint_model.hpp"
#include "tiny_run.hpp"

namespace bitnet::training {
namespace {

namespace fs = std::filesystem;

/// The model of the run's last checkpoint, written to `made`, beside the one that the run has written.
void expect_same_model(const TrainConfig& c, const fs::path& made) {
  const ExecutionContext context;
  export_checkpoint(context, c.output / "checkpoint.safetensors", made, *Tokenizer::load(c.output));
  int files = 0;
  for (const auto& entry : fs::directory_iterator(c.output / "model")) {
    ++files;
    EXPECT_TRUE(read_file(entry.path()) == read_file(made / entry.path().filename())) << entry.path();
  }
  EXPECT_EQ(files, std::distance(fs::directory_iterator(made), {}));
}

TEST(CheckpointModel, IsTheModelThatTheRunExports) {
  const Fixture f;
  TrainConfig c = f.config("out");
  c.model.rope_theta = 12345.678901f;  // more digits than the identity has
  c.model.rms_norm_eps = 1.25e-6f;
  run(c);
  const fs::path checkpoint = c.output / "checkpoint.safetensors";
  EXPECT_TRUE(is_checkpoint(checkpoint));
  expect_same_model(c, f.dir / "made");
}

TEST(CheckpointModel, OfEveryQuantiserThatFilesHold) {
  const Fixture f;
  int made = 0;
  for (const auto granularity : {ScaleGranularity::kTensor, ScaleGranularity::kRow, ScaleGranularity::kGroup})
    for (const auto gradient : {StraightThrough::kClipped, StraightThrough::kLearnedScale}) {
      SCOPED_TRACE(std::string(to_string(granularity)) + " " + std::string(to_string(gradient)));
      TrainConfig c = f.config("out" + std::to_string(made));
      c.model.hidden_size = 256;  // two groups
      c.model.head_dim = 64;
      c.schedule.steps = 2;
      c.schedule.warmup = 0;
      c.quantizer.granularity = granularity;
      c.quantizer.gradient = gradient;
      c.quantizer.clip = 1.3f;
      if (gradient == StraightThrough::kClipped) c.quantizer.statistic = ScaleStatistic::kMedian;
      run(c);
      expect_same_model(c, f.dir / ("made" + std::to_string(made++)));
      EXPECT_EQ(fs::exists(c.output / "model.gguf"), granularity == ScaleGranularity::kTensor);
    }
}

TEST(CheckpointModel, FullPrecisionStaysSo) {
  const Fixture f;
  const TrainConfig c = f.config("out", "none");
  run(c);
  expect_same_model(c, f.dir / "same");
  const ExecutionContext context;
  export_checkpoint(context, c.output / "checkpoint.safetensors", f.dir / "made", *Tokenizer::load(c.output));
  const auto reader = quant::ModelReader::open(f.dir / "made");
  const auto checkpoint = SafeTensors::open(c.output / "checkpoint.safetensors");
  for (const TensorId id : reader->tensors()) {
    const auto values = reader->read(id).to_f32();
    const auto bytes = checkpoint->data(*checkpoint->find("weights/" + hf_name(id, ModelFamily::kBitNet25)));
    ASSERT_EQ(bytes.size(), 4 * values.size());
    EXPECT_EQ(std::memcmp(values.data(), bytes.data(), bytes.size()), 0);
  }
}

TEST(CheckpointModel, WhatCannotBeMadeAModelIsRefusedWithTheReason) {
  const Fixture f;
  for (const char* name : {"train.txt", "absent.safetensors"})
    EXPECT_FALSE(is_checkpoint(f.dir / name)) << name;
  TrainConfig c = f.config("transformed");
  c.quantizer.hadamard = true;
  stop_after(c, 1);
  const ExecutionContext context;
  const auto tokenizer = Tokenizer::load(c.output);
  const auto refuse = [&](const fs::path& folder, ErrorCode code, const char* text) {
    BITNET_EXPECT_ERROR(
        export_checkpoint(context, folder / "checkpoint.safetensors", f.dir / "x", *tokenizer), code, text);
    EXPECT_FALSE(fs::exists(f.dir / "x"));
  };
  refuse(c.output, ErrorCode::kUnsupported, "inputs are transformed before they are quantised");
  write_file(f.dir / "other.txt", sample_text(3, 2000));
  TrainConfig other = f.config("other");
  other.train = f.dir / "other.txt";
  stop_after(other, 1);
  refuse(other.output, ErrorCode::kInvalidArgument, "the tokenizer is not that of the run");
  run(f.config("base"));
  EXPECT_FALSE(is_checkpoint(f.dir / "base/model/model.safetensors"));
  TrainConfig lora = f.config("lora");
  lora.lora = LoraRun{f.dir / "base/model.gguf", {}};
  lora.model = quant::ModelReader::open(f.dir / "base/model.gguf")->config();
  stop_after(lora, 1);
  refuse(lora.output, ErrorCode::kUnsupported, "it holds an adapter's factors and not the base");
  stop_after(f.config("out"), 1);
  std::string bytes = read_file(f.dir / "out/checkpoint.safetensors");
  bytes[bytes.size() - 9] = static_cast<char>(bytes[bytes.size() - 9] ^ 16);
  write_file(f.dir / "out/checkpoint.safetensors", bytes);
  refuse(f.dir / "out", ErrorCode::kCorruptFile, "the file is damaged");
}

}  // namespace
}  // namespace bitnet::training
