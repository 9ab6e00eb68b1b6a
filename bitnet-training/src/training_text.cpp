// Files of training text → tokens, with the shards in which they are kept. The lines of JSONL are
// text_records.cpp, a shard's layout is token_shard.cpp.
#include "bitnet/training/training_text.hpp"

#include <algorithm>
#include <cstdio>
#include <string>

#include "bitnet/core/error.hpp"
#include "bitnet/core/hash64.hpp"
#include "bitnet/core/io/atomic_file.hpp"
#include "bitnet/core/text/utf8.hpp"
#include "bitnet/training/token_shard.hpp"

namespace bitnet::training {
namespace {

using Message = std::function<void(const std::string&)>;

std::string quoted(const std::filesystem::path& path) { return "'" + path.string() + "'"; }

bool is_jsonl(const std::filesystem::path& path, TextFormat format) {
  return format == TextFormat::kJsonl || (format == TextFormat::kAuto && path.extension() == ".jsonl");
}

/// A file that has something in it and is UTF-8 text.
std::string read_text(const std::filesystem::path& path) {
  std::string text = read_file(path);
  const auto refuse = [&](const std::string& why) {
    throw Error(ErrorCode::kInvalidArgument, quoted(path) + " " + why);
  };
  if (text.find_first_not_of(" \t\r\n") == std::string::npos)
    refuse(text.empty() ? "is empty" : "has nothing but blanks");
  if (const std::size_t nul = text.find('\0'); nul != std::string::npos)
    refuse("is no text: byte " + std::to_string(nul) + " is a NUL");
  if (const std::size_t at = text::find_invalid_utf8(text); at != std::string_view::npos) {
    const auto line = std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n') + 1;
    refuse("is no text: invalid UTF-8 at byte " + std::to_string(at) + ", line " + std::to_string(line));
  }
  return text;
}

std::shared_ptr<const ChatTemplate> template_of(const std::vector<TextRecord>& records,
                                                const Tokenizer& tokenizer, const std::string& name) {
  const auto chat = std::find_if(records.begin(), records.end(),
                                 [](const TextRecord& r) { return r.kind == TextRecord::Kind::kChat; });
  if (chat == records.end()) return nullptr;
  if (!name.empty()) return ChatTemplate::by_name(name);
  if (!tokenizer.chat_template().empty()) return ChatTemplate::for_model(tokenizer, "bitnet-b1.58");
  std::string names;
  for (const std::string_view n : ChatTemplate::names())
    names += (names.empty() ? "" : ", ") + std::string(n);
  throw Error(ErrorCode::kInvalidArgument,
              "line " + std::to_string(chat->line) +
                  ": a chat, but the tokenizer brings no chat template: set data.chat_template (" + names +
                  ")");
}

/// Whether a record is left out; throws where it may not be as long as it is.
bool too_long(const TextRecord& record, const RecordTokens& ids, const Tokenizer& tokenizer,
              const TextOptions& options) {
  if (record.kind == TextRecord::Kind::kText || options.long_records == LongRecords::kCut) return false;
  const auto positions =
      static_cast<std::int64_t>(ids.tokens.size()) - (tokenizer.adds_bos() && tokenizer.bos() ? 0 : 1);
  if (positions <= options.length) return false;
  if (options.long_records == LongRecords::kSkip) return true;
  throw Error(ErrorCode::kInvalidArgument,
              std::to_string(positions) + " tokens; a sequence has " + std::to_string(options.length) +
                  " (training.length; data.long_records: cut or skip allows longer ones)");
}

Documents documents_of_records(const ExecutionContext& context, const Tokenizer& tokenizer,
                               std::string_view jsonl, const TextOptions& options, const Message& message) {
  const std::vector<TextRecord> records = parse_records(jsonl, options.ignore_unknown_keys);
  const auto chat = template_of(records, tokenizer, options.chat_template);
  std::vector<RecordTokens> encoded(records.size());
  std::vector<std::uint8_t> skipped(records.size(), 0);
  context.parallel_for(records.size(), 8, [&](std::size_t begin, std::size_t end) {
    for (std::size_t i = begin; i < end; ++i)
      with_context("line " + std::to_string(records[i].line), [&] {
        encoded[i] = encode_record(records[i], tokenizer, chat.get());
        skipped[i] = too_long(records[i], encoded[i], tokenizer, options) ? 1 : 0;
      });
  });
  Documents all;
  bool masked = false;
  for (std::size_t i = 0; i < records.size(); ++i) {
    if (skipped[i] != 0) continue;
    const RecordTokens& r = encoded[i];
    all.tokens.insert(all.tokens.end(), r.tokens.begin(), r.tokens.end());
    all.learned.insert(all.learned.end(), r.learned.begin(), r.learned.end());
    all.ends.push_back(static_cast<std::int64_t>(all.tokens.size()));
    masked = masked || std::find(r.learned.begin(), r.learned.end(), 0) != r.learned.end();
  }
  if (!masked) all.learned.clear();
  const auto count = std::count(skipped.begin(), skipped.end(), 1);
  if (all.ends.empty())
    throw Error(ErrorCode::kInvalidArgument,
                "each of its " + std::to_string(count) + " records is longer than training.length");
  if (count > 0 && message)
    message(std::to_string(count) + " of " + std::to_string(records.size()) +
            " records are longer than training.length and left out");
  return all;
}

TrainingText in_memory(Documents documents, bool packs) {
  const auto owner = std::make_shared<const Documents>(std::move(documents));
  return {owner->view(), packs, owner};
}

TrainingText mapped(const std::filesystem::path& path, const Tokenizer& tokenizer) {
  const auto shard = TokenShard::open(path, tokenizer);
  return {shard->documents(), shard->packs(), shard};
}

TrainingText tokenized(const ExecutionContext& context, const Tokenizer& tokenizer,
                       const std::filesystem::path& path, std::string_view text, const TextOptions& options,
                       const Message& message) {
  return with_context("tokenising " + quoted(path), [&] {
    if (is_jsonl(path, options.format))
      return in_memory(documents_of_records(context, tokenizer, text, options, message), true);
    if (!options.document_separator.empty())
      return in_memory(documents_of_text(context, tokenizer, text, options.document_separator), true);
    Documents all;
    all.tokens = tokenize_text(context, tokenizer, text);
    all.ends.push_back(static_cast<std::int64_t>(all.tokens.size()));
    return in_memory(std::move(all), false);
  });
}

/// Where the tokens of this text under these options are kept.
std::filesystem::path shard_path(const Tokenizer& tokenizer, const std::filesystem::path& path,
                                 std::string_view text, const TextOptions& o) {
  Hash64 hash;
  hash.add(text).add(tokenizer_hash(tokenizer));
  if (is_jsonl(path, o.format)) {
    hash.add("jsonl").add(o.chat_template).add(to_string(o.long_records));
    hash.add(std::uint64_t{o.ignore_unknown_keys});
    if (o.long_records != LongRecords::kCut) hash.add(static_cast<std::uint64_t>(o.length));
  } else {
    hash.add("text").add(o.document_separator);
  }
  char hex[17];
  std::snprintf(hex, sizeof hex, "%016llx", static_cast<unsigned long long>(hash.value()));
  return o.shards / (path.stem().string() + "-" + hex + ".tokens");
}

}  // namespace

std::string_view to_string(TextFormat format) noexcept {
  switch (format) {
    case TextFormat::kAuto:
      return "auto";
    case TextFormat::kText:
      return "text";
    case TextFormat::kJsonl:
      return "jsonl";
  }
  return "unknown";
}

TextFormat text_format_from_string(std::string_view name) {
  for (const auto f : {TextFormat::kAuto, TextFormat::kText, TextFormat::kJsonl})
    if (to_string(f) == name) return f;
  throw Error(ErrorCode::kInvalidArgument,
              "unknown format '" + std::string(name) + "': expected auto, text or jsonl");
}

std::string_view to_string(LongRecords what) noexcept {
  switch (what) {
    case LongRecords::kRefuse:
      return "refuse";
    case LongRecords::kCut:
      return "cut";
    case LongRecords::kSkip:
      return "skip";
  }
  return "unknown";
}

LongRecords long_records_from_string(std::string_view name) {
  for (const auto w : {LongRecords::kRefuse, LongRecords::kCut, LongRecords::kSkip})
    if (to_string(w) == name) return w;
  throw Error(ErrorCode::kInvalidArgument, "'" + std::string(name) + "': expected refuse, cut or skip");
}

TrainingText load_training_text(const ExecutionContext& context, const Tokenizer& tokenizer,
                                const std::filesystem::path& path, const TextOptions& options,
                                const std::function<void(const std::string&)>& message) {
  if (options.format == TextFormat::kAuto && is_token_shard(path)) return mapped(path, tokenizer);
  const std::string text = read_text(path);
  if (options.shards.empty()) return tokenized(context, tokenizer, path, text, options, message);
  const std::filesystem::path shard = shard_path(tokenizer, path, text, options);
  if (!std::filesystem::exists(shard)) {
    const TrainingText made = tokenized(context, tokenizer, path, text, options, message);
    std::filesystem::create_directories(options.shards);
    write_token_shard(shard, made.documents, made.packs, tokenizer);
    if (message) message("the tokens of " + quoted(path) + " are kept as " + quoted(shard));
  }
  return mapped(shard, tokenizer);
}

void for_each_text(const std::filesystem::path& path, const TextOptions& options,
                   const std::function<void(std::string_view)>& feed) {
  if (options.format == TextFormat::kAuto && is_token_shard(path))
    throw Error(ErrorCode::kInvalidArgument,
                quoted(path) + " holds tokens: name the tokenizer that made them (data.tokenizer)");
  const std::string text = read_text(path);
  with_context(quoted(path), [&] {
    if (!is_jsonl(path, options.format)) {
      feed(text);
      return;
    }
    for (const TextRecord& r : parse_records(text, options.ignore_unknown_keys)) {
      if (!r.prompt.empty()) feed(r.prompt);
      if (!r.text.empty()) feed(r.text);
      for (const ChatMessage& m : r.messages) feed(m.content);
    }
  });
}

}  // namespace bitnet::training
