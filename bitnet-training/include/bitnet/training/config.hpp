#pragma once
// A training run as a yaml file says it. What is done with it is trainer.hpp. A plain value; its functions
// are thread-safe.
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "bitnet/core/model/model_config.hpp"
#include "bitnet/core/precision.hpp"
#include "bitnet/training/language_model.hpp"
#include "bitnet/training/lora.hpp"
#include "bitnet/training/optimizer.hpp"
#include "bitnet/training/quantizer.hpp"
#include "bitnet/training/schedule.hpp"
#include "bitnet/training/training_text.hpp"

namespace bitnet::training {

enum class OptimizerKind : std::uint8_t { kAdamW, kAdamW8, kSgd, kMuon };
std::string_view to_string(OptimizerKind kind) noexcept;  ///< "adamw", "adamw8", "sgd", "muon"
/// Throws Error(kInvalidArgument) listing the kinds.
OptimizerKind optimizer_from_string(std::string_view name);

/// Training of an adapter instead of the weights.
struct LoraRun {
  std::filesystem::path base;  ///< the model that it is for
  LoraOptions options;
};

/// What a teacher adds to the loss: logits · KL of its predictions + attention · KL of its attention
/// relations (distillation.hpp), each a mean over positions.
struct DistillationRun {
  std::filesystem::path teacher;  ///< any model that can be read, of the same vocabulary
  double temperature = 5;
  double logits = 1, attention = 0;
  std::int64_t layer = -1;  ///< whose relations, counted from 0; −1: the last but one, or the only one
  std::int64_t teacher_layer = -1;  ///< the teacher's; −1 as above, in the teacher
  std::int64_t relation_heads = 0;  ///< 0: the student's key-value heads
};

/// Everything that a run depends on. Paths are relative to the current directory. docs/guides/training.md
/// explains each key.
struct TrainConfig {
  ModelConfig
      model;  ///< vocab_size is what is asked for; a tokenizer that is given or learnt may set a smaller one
  Quantization quantization = Quantization::kTernary;
  QuantizerOptions quantizer;            ///< of a ternary model
  QuantizerSchedule quantizer_schedule;  ///< λ over the steps
  double init_deviation = 0.02;

  std::filesystem::path base;  ///< model whose weights all of `model` begins with; empty: random ones
  std::filesystem::path
      original;  ///< what a quantised base was made of: latent weights begin with its; or empty
  std::optional<LoraRun> lora;  ///< then `model` is the base's
  std::optional<DistillationRun> distillation;

  std::filesystem::path train, validation;  ///< files as load_training_text() reads them
  std::filesystem::path held_out;           ///< the same, scored once after the last step; empty: none
  TextFormat format = TextFormat::kAuto;    ///< of all three
  /// What lies between two documents of these texts, which are then packed into sequences and do not see
  /// each other; empty: a text is one stream, cut into windows.
  std::string document_separator;
  std::string chat_template;  ///< of chats, by name; empty: the tokenizer's own
  LongRecords long_records = LongRecords::kRefuse;
  bool ignore_unknown_keys = false;        ///< of JSONL
  std::filesystem::path shards;            ///< directory that keeps the texts as tokens; empty: none
  std::filesystem::path tokenizer;         ///< empty: learn one from `train`
  std::int64_t validation_tokens = 65536;  ///< scored at each evaluation; the last one scores the whole file

  Schedule schedule;
  OptimizerKind optimizer = OptimizerKind::kAdamW;
  AdamWOptions adamw;
  float momentum = 0.95f;  ///< of sgd and muon
  double clip = 1.0;
  std::int64_t length = 512;        ///< tokens of a training sequence, at most model.max_position
  std::int64_t batch = 8;           ///< sequences per optimiser step
  std::int64_t micro_batch = 2;     ///< sequences at once; divides batch
  std::int64_t gradient_parts = 0;  ///< of a batch (DataParallel); divides it; 0: as many as processes
  std::uint64_t seed = 1;
  double spike_deviations = 0;  ///< a loss so many deviations above those of late is passed over; 0: none is
  std::int64_t patience = 0;    ///< evaluations without a better one that end the run; 0: none does
  bool activation_checkpointing = false;  ///< TextModel::set_recompute()
  DType compute = DType::kF32;            ///< of the products of dense linears and the head: kF32 or kBF16

  std::filesystem::path output;       ///< directory of checkpoint, log, tokenizer and exported model
  double checkpoint_minutes = 3;      ///< 0: one after each step
  std::int64_t keep_checkpoints = 1;  ///< the newest and so many less one older ones
  std::int64_t log_every = 10, evaluate_every = 250;
  std::int64_t sample_every = 0;  ///< steps from a sample of text to the next; 0: none
  std::string sample_prompt;      ///< empty: the begin-of-text token alone
  std::int64_t sample_tokens = 48;
  bool keep_best = false;  ///< the weights of the best validation are kept, and are the result

  /// Throws Error(kNotFound | kIo) for the file and Error(kInvalidArgument) "file:line: …" for yaml that
  /// cannot be parsed, a second document, an unknown, missing or repeated key, or a value that breaks a rule.
  static TrainConfig from_yaml_file(const std::filesystem::path& path);
  /// The same from text; `name` stands for the file in messages.
  static TrainConfig from_yaml(std::string_view text, const std::string& name);
  /// Throws Error(kInvalidArgument) naming key and rule.
  void validate() const;
  /// Whether files can hold the trained model (model_files() in export.hpp says which); not of an adapter.
  bool exports() const;
  /// How the texts are read.
  TextOptions text_options() const;
  /// PrecisionPolicy::training(compute).
  PrecisionPolicy precision() const { return PrecisionPolicy::training(compute); }
};

}  // namespace bitnet::training
