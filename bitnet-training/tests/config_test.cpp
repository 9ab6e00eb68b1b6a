// Configurations: what is read, that every mistake is named with its line, and the schedules.
#include <gtest/gtest.h>

#include "bitnet/testing/testing.hpp"
#include "bitnet/training/config.hpp"

namespace bitnet::training {
namespace {

/// `text` with the first `from` replaced.
std::string replaced(std::string text, const std::string& from, const std::string& to) {
  return text.replace(text.find(from), from.size(), to);
}

void expect_refused(const std::string& text, const char* file, const char* message) {
  BITNET_EXPECT_ERROR(TrainConfig::from_yaml(text, file), ErrorCode::kInvalidArgument, message);
}

TEST(Config, EveryMistakeNamesFileAndLine) {
  const std::string good =
      "model:\n  vocab_size: 300\n  hidden_size: 128\n  intermediate_size: 128\n  layers: 1\n  heads: 4\n"
      "  context: 32\ndata:\n  train: a\n  validation: b\ntraining:\n  steps: 10\n  learning_rate: 1.0e-3\n"
      "output:\n  directory: c\n";
  EXPECT_EQ(TrainConfig::from_yaml(good, "x.yaml").length, 32);
  EXPECT_EQ(TrainConfig::from_yaml(good, "x.yaml").precision(), PrecisionPolicy::training());
  const struct {
    const char *from, *to, *message;
  } cases[] = {
      {"  layers: 1", "  layer: 1", "x.yaml:2: section 'model' needs the key 'layers'"},
      {"  heads: 4", "  heads: 4\n  colour: red", "x.yaml:7: unknown key 'colour' in 'model'"},
      {"  heads: 4", "  heads: four", "x.yaml:6: 'model.heads' must be a whole number"},
      {"  heads: 4", "  heads: 3", "x.yaml:6: model.heads must divide model.hidden_size"},
      {"  heads: 4", "  heads: 4\n  kv_heads: 3", "x.yaml:7: model.kv_heads cannot be used: n_kv_heads = 3"},
      {"  layers: 1", "  layers: 0", "x.yaml:5: model.layers cannot be used"},
      {"output:", "extra:\n  a: 1\noutput:", "x.yaml:14: unknown section 'extra'"},
      {"  context: 32", "  context: 2000000000", "x.yaml:7: model.context"},
      {"vocab_size: 300", "vocab_size: 2000000000", "x.yaml:1: model would have more than 4e9 parameters"},
      {"  steps: 10", "  steps: 0", "x.yaml:12: training.steps"},
      {"  steps: 10", "  steps: 10\n  schedule: sudden", "unknown schedule 'sudden'"},
      {"  steps: 10", "  steps: 10\n  length: 64", "x.yaml:13: training.length"},
      {"  steps: 10", "  steps: 10\n  batch: 3\n  micro_batch: 2",
       "x.yaml:14: training.micro_batch must divide"},
      // The default of a key that is not there breaks the rule: the section's line.
      {"  steps: 10", "  steps: 10\n  batch: 3", "x.yaml:11: training.micro_batch must divide"},
      {"  steps: 10", "  steps: 10\n  batch: 1000000000000",
       "x.yaml:13: training.batch must not be more than"},
      {"  steps: 10", "  steps: 10\n  second_learning_rate: 1.0e+39",
       "x.yaml:13: training.second_learning_rate"},
      {"  steps: 10", "  steps: 10\n  eps: .inf", "x.yaml:13: training.eps"},
      {"  steps: 10", "  steps: 9223372036854775807", "x.yaml:12: training.steps must be at most 2^40"},
      {"  context: 32", "  context: 32\n  init_deviation: 1.0e+39", "x.yaml:8: model.init_deviation"},
      {"  directory: c", "  directory: c\n  keep_checkpoints: 9223372036854775807",
       "x.yaml:16: output.keep_checkpoints must be at most a million"},
      // What has no effect is a mistake.
      {"  steps: 10", "  steps: 10\n  quantizer_steps: 5",
       "x.yaml:13: training.quantizer_steps has no effect without training.quantizer_schedule: linear"},
      {"  context: 32", "  context: 32\n  quantization: none\n  scales: row",
       "x.yaml:9: model.scales has no effect without model.quantization: ternary"},
      {"  context: 32", "  context: 32\n  straight_through_clip: 2",
       "x.yaml:8: model.straight_through_clip has no effect without model.straight_through"},
      {"  steps: 10", "  steps: 10\n  momentum: 0.5",
       "x.yaml:13: training.momentum has no effect without training.optimizer: sgd or muon"},
      {"  steps: 10", "  steps: 10\n  optimizer: sgd\n  beta2: 0.99",
       "x.yaml:14: training.beta2 has no effect without training.optimizer: adamw"},
      {"  steps: 10", "  steps: 10\n  schedule: cosine\n  second_learning_rate: 1e-4",
       "x.yaml:14: training.second_learning_rate has no effect without training.schedule: two_stage"},
      {"  steps: 10", "  steps: [", "x.yaml:"},
      {"  context: 32", "  context: 32\n  quantization: binary", "expected ternary or none"},
      {"model:\n", "model: 3\nother:\n", "x.yaml:"},
      {"  heads: 4", "  heads: 4\n  heads: 2", "x.yaml:7: key 'heads' is given twice, first in line 6"},
      {"output:", "data: {}\noutput:", "x.yaml:14: key 'data' is given twice, first in line 8"},
      {"output:", "[a]: 1\noutput:", "x.yaml:14: expected a word as key"},
      {"output:", "---\noutput:", "x.yaml:15: a second document"},
      {"model:\n", ", model:\n", "x.yaml:1: no document can begin here"},
      {"data:\n  train: a\n  validation: b\n", "", "section 'data' needs the key 'train'"},
      {"  steps: 10", "  steps: 10\n  compute: fp16",
       "x.yaml:13: 'training.compute': dtype 'fp16': there are"},
      {"  steps: 10", "  steps: 10\n  compute: f16",
       "x.yaml:13: training.compute cannot be f16: precision of"},
      {"  directory: c", "  directory: [c]", "x.yaml:15: 'output.directory' must be a path"},
      {"  directory: c", "  directory:", "x.yaml:15: 'output.directory' must be a path"},
  };
  for (const auto& c : cases) expect_refused(replaced(good, c.from, c.to), "x.yaml", c.message);
  EXPECT_EQ(
      TrainConfig::from_yaml(replaced(good, "  steps: 10", "  steps: 10\n  compute: bf16"), "x.yaml").compute,
      DType::kBF16);
  BITNET_EXPECT_ERROR(
      TrainConfig::from_yaml(replaced(good, "heads: 4", "heads: " + std::string(5000, '[')), "x.yaml"),
      ErrorCode::kInvalidArgument, "lists or mappings within each other, too deep");
  BITNET_EXPECT_ERROR(TrainConfig::from_yaml("", "x.yaml"), ErrorCode::kInvalidArgument, "x.yaml:1");
  BITNET_EXPECT_ERROR(TrainConfig::from_yaml_file("/nowhere/x.yaml"), ErrorCode::kNotFound,
                      "/nowhere/x.yaml");
}

TEST(Config, QuantiserOptimizerAndDocuments) {
  const std::string text =
      R"(model: {vocab_size: 300, hidden_size: 128, intermediate_size: 128, layers: 1, heads: 4, context: 32,
        scales: row, scale_statistic: median, straight_through: clipped, activation_bits: 4, hadamard: true}
data: {train: a, validation: b, document_separator: "\n\n"}
training: {steps: 100, learning_rate: 1.0e-3, optimizer: muon, momentum: 0.9, quantizer_schedule: sigmoid,
           quantizer_steps: 50, quantizer_layer_by_layer: true}
output: {directory: out}
)";
  const TrainConfig c = TrainConfig::from_yaml(text, "t.yaml");
  EXPECT_EQ(c.quantizer.granularity, ScaleGranularity::kRow);
  EXPECT_EQ(c.quantizer.statistic, ScaleStatistic::kMedian);
  EXPECT_EQ(c.quantizer.gradient, StraightThrough::kClipped);
  EXPECT_EQ(c.quantizer.activation_bits, 4);
  EXPECT_TRUE(c.quantizer.hadamard);
  EXPECT_FALSE(c.exports());
  EXPECT_EQ(c.optimizer, OptimizerKind::kMuon);
  EXPECT_EQ(c.quantizer_schedule.kind, QuantizerScheduleKind::kSigmoid);
  EXPECT_TRUE(c.quantizer_schedule.layer_by_layer);
  EXPECT_EQ(c.document_separator, "\n\n");
  const auto refuse = [&](const char* from, const char* to, const char* message) {
    expect_refused(replaced(text, from, to), "t.yaml", message);
  };
  refuse("scales: row", "scales: block", "expected one of tensor, row, group");
  refuse("activation_bits: 4", "activation_bits: 5", "t.yaml:2: model.activation_bits cannot be used");
  refuse("optimizer: muon", "optimizer: lion", "expected adamw, adamw8, sgd or muon");
  refuse("momentum: 0.9", "momentum: 1", "training.momentum");
  refuse("quantizer_steps: 50", "quantizer_steps: 101", "half quantised");
  refuse("sigmoid", "step", "expected one of abrupt, linear, exponential, sigmoid");
}

