// Memory and files that fail in the middle of a run: it goes on, and nothing is lost. And whose memory it is.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <map>
#include <optional>

#include "tiny_run.hpp"

namespace bitnet::training {
namespace {

std::shared_ptr<HybridMemoryPool> pool_of(std::size_t limit = kNoMemoryLimit) {
  MemoryPoolOptions options;
  options.limit = limit;
  options.tracking = TrackingLevel::kStandard;
  return std::make_shared<HybridMemoryPool>(options);
}

TEST(TrainerMemory, IsAllOfTheContextsPoolAndTagged) {
  const Fixture f;
  const auto pool = pool_of();
  run(f.config("out"), false, {}, 2, pool);
  std::map<std::string, std::size_t> peaks;
  for (const TagStats& tag : pool->tags()) peaks[tag.tag] = tag.peak;
  const auto checkpoint = SafeTensors::open(f.dir / "out/checkpoint.safetensors");
  std::size_t weights = 0, linears = 0;
  for (const SafeTensorInfo& t : checkpoint->tensors()) {
    if (!t.name.starts_with("weights/")) continue;
    weights += checkpoint->data(t).size();
    if (t.name.ends_with("_proj.weight")) linears += checkpoint->data(t).size();
  }
  EXPECT_EQ(peaks["parameters"], weights);
  EXPECT_EQ(peaks["gradients"], weights);
  EXPECT_GE(peaks["optimizer"], 2 * weights);  // and its partial sums
  EXPECT_LT(peaks["optimizer"], 2 * weights + 4096);
  EXPECT_GT(peaks["ternary weights"], linears / 4);  // of every linear's weight a trit
  EXPECT_LT(peaks["ternary weights"], linears / 4 + 4096);
  EXPECT_GT(peaks["training tape"], 0u);
  EXPECT_GT(peaks["training scratch"], 0u);
  EXPECT_EQ(pool->stats().used, 0u);
}

/// A run whose activations are most of its memory.
TrainConfig wide(const Fixture& f, const std::string& output) {
  TrainConfig c = f.config(output, "none");  // no rounding steps that another order of sums jumps over
  c.batch = c.micro_batch = 64;
  c.schedule.steps = 3;
  return c;
}

std::size_t peak_of(const Fixture& f, const std::string& output, std::int64_t micro_batch) {
  TrainConfig c = wide(f, output);
  c.micro_batch = micro_batch;
  const auto pool = pool_of();
  run(c, false, {}, 2, pool);
  return pool->stats().peak_held;
}

TEST(TrainerFaults, OutOfMemoryShrinksTheMicroBatchAndKeepsTheBatch) {
  const Fixture f;
  const std::size_t small = peak_of(f, "small", 8), large = peak_of(f, "large", 64);
  ASSERT_GT(large, small + (small >> 2));
  std::string messages;
  std::vector<Progress> steps;
  TrainCallbacks callbacks;
  callbacks.message = [&](const std::string& text) { messages += text + "\n"; };
  callbacks.progress = [&](const Progress& p) { steps.push_back(p); };
  TrainConfig c = wide(f, "out");
  c.log_every = 1;
  const auto pool = pool_of((small + large) / 2);
  const TrainResult r = run(c, false, callbacks, 2, pool);
  EXPECT_EQ(r.steps, 3);
  EXPECT_GT(pool->stats().refusals, 0u);
  EXPECT_THAT(messages, ::testing::HasSubstr("step 0 in micro-batches of 64: shrink (1): "));
  // The same batches: a loss and a norm that differ by roundings, and the same place in the text.
  std::vector<Progress> expected;
  callbacks.progress = [&](const Progress& p) { expected.push_back(p); };
  c.output = f.dir / "unlimited";
  run(c, false, callbacks);
  ASSERT_EQ(steps.size(), expected.size());
  for (std::size_t i = 0; i < steps.size(); ++i) {
    EXPECT_NEAR(steps[i].loss, expected[i].loss, 1e-4 * expected[i].loss);
    EXPECT_NEAR(steps[i].gradient_norm, expected[i].gradient_norm, 1e-3 * expected[i].gradient_norm);
    EXPECT_EQ(steps[i].tokens, expected[i].tokens);
  }
  const auto left = SafeTensors::open(f.dir / "out/checkpoint.safetensors")->metadata(),
             whole = SafeTensors::open(f.dir / "unlimited/checkpoint.safetensors")->metadata();
  for (const char* key : {"step", "tokens", "data.position", "data.rng0"})
    EXPECT_EQ(left.at(key), whole.at(key)) << key;
  EXPECT_LT(std::stoll(left.at("micro_batch")), 64);
}

TEST(TrainerFaults, AShrunkRunThatIsResumedGivesTheSameBits) {
  const Fixture f;
  const std::size_t small = peak_of(f, "small", 8), large = peak_of(f, "large", 64);
  run(wide(f, "whole"), false, {}, 2, pool_of((small + large) / 2));
  TrainCallbacks callbacks;
  callbacks.cancelled = [] { return true; };
  ASSERT_TRUE(run(wide(f, "stopped"), false, callbacks, 2, pool_of((small + large) / 2)).cancelled);
  run(wide(f, "stopped"), true);  // with all the memory that it wants
  EXPECT_LT(
      std::stoll(SafeTensors::open(f.dir / "whole/checkpoint.safetensors")->metadata().at("micro_batch")),
      64);
  expect_same_tensors(f.dir / "whole/checkpoint.safetensors", f.dir / "stopped/checkpoint.safetensors");
}

TEST(TrainerFaults, MemoryForNotEvenOneSequenceEndsTheRunWithTheWholeStory) {
  const Fixture f;
  TrainConfig c = f.config("out");
  const auto pool = pool_of(std::size_t{2} << 20);
  BITNET_EXPECT_ERROR(run(c, false, {}, 2, pool), ErrorCode::kOutOfMemory, "limit");
}

/// No file may grow beyond `bytes` while it lives: writing more fails as on a full disk.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit now{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &now);
  }
  ~FileSizeLimit() {
    lift();
    std::signal(SIGXFSZ, handler_);
  }
  void lift() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  void (*handler_)(int);
  rlimit before_{};
};

