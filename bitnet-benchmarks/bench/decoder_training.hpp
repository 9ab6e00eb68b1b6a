#pragma once
// Decoders that the training benches step: their shapes, and one with random weights on one random batch.
#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/training/decoder_shape.hpp"
#include "bitnet/training/language_model.hpp"
#include "bitnet/training/losses.hpp"
#include "bitnet/training/optimizer.hpp"

namespace bitnet::benchmarks {

/// A model and how many sequences of its whole context are a batch.
struct TrainingWorkload {
  ModelConfig model;
  std::int64_t sequences;
};

/// "gpt_12m" and "tiny", which compare_pytorch.py has, too, and "demo", that of configs/train/demo.yaml.
/// Throws Error(kInvalidArgument) for other names.
inline TrainingWorkload training_workload(const std::string& name) {
  using training::decoder_config;
  if (name == "gpt_12m") return {decoder_config({4096, 384, 1024, 6, 6, 6, 256}), 8};
  if (name == "tiny") return {decoder_config({256, 128, 128, 2, 4, 2, 32}), 2};
  if (name == "demo") return {decoder_config({4096, 512, 1024, 6, 8, 4, 512}), 4};
  throw Error(ErrorCode::kInvalidArgument, "unknown shape '" + name + "' (there are: gpt_12m, tiny, demo)");
}

/// Weights, then inputs and targets, are drawn from one seed. `context` must outlive it.
class DecoderTraining {
 public:
  DecoderTraining(const ExecutionContext& context, const TrainingWorkload& w, training::Quantization q)
      : context_(context), length_(w.model.max_position), model_(context, w.model, q) {
    Rng rng(1);
    model_.initialize(rng, 0.02f);
    model_.refresh(context_);
    const auto vocab = static_cast<std::uint64_t>(w.model.vocab_size);
    for (std::int64_t i = 0; i < w.sequences * length_; ++i) {
      inputs_.push_back(static_cast<std::int32_t>(rng.below(vocab)));
      targets_.push_back(static_cast<std::int32_t>(rng.below(vocab)));
    }
  }

  std::int64_t sequences() const { return static_cast<std::int64_t>(inputs_.size()) / length_; }
  /// Forward and backward of `count` sequences from `first` on; their share of the batch's loss.
  float pass(std::int64_t first, std::int64_t count) {
    const auto part = [&](const std::vector<std::int32_t>& of) {
      return std::span(of).subspan(static_cast<std::size_t>(first * length_),
                                   static_cast<std::size_t>(count * length_));
    };
    const auto logits = model_.forward(tape_, part(inputs_), {length_});
    const auto loss =
        training::cross_entropy(tape_, logits, part(targets_), 1.0f / static_cast<float>(targets_.size()));
    const float value = loss.value()[0];
    tape_.backward(loss);
    tape_.reset();
    return value;
  }
  /// A whole step; the loss before it.
  float step(training::Optimizer& optimizer) {
    const float loss = pass(0, sequences());
    optimizer.step(context_, 1e-3f, 0.1f, 1.0f);
    model_.refresh(context_);
    return loss;
  }

  training::LanguageModel& model() { return model_; }
  training::Tape& tape() { return tape_; }
  const std::vector<std::int32_t>& inputs() const { return inputs_; }
  const std::vector<std::int32_t>& targets() const { return targets_; }

 private:
  const ExecutionContext& context_;
  std::int64_t length_;
  training::LanguageModel model_;
  training::Tape tape_{context_};
  std::vector<std::int32_t> inputs_, targets_;
};

}  // namespace bitnet::benchmarks