TEST(Config, HowTextsAreRead) {
  const std::string text =
      R"(model: {vocab_size: 300, hidden_size: 128, intermediate_size: 128, layers: 1, heads: 4, context: 32}
data: {train: a, validation: b, format: jsonl, chat_template: llama3, long_records: skip,
       ignore_unknown_keys: true, shards: kept}
training: {steps: 100, learning_rate: 1.0e-3, length: 16}
output: {directory: out}
)";
  const TextOptions o = TrainConfig::from_yaml(text, "t.yaml").text_options();
  EXPECT_EQ(o.format, TextFormat::kJsonl);
  EXPECT_EQ(o.document_separator, "");
  EXPECT_EQ(o.chat_template, "llama3");
  EXPECT_EQ(o.long_records, LongRecords::kSkip);
  EXPECT_TRUE(o.ignore_unknown_keys);
  EXPECT_EQ(o.length, 16);
  EXPECT_EQ(o.shards, "kept");
  const auto refuse = [&](const char* from, const char* to, const char* message) {
    expect_refused(replaced(text, from, to), "t.yaml", message);
  };
  refuse("jsonl", "csv", "t.yaml:2: 'data.format': unknown format 'csv': expected auto, text or jsonl");
  refuse("jsonl", "jsonl, document_separator: x", "t.yaml:2: data.document_separator cannot be used");
  refuse("llama3", "chatml", "t.yaml:2: data.chat_template cannot be used: ");
  refuse("skip", "drop", "expected refuse, cut or skip");
  refuse("shards: kept", "shard: kept", "unknown key 'shard' in 'data'");
}

