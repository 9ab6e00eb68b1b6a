// The checkpoints of a run's folder: which are kept, which is gone on from where some are damaged, what a
// killed writer left. What is in one is checkpoint_test.cpp; kills are trainer_test.cpp and, with the
// executable, bitnet-cli's train_kill_test.cpp.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <set>

#include "bitnet/training/checkpoint.hpp"
#include "tiny_run.hpp"

namespace bitnet::training {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

/// Names of the checkpoints in a folder.
std::set<std::string> checkpoints(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".safetensors") names.insert(entry.path().filename().string());
  return names;
}

std::string step_in(const fs::path& checkpoint) {
  return SafeTensors::open(checkpoint)->metadata().at("step");
}

void damage(const fs::path& path, std::size_t at) {
  std::string bytes = read_file(path);
  bytes[at] = static_cast<char>(bytes[at] ^ 1);
  write_file(path, bytes);
}

TEST(RunFiles, SoManyCheckpointsAreKeptAndTheBest) {
  const Fixture f;
  TrainConfig c = f.config("out");  // a checkpoint a step
  c.keep_checkpoints = 3;
  c.keep_best = true;
  stop_after(c, 2);
  EXPECT_THAT(checkpoints(c.output), ElementsAre("checkpoint-1.safetensors", "checkpoint.safetensors"));
  run(c, true);
  EXPECT_THAT(checkpoints(c.output), ElementsAre("best.safetensors", "checkpoint-12.safetensors",
                                                 "checkpoint-13.safetensors", "checkpoint.safetensors"));
  EXPECT_EQ(step_in(c.output / "checkpoint.safetensors"), "14");
  for (const char* step : {"12", "13"})
    EXPECT_EQ(step_in(c.output / ("checkpoint-" + std::string(step) + ".safetensors")), step);
  // What a killed run had not removed yet is removed by the next one.
  fs::copy_file(c.output / "checkpoint-12.safetensors", c.output / "checkpoint-3.safetensors");
  run(c, true);
  EXPECT_FALSE(fs::exists(c.output / "checkpoint-3.safetensors"));
  EXPECT_EQ(checkpoints(c.output).size(), 4u);
  // Each of them is enough to get to the same end.
  const std::string model = read_file(c.output / "model.gguf");
  fs::remove(c.output / "checkpoint.safetensors");
  fs::remove(c.output / "best.safetensors");
  fs::remove(c.output / "model.gguf");
  BITNET_EXPECT_ERROR(run(c), ErrorCode::kInvalidArgument, "checkpoint-13.safetensors' exists");
  run(c, true);
  EXPECT_EQ(read_file(c.output / "model.gguf"), model);
}

TEST(RunFiles, ADamagedCheckpointIsSkippedForTheNewestWholeOne) {
  const Fixture f;
  run(f.config("whole"));
  TrainConfig c = f.config("out");
  c.keep_checkpoints = 3;
  c.keep_best = true;
  stop_after(c, 9);  // checkpoints of 7, 8, 9, and the best of 5
  damage(c.output / "checkpoint.safetensors", fs::file_size(c.output / "checkpoint.safetensors") - 5);
  write_file(c.output / "checkpoint-8.safetensors", "");
  std::string messages;
  TrainCallbacks callbacks;
  callbacks.message = [&](const std::string& text) { messages += text + "\n"; };
  stop_after(c, 1, true, callbacks);
  EXPECT_THAT(messages, HasSubstr("skipped '" + (c.output / "checkpoint.safetensors").string() + "': "));
  EXPECT_THAT(messages, HasSubstr("the file is damaged"));
  EXPECT_THAT(messages, HasSubstr("skipped '" + (c.output / "checkpoint-8.safetensors").string() + "': "));
  EXPECT_THAT(messages, HasSubstr("resumed at step 7"));
  // The one of step 8 is the new one, and that of another way is gone.
  EXPECT_THAT(checkpoints(c.output),
              ElementsAre("best.safetensors", "checkpoint-7.safetensors", "checkpoint.safetensors"));
  // With all others damaged the best one goes on.
  damage(c.output / "checkpoint.safetensors", 900);
  damage(c.output / "checkpoint-7.safetensors", 900);
  messages.clear();
  run(c, true, callbacks);
  EXPECT_THAT(messages, HasSubstr("resumed at step 5"));
  expect_same_tensors(f.dir / "whole/checkpoint.safetensors", c.output / "checkpoint.safetensors");
  // Where none is whole, the run does not start anew over them.
  for (const std::string& name : checkpoints(c.output)) damage(c.output / name, 900);
  BITNET_EXPECT_ERROR(run(c, true), ErrorCode::kCorruptFile, "checkpoint.safetensors");
}

