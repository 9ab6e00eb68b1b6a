#pragma once
// What a checkpoint says of the run that it is of, by name.
#include <map>
#include <string>

#include "bitnet/training/config.hpp"
#include "bitnet/training/training_text.hpp"

namespace bitnet::training {

/// Name of vocabulary_hash() in an identity.
inline constexpr const char* kVocabulary = "the vocabulary";

/// Of what each id stands for.
std::string vocabulary_hash(const Tokenizer& tokenizer);

/// Without these a resumed run would not be the run that was stopped.
std::map<std::string, std::string> identity_of(const TrainConfig& c, const Tokenizer& tokenizer,
                                               const TrainingText& text);
/// Names in settings of what validations score: those before and after a change cannot be compared.
inline constexpr const char* kValidation = "data.validation";
inline constexpr const char* kValidationTokens = "data.validation_tokens";
/// What somebody may want to change in the middle of a run.
std::map<std::string, std::string> settings_of(const TrainConfig& c, const TrainingText& validation);
/// The quantiser that an identity's "model's quantiser" describes. Throws Error(kUnsupported) for words that
/// identity_of() does not write.
QuantizerOptions described_quantizer(const std::string& description);
/// What checkpoints lack that are older than a part of the identity: the only value that it then had, and of
/// the vocabulary, which nobody can know any more, that of `ours`.
void add_older_identity(std::map<std::string, std::string>& identity,
                        const std::map<std::string, std::string>& ours);

}  // namespace bitnet::training
