#pragma once
// What a run reads before its first step: vocabulary and texts. The steps are trainer.cpp.
#include <memory>

#include "bitnet/training/data.hpp"
#include "bitnet/training/trainer.hpp"
#include "bitnet/training/training_text.hpp"

namespace bitnet::training {

/// The tokenizer of the run: the given one, that of the base or the teacher, of the checkpoint being resumed,
/// or a new one. Writes nothing. A file that a run without a checkpoint left behind may be of another text or
/// size, and is not used. Throws Error.
std::shared_ptr<const Tokenizer> tokenizer_of(const TrainConfig& c, const TrainCallbacks& callbacks,
                                              bool resumed);

/// Writes the run's vocabulary into its output. Throws Error(kIo).
void keep_tokenizer(const TrainConfig& c, const Tokenizer& tokenizer);

/// The token before a document's first; −1 where the vocabulary adds none.
std::int32_t bos_of(const Tokenizer& tokenizer);

/// The texts of a run.
struct RunTexts {
  TrainingText train, validation, held_out;  ///< the last without tokens where none is named
};

/// Reads them; those to be scored hold at least one window or packed row. Shards are not made where `dry`.
RunTexts texts_of(const TrainConfig& c, const ExecutionContext& context, const Tokenizer& tokenizer,
                  const TrainCallbacks& callbacks, bool dry);

/// The tokenizer for the model's files: of a run that trains on chats the one given with the template of
/// `data.chat_template`, so that `bitnet chat` needs no option; of others as it is, since a template would
/// promise what the model has not learned.
std::shared_ptr<const Tokenizer> tokenizer_for_files(const TrainConfig& c,
                                                     std::shared_ptr<const Tokenizer> tokenizer,
                                                     const TrainingText& train);

/// What a text is made of, for the log and for dry runs.
struct TextFigures {
  CorpusStatistics corpus;   ///< of its documents; a stream is one
  std::int64_t learned = 0;  ///< tokens that are targets
};
TextFigures figures_of(const TrainingText& text, const Tokenizer& tokenizer);

/// Deals the sequences of a text, packed where it has documents. Throws Error(kInvalidArgument) when there is
/// not one. The text must outlive it.
std::unique_ptr<Sampler> sampler_of(const TrainConfig& c, const TrainingText& text, std::int32_t bos);

}  // namespace bitnet::training