TEST(Config, WhatARunKeepsAndSays) {
  const std::string text =
      R"(model: {vocab_size: 300, hidden_size: 128, intermediate_size: 128, layers: 1, heads: 4, context: 32}
data: {train: a, validation: b}
training: {steps: 100, learning_rate: 1.0e-3, activation_checkpointing: true}
output: {directory: out, checkpoint_minutes: 0, keep_checkpoints: 2, sample_every: 7,
         sample_prompt: It was, sample_tokens: 9}
)";
  const TrainConfig c = TrainConfig::from_yaml(text, "t.yaml");
  EXPECT_TRUE(c.activation_checkpointing);
  EXPECT_EQ(c.checkpoint_minutes, 0);
  EXPECT_EQ(c.keep_checkpoints, 2);
  EXPECT_EQ(c.sample_every, 7);
  EXPECT_EQ(c.sample_prompt, "It was");
  EXPECT_EQ(c.sample_tokens, 9);
  const auto refuse = [&](const char* from, const char* to, const char* message) {
    expect_refused(replaced(text, from, to), "t.yaml", message);
  };
  refuse("checkpointing: true", "checkpointing: some",
         "t.yaml:3: 'training.activation_checkpointing' must be true");
  refuse("checkpoint_minutes: 0", "checkpoint_minutes: -1", "output.checkpoint_minutes must not be negative");
  refuse("checkpoint_minutes: 0", "checkpoint_minutes: .nan",
         "output.checkpoint_minutes must not be negative");
  refuse("keep_checkpoints: 2", "keep_checkpoints: 0", "t.yaml:4: output.keep_checkpoints must be positive");
  refuse("sample_every: 7", "sample_every: -7", "t.yaml:4: output.sample_every must not be negative");
  refuse("sample_tokens: 9", "sample_tokens: 0", "t.yaml:5: output.sample_tokens must be positive");
  refuse("sample_tokens: 9", "sample_tokens: 32", "output.sample_tokens must be below model.context");
  refuse("sample_prompt: It was", "sample_prompt: [a]", "'output.sample_prompt' must be a word");
  refuse("layers: 1", "layers: 1, hadamard: true",
         "output.sample_every must be 0 where no file can hold the model: no file format says that inputs");
  EXPECT_TRUE(
      TrainConfig::from_yaml(replaced(text, "layers: 1", "layers: 1, scales: group"), "t.yaml").exports());
}

TEST(Config, TheShippedOnesAreValid) {
  const auto here = std::filesystem::current_path();
  std::filesystem::current_path(testing::source_path("."));  // a base is read, and its path is relative
  for (const auto& file : std::filesystem::directory_iterator(testing::source_path("configs/train")))
    EXPECT_NO_THROW(TrainConfig::from_yaml_file(file.path())) << file.path();
  std::filesystem::current_path(here);
}

TEST(Schedule, TwoStages) {
  Schedule s{ScheduleKind::kTwoStage, 100, 10, 1e-2, 0, 0.1};
  EXPECT_DOUBLE_EQ(s.learning_rate(0), 1e-3);
  EXPECT_DOUBLE_EQ(s.learning_rate(10), 1e-2 * 0.9);
  EXPECT_DOUBLE_EQ(s.learning_rate(49), 1e-2 * 0.51);
  EXPECT_DOUBLE_EQ(s.learning_rate(50), 1e-2 * 2 / 3 * 0.5);
  EXPECT_DOUBLE_EQ(s.learning_rate(100), 0);
  EXPECT_DOUBLE_EQ(s.decay(49), 0.1);
  EXPECT_DOUBLE_EQ(s.decay(50), 0);
  s.second_peak = 5e-3;
  EXPECT_DOUBLE_EQ(s.learning_rate(50), 2.5e-3);
  s.kind = ScheduleKind::kCosine;
  EXPECT_DOUBLE_EQ(s.learning_rate(50), 5e-3);
  EXPECT_DOUBLE_EQ(s.decay(50), 0.1);
  s.kind = ScheduleKind::kLinear;
  EXPECT_DOUBLE_EQ(s.learning_rate(75), 2.5e-3);
  for (const ScheduleKind k : {ScheduleKind::kTwoStage, ScheduleKind::kLinear, ScheduleKind::kCosine})
    EXPECT_EQ(schedule_from_string(to_string(k)), k);
}

}  // namespace
}  // namespace bitnet::training
