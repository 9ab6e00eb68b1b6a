// The model of a checkpoint, beside what the run itself exports.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "bitnet/quant/model_io.hpp"
#include "bitnet/training/checkpoint_model.hpp"
#include "tiny_run.hpp"

namespace bitnet::training {
namespace {

namespace fs = std::filesystem;

TEST(CheckpointModel, IsTheModelThatTheRunExports) {
  const Fixture f;
  TrainConfig c = f.config("out");
  c.model.rope_theta = 12345.678901f;  // more digits than the identity has
  c.model.rms_norm_eps = 1.25e-6f;
  run(c);
  const fs::path checkpoint = c.output / "checkpoint.safetensors";
  EXPECT_TRUE(is_checkpoint(checkpoint));
  fs::create_directories(f.dir / "made");
  export_checkpoint(checkpoint, f.dir / "made/model.gguf", *Tokenizer::load(c.output));
  EXPECT_TRUE(read_file(f.dir / "made/model.gguf") == read_file(c.output / "model.gguf"));
}

TEST(CheckpointModel, FullPrecisionStaysSo) {
  const Fixture f;
  const TrainConfig c = f.config("out", "none");
  stop_after(c, 3);
  export_checkpoint(c.output / "checkpoint.safetensors", f.dir / "made.gguf", *Tokenizer::load(c.output));
  const auto reader = quant::ModelReader::open(f.dir / "made.gguf", quant::FloatLinears::kKeep);
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
  TrainConfig c = f.config("rows");
  c.quantizer.granularity = ScaleGranularity::kRow;
  stop_after(c, 1);
  const auto tokenizer = Tokenizer::load(c.output);
  const auto refuse = [&](const fs::path& folder, ErrorCode code, const char* text) {
    BITNET_EXPECT_ERROR(export_checkpoint(folder / "checkpoint.safetensors", f.dir / "x.gguf", *tokenizer),
                        code, text);
    EXPECT_FALSE(fs::exists(f.dir / "x.gguf"));
  };
  refuse(c.output, ErrorCode::kUnsupported, "its quantiser has scales by row (mean)");
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
