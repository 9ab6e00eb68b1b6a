#pragma once
// A training run of a tiny model on a tiny text, for tests of whole runs.
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <string>

#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/io/safetensors.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/trainer.hpp"
#include "sample_text.hpp"

namespace bitnet::training {

/// A run in `dir`, where the texts are, that writes to the folder `output` of it.
inline TrainConfig config_in(const std::filesystem::path& dir, const std::string& output,
                             const std::string& quantization = "ternary") {
  return TrainConfig::from_yaml(
      "model: {vocab_size: 300, hidden_size: 128, intermediate_size: 128, layers: 1, heads: 4,\n"
      "        kv_heads: 2, context: 32, quantization: " +
          quantization +
          "}\n"
          "data: {train: " +
          (dir / "train.txt").string() +
          ",\n"
          "       validation: " +
          (dir / "heldout.txt").string() +
          ", validation_tokens: 128}\n"
          "training: {steps: 14, warmup: 2, learning_rate: 2.0e-3, length: 16, batch: 4,\n"
          "           micro_batch: 2, seed: 7}\n"
          "output: {directory: " +
          (dir / output).string() +
          ", log_every: 2,\n"
          "         evaluate_every: 5, checkpoint_minutes: 1.0e-9}\n",
      "test.yaml");
}

struct Fixture {
  testing::TempDir dir;
  Fixture() {
    write_file(dir / "train.txt", sample_text(1, 2000));
    write_file(dir / "heldout.txt", sample_text(2, 200));
  }
  TrainConfig config(const std::string& output, const std::string& quantization = "ternary") const {
    return config_in(dir.path(), output, quantization);
  }
};

inline TrainResult run(const TrainConfig& c, bool resume = false, const TrainCallbacks& callbacks = {},
                       std::size_t threads = 2, std::shared_ptr<HybridMemoryPool> memory = nullptr) {
  const ExecutionContext context(ExecutionContext::Options{threads, {}, std::move(memory)});
  return train(c, callbacks, resume, context);
}

/// A run that is cancelled after `steps` more steps.
inline void stop_after(const TrainConfig& c, int steps, bool resume = false, TrainCallbacks callbacks = {}) {
  callbacks.cancelled = [&steps] { return --steps == 0; };
  EXPECT_TRUE(run(c, resume, callbacks).cancelled);
}

/// Every tensor of two checkpoints, bit for bit (their metadata differs in the seconds spent).
inline void expect_same_tensors(const std::filesystem::path& a, const std::filesystem::path& b) {
  const auto x = SafeTensors::open(a), y = SafeTensors::open(b);
  ASSERT_EQ(x->tensors().size(), y->tensors().size());
  for (const SafeTensorInfo& t : x->tensors()) {
    const SafeTensorInfo* other = y->find(t.name);
    ASSERT_TRUE(other) << t.name;
    const auto p = x->data(t), q = y->data(*other);
    ASSERT_EQ(p.size(), q.size());
    EXPECT_EQ(std::memcmp(p.data(), q.data(), p.size()), 0) << t.name;
  }
  for (const char* key : {"step", "tokens", "data.position", "data.epoch", "data.rng0", "optimizer_steps"})
    EXPECT_EQ(x->metadata().at(key), y->metadata().at(key)) << key;
}

}  // namespace bitnet::training
