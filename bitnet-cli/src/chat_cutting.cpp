// See chat_cutting.hpp.
#include "chat_cutting.hpp"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/core/text/utf8.hpp"

namespace bitnet::cli {
namespace {

bool continues_a_character(char c) { return (static_cast<unsigned char>(c) & 0xC0u) == 0x80u; }

/// The text of `n` of the ids of a valid text, without the halves of characters at the cut.
std::string part_of(const Tokenizer& tokenizer, const std::vector<TokenId>& ids, std::int64_t n,
                    SequenceSide cut, bool special) {
  std::vector<TokenId> kept = ids;
  truncate(kept, n, cut);
  std::string text;
  for (const TokenId id : kept) text += tokenizer.token_bytes(id, special);
  // Only of the first token; encoding puts it there again.
  const bool has_start = cut == SequenceSide::kRight || kept.size() == ids.size();
  if (has_start && tokenizer.strips_leading_space() && text.starts_with(' ')) text.erase(0, 1);
  std::size_t begin = 0;
  while (begin < text.size() && continues_a_character(text[begin])) ++begin;
  text.erase(0, begin);
  if (const std::size_t bad = text::find_invalid_utf8(text); bad != std::string::npos) text.resize(bad);
  return text;
}

}  // namespace

CutChat encode_chat_within(const ChatTemplate& format, const Tokenizer& tokenizer,
                           std::vector<ChatMessage> messages, bool parse_special, std::int64_t most,
                           SequenceSide side) {
  CutChat chat{format.encode(tokenizer, messages, true, parse_special), 0};
  const auto whole = static_cast<std::int64_t>(chat.ids.size());
  if (whole <= most) return chat;
  std::vector<std::vector<TokenId>> texts;
  for (const ChatMessage& m : messages)
    texts.push_back(tokenizer.encode(m.content, {.add_bos = false, .parse_special = parse_special}));
  const std::vector<std::int64_t> lengths = lengths_of(texts);
  std::int64_t left = std::reduce(lengths.begin(), lengths.end()) - (whole - most);
  // Tokens may join differently in a shorter text: what is still too much then goes, too.
  while (left >= 0) {
    const std::vector<std::int64_t> kept = truncate_longest_first(lengths, left);
    for (std::size_t i = 0; i < texts.size(); ++i)
      if (kept[i] < lengths[i])
        messages[i].content = part_of(tokenizer, texts[i], kept[i], side, parse_special);
    chat.ids = format.encode(tokenizer, messages, true, parse_special);
    const auto n = static_cast<std::int64_t>(chat.ids.size());
    chat.cut = whole - n;
    if (n <= most) return chat;
    if (left == 0) break;
    left = std::max<std::int64_t>(left - (n - most), 0);
  }
  throw Error(ErrorCode::kInvalidArgument,
              "the chat has " + std::to_string(whole) + " tokens of which at least " +
                  std::to_string(whole - std::reduce(lengths.begin(), lengths.end())) +
                  " are no text of its messages: expected at most " + std::to_string(most));
}

}  // namespace bitnet::cli
