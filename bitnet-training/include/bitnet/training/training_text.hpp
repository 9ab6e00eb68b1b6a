#pragma once
// Files of training text: plain text, JSONL of text, of prompts with responses and of chats, and token
// shards. What each becomes is described in docs/guides/training.md. Functions of their arguments and files,
// thread-safe; of two that make one shard at once the last one stays.
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/text/chat_template.hpp"
#include "bitnet/training/documents.hpp"

namespace bitnet::training {

enum class TextFormat : std::uint8_t {
  kAuto,   ///< JSONL where the name ends in ".jsonl", a shard where the file begins as one, else text
  kText,   ///< plain text
  kJsonl,  ///< an object a line
};
std::string_view to_string(TextFormat format) noexcept;  ///< "auto", "text", "jsonl"
/// Throws Error(kInvalidArgument) listing the formats.
TextFormat text_format_from_string(std::string_view name);

/// What becomes of a prompt with its response, or a chat, that is longer than a training sequence.
enum class LongRecords : std::uint8_t {
  kRefuse,  ///< an error with its line
  kCut,     ///< cut into sequences, as documents of plain text are
  kSkip,    ///< left out
};
std::string_view to_string(LongRecords what) noexcept;  ///< "refuse", "cut", "skip"
/// Throws Error(kInvalidArgument) listing what there is.
LongRecords long_records_from_string(std::string_view name);

/// One line of JSONL: {"text": …}, {"prompt": …, "response": …} or {"messages": [{"role": …, "content": …}]}.
struct TextRecord {
  enum class Kind : std::uint8_t { kText, kResponse, kChat };
  Kind kind = Kind::kText;
  std::int64_t line = 0;  ///< from 1 on
  std::string prompt;     ///< of kResponse; may be empty
  std::string text;       ///< the text or the response
  std::vector<ChatMessage> messages;
};

/// The records of JSONL; empty lines count as lines only. Throws Error(kInvalidArgument) with "line N" for
/// what is not JSON, nested too deeply, of none of the three forms or without anything to learn, and, unless
/// `ignore_unknown_keys`, for other keys.
std::vector<TextRecord> parse_records(std::string_view jsonl, bool ignore_unknown_keys = false);

/// A record's tokens without BOS, and which of them are learned.
struct RecordTokens {
  std::vector<TokenId> tokens;
  std::vector<std::uint8_t> learned;
};

/// A text ends with the tokenizer's end-of-text token and is learned whole, of a prompt and its response the
/// response and that token. A chat is what inference sees turn by turn: `chat` renders each message, and an
/// assistant's turn is its opening as for generation, then what is learned: the message and the token that
/// ends it. `chat` may be null where there are no chats. Throws what encoding throws, and Error(kUnsupported)
/// for a template whose messages do not follow each other.
RecordTokens encode_record(const TextRecord& record, const Tokenizer& tokenizer, const ChatTemplate* chat);

/// How the texts of a run are read.
struct TextOptions {
  TextFormat format = TextFormat::kAuto;
  std::string document_separator;  ///< of plain text; empty: one stream
  /// By name; empty: the one that the tokenizer brings, which has to be a known one.
  std::string chat_template;
  LongRecords long_records = LongRecords::kRefuse;
  bool ignore_unknown_keys = false;
  std::int64_t length = 0;       ///< tokens of a training sequence
  std::filesystem::path shards;  ///< directory in which the tokens of each text are kept; empty: nowhere
};

/// Tokens of one file, in memory or mapped.
struct TrainingText {
  DocumentsView documents;
  bool packs = false;  ///< documents to be packed; false: one stream
  std::shared_ptr<const void> owner;
};

/// Reads, tokenises and checks a file, or maps the shard that it is or that options.shards has of it;
/// `message` (may be null) is told what is left out and which shard is made. The shard's name is the file's
/// and a hash of everything that it depends on, so that another text or option makes another. Throws Error
/// naming the file: kInvalidArgument for one that is empty, not text or breaks the rules above, kNotFound,
/// kIo, and what TokenShard::open() throws.
TrainingText load_training_text(const ExecutionContext& context, const Tokenizer& tokenizer,
                                const std::filesystem::path& path, const TextOptions& options,
                                const std::function<void(const std::string&)>& message = nullptr);

/// Calls `feed` with each text in a file, from which a vocabulary is to be learnt. Throws like
/// load_training_text(), and Error(kInvalidArgument) for a shard.
void for_each_text(const std::filesystem::path& path, const TextOptions& options,
                   const std::function<void(std::string_view)>& feed);

}  // namespace bitnet::training
