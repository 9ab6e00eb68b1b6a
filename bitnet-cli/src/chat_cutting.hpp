#pragma once
// Chats that are too long for the context: which messages give way, and how far. Plain prompts are cut by
// core's truncate().
#include <cstdint>
#include <span>
#include <vector>

#include "bitnet/core/text/chat_template.hpp"
#include "bitnet/core/text/sequences.hpp"

namespace bitnet::cli {

struct CutChat {
  std::vector<TokenId> ids;  ///< of the whole prompt
  std::int64_t cut = 0;      ///< tokens that it has fewer than the chat as it was
};

/// The ids of `messages` with the assistant's turn opened, at most `most` of them. What is too much is taken
/// off the messages' texts, from the longest first until they are alike (truncate_longest_first()), of each
/// at its `side` and at the border of a character. Throws Error(kInvalidArgument) with both numbers where the
/// messages' frame alone is longer than `most`, and what ChatTemplate::encode throws.
CutChat encode_chat_within(const ChatTemplate& format, const Tokenizer& tokenizer,
                           std::vector<ChatMessage> messages, bool parse_special, std::int64_t most,
                           SequenceSide side);

}  // namespace bitnet::cli
