// JSONL of training text: lines → records → tokens with a loss mask. Files and shards are training_text.cpp.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>

#include "bitnet/core/error.hpp"
#include "bitnet/training/training_text.hpp"

namespace bitnet::training {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 32;

[[noreturn]] void bad(const std::string& message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kInvalidArgument, message, where);
}

/// Messages of the parser begin with "[json.exception.parse_error.101] ", which tells people nothing.
std::string json_message(const Json::exception& e) {
  const std::string text = e.what();
  const std::size_t end = text.find("] ");
  return end == std::string::npos ? text : text.substr(end + 2);
}

/// One line. A NUL would end the text for the parser, a repeated key would win without a word.
Json parse_line(std::string_view line) {
  if (line.find('\0') != std::string_view::npos) bad("not JSON: a NUL byte");
  std::vector<std::vector<std::string>> keys;  // of each open object
  const auto check = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > kMaxDepth) bad("more than " + std::to_string(kMaxDepth) + " nested levels");
    if (event == Json::parse_event_t::object_start) keys.emplace_back();
    if (event == Json::parse_event_t::object_end) keys.pop_back();
    if (event == Json::parse_event_t::key) {
      const auto name = value.get<std::string>();
      auto& known = keys.back();
      if (std::find(known.begin(), known.end(), name) != known.end()) bad("key '" + name + "' occurs twice");
      known.push_back(name);
    }
    return true;
  };
  try {
    return Json::parse(line.begin(), line.end(), check);
  } catch (const Json::exception& e) {
    bad("not JSON: " + json_message(e));
  }
}

std::string text_at(const Json& object, const char* key) {
  const auto value = object.find(key);
  if (value == object.end()) bad("lacks '" + std::string(key) + "'");
  if (!value->is_string()) bad("'" + std::string(key) + "': expected text, got " + value->type_name());
  return value->get<std::string>();
}

void refuse_unknown(const Json& object, std::initializer_list<std::string_view> known) {
  std::string all;
  for (const std::string_view k : known) all += (all.empty() ? "" : ", ") + std::string(k);
  for (const auto& [key, unused] : object.items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      bad("unknown key '" + key + "'; known here are " + all +
          " (data.ignore_unknown_keys: true allows others)");
}

std::vector<ChatMessage> messages_of(const Json& value, bool ignore_unknown_keys) {
  if (!value.is_array() || value.empty()) bad("'messages': expected a list of {\"role\": …, \"content\": …}");
  std::vector<ChatMessage> messages;
  bool answers = false;
  for (const Json& m : value)
    with_context("message " + std::to_string(messages.size() + 1), [&] {
      if (!m.is_object()) bad(std::string("expected an object, got ") + m.type_name());
      messages.push_back({text_at(m, "role"), text_at(m, "content")});
      const std::string& role = messages.back().role;
      if (role != "system" && role != "user" && role != "assistant")
        bad("unknown role '" + role + "' (expected system, user or assistant)");
      answers = answers || role == "assistant";
      if (!ignore_unknown_keys) refuse_unknown(m, {"role", "content"});
    });
  if (!answers) bad("no message is the assistant's: there is nothing to learn");
  return messages;
}

TextRecord record_of(const Json& object, bool ignore_unknown_keys) {
  if (!object.is_object()) bad(std::string("expected an object, got ") + object.type_name());
  const bool text = object.contains("text"), chat = object.contains("messages"),
             response = object.contains("prompt") || object.contains("response");
  if (text + chat + response != 1)
    bad(std::string(text || chat || response ? "has several" : "has none") +
        " of 'text', 'prompt' with 'response', and 'messages'");
  TextRecord record;
  if (text) {
    record.text = text_at(object, "text");
    if (record.text.empty()) bad("'text' is empty");
    if (!ignore_unknown_keys) refuse_unknown(object, {"text"});
  } else if (response) {
    record.kind = TextRecord::Kind::kResponse;
    record.prompt = text_at(object, "prompt");
    record.text = text_at(object, "response");
    if (record.text.empty()) bad("'response' is empty: there is nothing to learn");
    if (!ignore_unknown_keys) refuse_unknown(object, {"prompt", "response"});
  } else {
    record.kind = TextRecord::Kind::kChat;
    record.messages = messages_of(object["messages"], ignore_unknown_keys);
    if (!ignore_unknown_keys) refuse_unknown(object, {"messages"});
  }
  return record;
}

bool starts_with(std::span<const TokenId> ids, std::span<const TokenId> start) {
  return ids.size() >= start.size() && std::equal(start.begin(), start.end(), ids.begin());
}

void append(RecordTokens& to, std::span<const TokenId> ids, bool learned) {
  to.tokens.insert(to.tokens.end(), ids.begin(), ids.end());
  to.learned.insert(to.learned.end(), ids.size(), learned ? 1 : 0);
}

std::string_view without_blanks(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\n\v\f\r";
  const std::size_t begin = text.find_first_not_of(kBlanks);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(kBlanks) + 1 - begin);
}