TEST(RunFiles, WhatAKilledWriterLeftIsRemovedAndNothingElse) {
  const Fixture f;
  const TrainConfig c = f.config("out");
  stop_after(c, 1);
  fs::create_directories(c.output / "model");
  for (const char* name : {"checkpoint.safetensors.123.4.partial", "model/config.json.77.0.partial"})
    write_file(c.output / name, "half");
  fs::create_directories(c.output / ".model.77.0.partial");
  write_file(c.output / ".model.77.0.partial/config.json", "half");
  for (const char* name : {"notes.partial", "a.b.4.partial", "checkpoint.safetensors.123.4"})
    write_file(c.output / name, "mine");
  run(c, true);
  EXPECT_FALSE(fs::exists(c.output / "checkpoint.safetensors.123.4.partial"));
  EXPECT_FALSE(fs::exists(c.output / "model/config.json.77.0.partial"));
  EXPECT_FALSE(fs::exists(c.output / ".model.77.0.partial"));
  for (const char* name : {"notes.partial", "a.b.4.partial", "checkpoint.safetensors.123.4"})
    EXPECT_EQ(read_file(c.output / name), "mine");
}

TEST(RunFiles, HalfALineOfAKilledLogDoesNotSpoilTheNext) {
  const Fixture f;
  const TrainConfig c = f.config("out");
  stop_after(c, 3);
  std::string log = read_file(c.output / "log.jsonl");
  log.resize(log.size() - 10);
  write_file(c.output / "log.jsonl", log);
  run(c, true);
  EXPECT_THAT(read_file(c.output / "log.jsonl"),
              HasSubstr(log.substr(log.rfind('\n')) + "\n{\"type\":\"start\""));
}

TEST(CheckpointFile, ADamagedByteAnywhereIsFound) {
  const Fixture f;
  const TrainConfig c = f.config("out");
  stop_after(c, 1);
  const fs::path path = c.output / "checkpoint.safetensors";
  const std::string whole = read_file(path);
  const auto file = SafeTensors::open(path);
  ModelConfig shape = c.model;
  shape.vocab_size = std::stoll(file->metadata().at("model.vocab_size"));
  const ExecutionContext context;
  LanguageModel model(context, shape, Quantization::kTernary);
  AdamW optimizer(context, model.parameters(), {});
  // The whole header but the blanks behind it, and places all over the tensors.
  std::uint64_t header = 0;
  std::memcpy(&header, whole.data(), sizeof header);
  std::vector<std::size_t> places;
  for (std::size_t at = 0; at < 8 + header; at += 7) places.push_back(at);
  for (std::size_t at = 8 + header; at < whole.size(); at += whole.size() / 97) places.push_back(at);
  places.push_back(whole.size() - 1);
  std::vector<std::size_t> missed;
  for (const std::size_t at : places) {
    std::string bytes = whole;
    bytes[at] = static_cast<char>(bytes[at] ^ 1);
    write_file(f.dir / "damaged.safetensors", bytes);
    try {
      load_checkpoint(f.dir / "damaged.safetensors", model, optimizer);
      missed.push_back(at);
    } catch (const Error& e) {
      EXPECT_TRUE(e.code() == ErrorCode::kCorruptFile || e.code() == ErrorCode::kUnsupported)
          << at << e.what();
    }
  }
  EXPECT_THAT(missed, IsEmpty());
  EXPECT_EQ(load_checkpoint(path, model, optimizer).step, 1);
}

/// Makes of a checkpoint one from before checksums, without the identity of its vocabulary, and with
/// `changes`.
void make_older(const fs::path& path, const std::map<std::string, std::string>& changes = {}) {
  const auto file = SafeTensors::open(path);
  auto fields = file->metadata();
  std::erase_if(fields, [](const auto& field) {
    return field.first == "checksum" || field.first == "identity.the vocabulary" ||
           field.first.starts_with("config.");
  });
  fields["version"] = "2";
  for (const auto& [key, value] : changes) fields[key] = value;
  const std::vector<SafeTensorInfo> tensors(file->tensors().begin(), file->tensors().end());
  SafeTensorsWriter writer(path, tensors, fields);
  for (const SafeTensorInfo& t : tensors) writer.write(t.name, file->data(t));
  writer.finish();
}

