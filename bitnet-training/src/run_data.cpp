// Vocabulary and texts of a run.
#include "run_data.hpp"

#include <algorithm>
#include <string>

#include "bitnet/core/error.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/text/bpe_trainer.hpp"

namespace bitnet::training {
namespace {

constexpr const char* kTokenizerFile = "tokenizer.json";

/// Ends each turn in core's chat formats. Text cannot spell it, so that tokens have it where there are chats,
/// in shards, too, which do not say what they were made of.
constexpr const char* kTurnEnd = "<|eot_id|>";
/// Control tokens that the formats are made of, for a vocabulary that is learnt for chats.
constexpr const char* kChatTokens[] = {kTurnEnd, "<|start_header_id|>", "<|end_header_id|>"};

/// A text that is scored has a window or a row.
void check_scored(const TrainingText& text, const std::filesystem::path& path, std::int64_t length,
                  const Tokenizer& tokenizer) {
  const auto tokens = static_cast<std::int64_t>(text.documents.tokens.size());
  const std::int64_t least = text.packs ? 2 : length + 1;
  if (tokens < least)
    throw Error(ErrorCode::kInvalidArgument, "'" + path.string() + "' has " + std::to_string(tokens) +
                                                 " tokens; one window needs " + std::to_string(least));
  if (text.packs && PackedRows(text.documents, length, bos_of(tokenizer)).size() == 0)
    throw Error(ErrorCode::kInvalidArgument, "'" + path.string() + "' has no token that can be scored");
}

}  // namespace

std::shared_ptr<const Tokenizer> tokenizer_of(const TrainConfig& c, const TrainCallbacks& callbacks,
                                              bool resumed) {
  const std::filesystem::path given = !c.tokenizer.empty() ? c.tokenizer
                                      : c.lora             ? c.lora->base
                                      : !c.base.empty()    ? c.base
                                      : c.distillation     ? c.distillation->teacher
                                                           : std::filesystem::path();
  if (!given.empty()) return Tokenizer::load(given);
  if (resumed && std::filesystem::exists(c.output / kTokenizerFile)) return Tokenizer::load(c.output);
  if (callbacks.message)
    callbacks.message("learning a vocabulary of " + std::to_string(c.model.vocab_size) + " from " +
                      c.train.string());
  BpeTrainerOptions options;
  options.vocab_size = c.model.vocab_size;
  if (!c.chat_template.empty())
    options.special_tokens.insert(options.special_tokens.end(), std::begin(kChatTokens),
                                  std::end(kChatTokens));
  BpeTrainer trainer(options);
  for_each_text(c.train, c.text_options(), [&](std::string_view text) { trainer.feed(text); });
  return Tokenizer::from_json(trainer.train());
}

void keep_tokenizer(const TrainConfig& c, const Tokenizer& tokenizer) {
  write_file(c.output / "tokenizer_config.json", tokenizer.config_json());
  write_file(c.output / kTokenizerFile, tokenizer.to_json());
}

std::int32_t bos_of(const Tokenizer& tokenizer) {
  return tokenizer.adds_bos() && tokenizer.bos() ? *tokenizer.bos() : -1;
}

RunTexts texts_of(const TrainConfig& c, const ExecutionContext& context, const Tokenizer& tokenizer,
                  const TrainCallbacks& callbacks, bool dry) {
  TextOptions options = c.text_options();
  if (dry) options.shards.clear();
  const auto read = [&](const std::filesystem::path& path) {
    return load_training_text(context, tokenizer, path, options, callbacks.message);
  };
  RunTexts texts;
  texts.train = read(c.train);
  texts.validation = read(c.validation);
  check_scored(texts.validation, c.validation, c.length, tokenizer);
  if (!c.held_out.empty()) {
    texts.held_out = read(c.held_out);
    check_scored(texts.held_out, c.held_out, c.length, tokenizer);
  }
  return texts;
}

std::shared_ptr<const Tokenizer> tokenizer_for_files(const TrainConfig& c,
                                                     std::shared_ptr<const Tokenizer> tokenizer,
                                                     const TrainingText& train) {
  const auto turn_end = tokenizer->find(kTurnEnd);
  const auto& tokens = train.documents.tokens;
  if (c.chat_template.empty() || !turn_end ||
      std::find(tokens.begin(), tokens.end(), *turn_end) == tokens.end())
    return tokenizer;
  return tokenizer->with_chat_template(std::string(ChatTemplate::by_name(c.chat_template)->source()));
}

TextFigures figures_of(const TrainingText& text, const Tokenizer& tokenizer) {
  const DocumentsView& d = text.documents;
  TextFigures f{corpus_statistics(d.tokens, d.ends, tokenizer.vocab_size()),
                static_cast<std::int64_t>(d.tokens.size())};
  if (!d.learned.empty()) f.learned = std::count(d.learned.begin(), d.learned.end(), std::uint8_t{1});
  return f;
}

std::unique_ptr<Sampler> sampler_of(const TrainConfig& c, const TrainingText& text, std::int32_t bos) {
  return with_context("'" + c.train.string() + "'", [&]() -> std::unique_ptr<Sampler> {
    if (text.packs) return std::make_unique<PackedSampler>(text.documents, c.length, bos, c.seed);
    return std::make_unique<WindowSampler>(text.documents.tokens, c.length, bos, c.seed);
  });
}

}  // namespace bitnet::training
