#pragma once
// Text of a running generation: tokens → whole characters → stop strings. Never emits half a UTF-8 character
// nor a part of a stop string, also when either lies across tokens. Not thread-safe: an object belongs to one
// generation.
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/text/tokenizer.hpp"

namespace bitnet::inference {

/// Finds stop strings in a stream of text. Holds back the longest end that could be the begin of one.
class StopMatcher {
 public:
  /// Throws Error(kInvalidArgument) on an empty stop string.
  explicit StopMatcher(std::vector<std::string> stops);
  /// Appends `text`; returns what is certain to be before a stop string. The stop string that is complete
  /// first ends the stream (of several at once the one that begins first): text before it, and from then on
  /// nothing.
  std::string push(std::string_view text);
  /// At the end of the stream: what was held back (nothing after a match).
  std::string finish();
  bool matched() const noexcept { return matched_; }

 private:
  /// Where the stop string begins that is complete first after `from` bytes of pending_.
  std::optional<std::size_t> find_completed(std::size_t from) const;
  std::vector<std::string> stops_;
  std::string pending_;
  bool matched_ = false;
};

/// Tokens → text that may be shown, with stop strings. Ids beyond the tokenizer's vocabulary (models pad
/// theirs) and, without a tokenizer, all ids have no text.
class TextStream {
 public:
  /// `at_start`: the tokens begin a text, so that SentencePiece's leading space goes; false: they continue a
  /// prompt.
  TextStream(std::shared_ptr<const Tokenizer> tokenizer, std::vector<std::string> stops, bool special,
             bool at_start = false);
  std::string push(TokenId token);
  std::string finish();
  bool stopped() const noexcept { return matcher_.matched(); }

 private:
  std::int64_t vocab_size_ = 0;
  std::optional<StreamDecoder> decoder_;
  StopMatcher matcher_;
};

}  // namespace bitnet::inference
