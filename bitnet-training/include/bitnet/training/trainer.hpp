#pragma once
// A training run from a TrainConfig to files: data, steps, evaluation, log, checkpoints. Not thread-safe:
// callbacks come on the caller's thread, and a folder of output is one run's.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/core/text/sequences.hpp"
#include "bitnet/training/config.hpp"
#include "bitnet/training/process_group.hpp"

namespace bitnet::training {

/// Text that was not trained on, scored in windows of the training length; every position counts (`bitnet
/// perplexity` scores the second halves of its windows only, and so reports lower values).
struct Evaluation {
  std::int64_t tokens = 0;
  double nll = 0;  ///< nats per token
  double perplexity = 0;
  double bits_per_byte = 0;  ///< over the bytes that the scored tokens decode to
};

/// One line of progress.
struct Progress {
  std::int64_t step = 0, steps = 0, tokens = 0;
  double loss = 0;  ///< mean of the steps since the last report
  double learning_rate = 0, gradient_norm = 0;
  double tokens_per_second = 0;
  double seconds = 0, eta_seconds = 0;
  double zero_fraction = 0;  ///< of all trits; 0 in full precision
  double flip_rate = 0;      ///< trits that changed per step, as a fraction, mean since the last report
  std::vector<double> layer_scales;  ///< TextModel::layer_scales()
  std::uint64_t epoch = 0;
};
/// "step 120/3000 | loss 4.312 | lr 1.2e-03 | 5230 tok/s | eta 0:38:10 | zero 31.2% | flips 0.41%"
std::string format_progress(const Progress& p);

/// Writes the model as it now is: the directory that the run would export, of f32 where it is trained in full
/// precision; of an adapter its directory. Throws Error(kIo), Error(kUnsupported)
/// where no file holds the model.
using WriteSnapshot = std::function<void(const std::filesystem::path&)>;

struct TrainCallbacks {
  std::function<void(const Progress&)> progress;
  std::function<void(std::int64_t step, const Evaluation&)> evaluation;  ///< of the validation text
  std::function<void(const std::string&)> message;                       ///< what is being done, one line
  /// Text that the model writes after TrainConfig::sample_prompt, asked every `sample_every` steps; goes to
  /// the log unless it is none. An Error that leaves it is a message; the run goes on.
  std::function<std::optional<std::string>(std::int64_t step, const WriteSnapshot&)> sample;
  std::function<bool()> cancelled;  ///< asked between steps; a checkpoint is written before leaving
};

struct TrainResult {
  std::int64_t steps = 0, tokens = 0;
  double seconds = 0;
  Evaluation final_evaluation;         ///< of the whole validation text; as the next, not when cancelled
  std::optional<Evaluation> held_out;  ///< of the whole held-out text, where the configuration names one
  std::int64_t skipped = 0;            ///< steps of this start whose loss was a spike
  std::int64_t best_step = 0;          ///< whose weights are the result; 0: those of the last step
  bool stopped_early = false;          ///< no better validation in config.patience evaluations
  bool cancelled = false;
};

/// Trains and writes into config.output: tokenizer.json, log.jsonl, checkpoint.safetensors, and at the end
/// model/ (Hugging Face directory) and model.gguf (I2_S, or f32 in full precision), or what model_files() in
/// export.hpp says instead, which is a message before the first step; of an adapter the directory adapter/
/// (docs/formats/lora.md), the checkpoint holds its factors and not the base. With `resume` it continues from
/// the checkpoint there, with the tokenizer beside it; a checkpoint of another text, seed, length, batch or
/// micro-batch is an Error(kInvalidArgument), another rate or number of steps a message. If there is none, it
/// says so and starts, as without `resume`, where an existing checkpoint is an Error(kInvalidArgument). A
/// start renames the log of an earlier one to log.<n>.jsonl. A damaged checkpoint is skipped with a message
/// where an older one (TrainConfig::keep_checkpoints, best.safetensors) is whole. Throws Error; a loss that
/// is not finite stops the run with step and value, the last checkpoint kept.
/// In a group of several processes all call it with the same arguments, and each reads the texts; the first
/// one alone touches the output, chooses what is resumed, calls back (but for `cancelled`) and scores.
/// Results are the same bits however many processes there are, where `gradient_parts` is. An Error of one
/// ends all: it is said as a message, and the others get an Error(kIo) or, under MPI, are ended.
TrainResult train(const TrainConfig& config, const TrainCallbacks& callbacks, bool resume,
                  const ExecutionContext& context, ProcessGroup* group = nullptr);

/// What a run would take, as far as two steps of it tell.
struct DryRun {
  std::int64_t parameters = 0, vocab_size = 0;
  std::int64_t train_tokens = 0, validation_tokens = 0, held_out_tokens = 0;
  CorpusStatistics corpus;          ///< of the training text's documents; a stream is one
  std::int64_t learned_tokens = 0;  ///< of the training text: those that are targets
  std::int64_t sequences_per_epoch = 0, steps = 0;
  bool activation_checkpointing = false;  ///< as configured: less memory, longer steps
  std::int64_t micro_batch = 0;           ///< as configured, or what memory had room for
  double seconds_per_step = 0;            ///< of the second step, measured
  double seconds_per_epoch = 0;           ///< of steps alone, without evaluation and checkpoints
  double seconds = 0;                     ///< of all steps
  std::uint64_t memory_bytes = 0;         ///< the most that the context's pool had in use
  std::uint64_t checkpoint_bytes = 0;     ///< about; a checkpoint is written beside the last one
  std::string result;                     ///< the files that the run would end with, and why not more
};
/// "parameters 1234 …", a line each.
std::string format_dry_run(const DryRun& d);

/// Checks everything that train() with these arguments depends on, makes two steps and scores a sequence, and
/// writes nothing: no folder, vocabulary, shard, log or checkpoint. Throws what train() would, and Error(kIo)
/// where the output cannot be written or has no room for the checkpoints that are kept and the next one.
DryRun dry_run(const TrainConfig& config, const TrainCallbacks& callbacks, bool resume,
               const ExecutionContext& context, ProcessGroup* group = nullptr);

}  // namespace bitnet::training