/// Makes the first of all norms' weights NaN.
void spoil(const fs::path& path) {
  make_older(path);
  const auto file = SafeTensors::open(path);
  const std::vector<SafeTensorInfo> tensors(file->tensors().begin(), file->tensors().end());
  SafeTensorsWriter writer(path, tensors, file->metadata());
  for (const SafeTensorInfo& t : tensors) {
    std::vector<std::byte> bytes(file->data(t).begin(), file->data(t).end());
    const float nan = std::nanf("");
    if (t.name == "weights/model.norm.weight") std::memcpy(bytes.data(), &nan, sizeof nan);
    writer.write(t.name, bytes);
  }
  writer.finish();
}

TEST(OutputLock, TwoRunsDoNotWriteIntoAFolder) {
  const Fixture f;
  const TrainConfig c = f.config("out");
  int refused = 0;
  TrainCallbacks callbacks;
  callbacks.progress = [&](const Progress&) {
    for (const bool resume : {false, true})
      BITNET_EXPECT_ERROR(run(c, resume), ErrorCode::kInvalidArgument, "another run writes into '");
    ++refused;
  };
  run(c, false, callbacks);
  EXPECT_GT(refused, 0);
  run(f.config("whole"));
  expect_same_tensors(f.dir / "whole/checkpoint.safetensors", c.output / "checkpoint.safetensors");
  run(c, true);  // it ended with its run
}

TEST(CheckpointFile, ADivergenceRightAfterAResumeLeavesAllOfThem) {
  const Fixture f;
  TrainConfig c = f.config("out");
  c.checkpoint_minutes = 0;
  c.keep_checkpoints = 3;
  stop_after(c, 5);
  spoil(c.output / "checkpoint.safetensors");
  const auto files = [&] {
    std::map<fs::path, std::string> all;
    for (const auto& entry : fs::directory_iterator(c.output))
      if (entry.path().extension() == ".safetensors") all[entry.path()] = read_file(entry.path());
    return all;
  };
  const auto before = files();
  EXPECT_EQ(before.size(), 3u);
  for (int tries = 0; tries < 2; ++tries)
    BITNET_EXPECT_ERROR(run(c, true), ErrorCode::kInvalidArgument,
                        "of step 5, with a lower learning rate; if it diverges at once again, put '" +
                            (c.output / "checkpoint-4.safetensors").string() + "' in its place");
  EXPECT_EQ(files(), before);
}

/// Whoever wrote them can have summed them, too.
TEST(CheckpointFile, ValuesThatNoRunHasAreRefused) {
  const Fixture f;
  TrainConfig c = f.config("out");
  c.checkpoint_minutes = 60;  // there is no older one to go on from
  stop_after(c, 2);
  const fs::path path = c.output / "checkpoint.safetensors";
  const std::string whole = read_file(path);
  const std::map<std::string, std::string> zeros = {
      {"data.rng0", "0"}, {"data.rng1", "0"}, {"data.rng2", "0"}, {"data.rng3", "0"}};
  using Changes = std::map<std::string, std::string>;
  for (const auto& changes :
       {zeros, Changes{{"step", "-5"}}, Changes{{"tokens", "-1"}}, Changes{{"optimizer_steps", "-1"}},
        Changes{{"optimizer_steps", "3"}}, Changes{{"step", "9223372036854775807"}},
        Changes{{"tokens", "9223372036854775807"}}, Changes{{"seconds", "nan"}}}) {
    SCOPED_TRACE(changes.begin()->first + " " + changes.begin()->second);
    write_file(path, whole);
    make_older(path, changes);
    BITNET_EXPECT_ERROR(run(c, true), ErrorCode::kCorruptFile,
                        "no run has such a value of " + changes.begin()->first.substr(0, 8));
  }
}

TEST(CheckpointFile, OneFromBeforeChecksumsIsRead) {
  const Fixture f;
  const TrainConfig c = f.config("out");
  run(f.config("whole"));
  stop_after(c, 4);
  const fs::path path = c.output / "checkpoint.safetensors";
  make_older(path);
  std::string messages;
  TrainCallbacks callbacks;
  callbacks.message = [&](const std::string& text) { messages += text + "\n"; };
  run(c, true, callbacks);
  EXPECT_THAT(messages, ::testing::Not(HasSubstr("from here on")));
  expect_same_tensors(f.dir / "whole/checkpoint.safetensors", path);
}

}  // namespace
}  // namespace bitnet::training
