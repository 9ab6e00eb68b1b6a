#pragma once
// Scoring a text with the model of a run as it is. Not thread-safe.
#include <cstdint>
#include <vector>

#include "bitnet/training/trainer.hpp"
#include "run_data.hpp"
#include "run_model.hpp"

namespace bitnet::training {

class Evaluator {
 public:
  /// All must outlive it.
  Evaluator(const TrainConfig& config, const TrainCallbacks& callbacks, const ExecutionContext& context,
            const Tokenizer& tokenizer, const RunModel& model);
  /// Of the first `most_tokens` in whole sequences, at least one; `at_once` of them in a pass, fewer where
  /// memory asks for it. texts_of() has seen that there is one.
  Evaluation score(const TrainingText& text, std::int64_t most_tokens, std::int64_t at_once);

 private:
  void score_batch();
  const TrainConfig& c_;
  const TrainCallbacks& callbacks_;
  const Tokenizer& tokenizer_;
  const RunModel& model_;
  std::int32_t bos_;
  Tape tape_;
  Batch batch_;
  std::vector<float> losses_;
};

}  // namespace bitnet::training
