#pragma once
// Chat formats by name. Templates are not interpreted (they are Jinja programs): the known ones are
// recognised.
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/text/tokenizer.hpp"

namespace bitnet {

struct ChatMessage {
  std::string role;  ///< "system", "user" or "assistant"
  std::string content;
};

/// How messages become tokens. Immutable, thread-safe.
class ChatTemplate {
 public:
  virtual ~ChatTemplate() = default;
  /// Names for --chat-template: "bitnet" (2B-4T), "llama3", ….
  static std::vector<std::string_view> names();
  /// Throws Error(kNotFound) listing names().
  static std::shared_ptr<const ChatTemplate> by_name(std::string_view name);
  /// Recognises the tokenizer's own template; `architecture` (either format's name) overrides the wrong one
  /// in the official 2B-4T GGUF. Throws Error(kUnsupported) for an unknown one, Error(kNotFound) for a base
  /// model without; both say how to choose (`run`, or --chat-template NAME).
  static std::shared_ptr<const ChatTemplate> for_model(const Tokenizer& tokenizer,
                                                       std::string_view architecture);

  virtual std::string_view name() const noexcept = 0;
  /// The format as a Jinja template, for files that other programs read; for_model() recognises it.
  virtual std::string_view source() const noexcept = 0;
  /// Ids of the conversation. Message text is parsed for special tokens only if `parse_special`. With
  /// `add_generation_prompt` the assistant's turn is opened. Throws Error(kInvalidArgument) on an unknown
  /// role and Error(kUnsupported) when the vocabulary lacks a token that the format needs.
  virtual std::vector<TokenId> encode(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                                      bool add_generation_prompt = true,
                                      bool parse_special = false) const = 0;
  /// Tokens that end an assistant turn.
  virtual std::vector<TokenId> stop_tokens(const Tokenizer& tokenizer) const = 0;
};

}  // namespace bitnet