/// The assistant's turn, rendered as `turn`, where generation begins behind `opening`. A vocabulary may join
/// the end of the opening and the begin of the message to one token; inference never sees that one, so the
/// message is then encoded alone.
void append_answer(const ChatMessage& message, const Tokenizer& tokenizer, std::span<const TokenId> turn,
                   std::span<const TokenId> opening, RecordTokens& to) {
  append(to, opening, false);
  if (starts_with(turn, opening)) {
    append(to, turn.subspan(opening.size()), true);
    return;
  }
  append(to, tokenizer.encode(without_blanks(message.content), {.add_bos = false}), true);
  append(to, turn.last(1), true);  // the token that ends a turn
}

RecordTokens encode_chat(const std::vector<ChatMessage>& messages, const Tokenizer& tokenizer,
                         const ChatTemplate& chat) {
  RecordTokens all;
  const std::vector<TokenId> stops = chat.stop_tokens(tokenizer);
  const auto of = [&](std::size_t count, bool opened) {
    return chat.encode(tokenizer, std::span(messages).first(count), opened);
  };
  std::vector<TokenId> before = of(0, false);
  const bool bos = tokenizer.adds_bos() && tokenizer.bos();  // packing puts it before each document
  append(all, std::span<const TokenId>(before).subspan(bos && !before.empty() ? 1 : 0), false);
  for (std::size_t i = 0; i < messages.size(); ++i) {
    std::vector<TokenId> with = of(i + 1, false);
    const auto turn = std::span<const TokenId>(with).subspan(std::min(before.size(), with.size()));
    if (!starts_with(with, before) || turn.empty() ||
        std::find(stops.begin(), stops.end(), turn.back()) == stops.end())
      throw Error(ErrorCode::kUnsupported,
                  "chat template '" + std::string(chat.name()) +
                      "' does not write message after message; it cannot be learned");
    if (messages[i].role == "assistant") {
      const std::vector<TokenId> opened = of(i, true);
      append_answer(messages[i], tokenizer, turn, std::span<const TokenId>(opened).subspan(before.size()),
                    all);
    } else {
      append(all, turn, false);
    }
    before = std::move(with);
  }
  return all;
}

}  // namespace

std::vector<TextRecord> parse_records(std::string_view jsonl, bool ignore_unknown_keys) {
  std::vector<TextRecord> records;
  std::int64_t number = 0;
  for (std::size_t at = 0; at < jsonl.size();) {
    const std::size_t end = std::min(jsonl.find('\n', at), jsonl.size());
    const std::string_view line = jsonl.substr(at, end - at);
    at = end + 1;
    ++number;
    if (without_blanks(line).empty()) continue;
    with_context("line " + std::to_string(number),
                 [&] { records.push_back(record_of(parse_line(line), ignore_unknown_keys)); });
    records.back().line = number;
  }
  return records;
}

RecordTokens encode_record(const TextRecord& record, const Tokenizer& tokenizer, const ChatTemplate* chat) {
  if (record.kind == TextRecord::Kind::kChat) {
    if (!chat) throw Error(ErrorCode::kInvalidArgument, "a chat needs a chat template");
    return encode_chat(record.messages, tokenizer, *chat);
  }
  RecordTokens all;
  append(all, tokenizer.encode(record.prompt, {.add_bos = false}), false);
  append(all, tokenizer.encode(record.text, {.add_bos = false}), true);
  if (!tokenizer.eos().empty()) append(all, tokenizer.eos().first(1), true);
  return all;
}

}  // namespace bitnet::training