TEST(TrainerFaults, ACheckpointThatCannotBeWrittenOnceIsWrittenAgain) {
  const Fixture f;
  run(f.config("whole"));
  FileSizeLimit limit(64 << 10);  // a log fits, a checkpoint does not
  int retries = 0;
  TrainCallbacks callbacks;
  callbacks.message = [&](const std::string& text) {
    if (text.find("writing the checkpoint: retry (1): ") == std::string::npos) return;
    ++retries;
    limit.lift();
  };
  EXPECT_EQ(run(f.config("retried"), false, callbacks).steps, 14);
  EXPECT_EQ(retries, 1);
  expect_same_tensors(f.dir / "whole/checkpoint.safetensors", f.dir / "retried/checkpoint.safetensors");
}

TEST(TrainerFaults, ADiskThatStaysFullEndsTheRunAndKeepsTheLastCheckpoint) {
  const Fixture f;
  const TrainConfig c = f.config("out");
  int left = 3;
  TrainCallbacks callbacks;
  callbacks.cancelled = [&] { return --left == 0; };
  run(c, false, callbacks);
  const std::string kept = read_file(c.output / "checkpoint.safetensors");
  {
    const FileSizeLimit limit(64 << 10);
    BITNET_EXPECT_ERROR(run(c, true), ErrorCode::kIo, "checkpoint.safetensors");
  }
  EXPECT_EQ(read_file(c.output / "checkpoint.safetensors"), kept);
}

TEST(TrainerFaults, ADiskThatIsFullForTheModelLeavesTheCheckpointToMakeItOf) {
  const Fixture f;
  run(f.config("whole"));
  const TrainConfig c = f.config("out");
  std::optional<FileSizeLimit> limit;
  TrainCallbacks callbacks;
  callbacks.evaluation = [&](std::int64_t step, const Evaluation&) {
    if (step == 14) limit.emplace(64 << 10);  // after the last checkpoint
  };
  BITNET_EXPECT_ERROR(run(c, false, callbacks), ErrorCode::kIo, "model");
  limit.reset();
  EXPECT_FALSE(std::filesystem::exists(c.output / "model.gguf"));
  run(c, true);
  EXPECT_TRUE(read_file(c.output / "model.gguf") == read_file(f.dir / "whole/model.gguf"));
}

TEST(TrainerFaults, ALogThatCannotBeWrittenEndsTheRun) {
  const std::filesystem::path full = "/dev/full";
  if (!std::filesystem::exists(full)) GTEST_SKIP() << "no /dev/full";
  const Fixture f;
  const TrainConfig c = f.config("out");
  stop_after(c, 3);
  const std::string kept = read_file(c.output / "checkpoint.safetensors");
  std::filesystem::remove(c.output / "log.jsonl");
  std::filesystem::create_symlink(full, c.output / "log.jsonl");
  BITNET_EXPECT_ERROR(run(c, true), ErrorCode::kIo, "log.jsonl': is the disk full?");
  EXPECT_EQ(read_file(c.output / "checkpoint.safetensors"), kept);
}

}  // namespace
}  // namespace bitnet::training
