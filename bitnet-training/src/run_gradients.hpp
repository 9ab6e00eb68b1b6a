#pragma once
// Loss and gradients of a step's batch: passes over micro-batches, in as much memory as there is, with what a
// teacher adds. What is done with them is trainer.cpp and run_processes.hpp. Not thread-safe.
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "bitnet/core/recovery.hpp"
#include "bitnet/training/data.hpp"
#include "bitnet/training/trainer.hpp"
#include "run_model.hpp"
#include "run_processes.hpp"

namespace bitnet::training {

class RunGradients {
 public:
  /// All must outlive it. Throws as teacher_of().
  RunGradients(const TrainConfig& config, const TrainCallbacks& callbacks, const ExecutionContext& context,
               const Tokenizer& tokenizer, const RunModel& model, RunProcesses& processes);

  /// The loss of all sequences of `batch`, and the gradients of it, each position counting `scale`. Where
  /// there is no memory for it, again in smaller micro-batches. `step` is the run's, for what is random in a
  /// pass and for messages. Throws Error.
  double of(const Batch& batch, std::int64_t step, float scale);
  /// What to say of the step that of() was called for and whose loss or norm is not finite: both, and the
  /// place where the first such value comes up.
  std::string not_finite(const Batch& batch, std::int64_t step, float scale, double loss, double norm);
  /// Gives the memory of activations back, which the next step takes again.
  void release() noexcept;

  const Distillation* distillation() const noexcept { return distillation_.get(); }  ///< null: no teacher
  /// Sequences at once: as configured, or what memory has left of that.
  std::int64_t micro_batch() const noexcept { return micro_batch_; }
  /// No more than `sequences`, as a run that is resumed had.
  void limit(std::int64_t sequences) noexcept;

 private:
  struct Part {
    std::span<const std::int32_t> inputs, targets;
    RowLayout layout;
  };
  Part part(const Batch& batch, std::int64_t first, std::int64_t sequences) const;
  double pass(const Part& part, float scale);
  double once(const Batch& batch, std::int64_t step, float scale);

  const TrainConfig& c_;
  const ExecutionContext& context_;
  const RunModel& model_;
  RunProcesses& processes_;
  std::unique_ptr<Distillation> distillation_;  ///< null: no teacher
  Tape tape_;
  std::int64_t micro_batch_;
  Recovery recovery_;
};

}  // namespace bitnet::training
