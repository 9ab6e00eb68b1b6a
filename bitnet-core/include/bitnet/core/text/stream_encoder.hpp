#pragma once
// Text → token ids where the text comes in pieces and is never in memory whole. The way back, a token at a
// time, is StreamDecoder (tokenizer.hpp).
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/text/tokenizer.hpp"

namespace bitnet {

namespace text {
class PieceEncoder;
}

/// Bytes that a StreamEncoder holds.
struct StreamLimits {
  std::size_t piece = std::size_t{256} << 10;  ///< of text that are encoded at once, about
  std::size_t most = std::size_t{32} << 20;    ///< of text without a place where it may be cut
};

/// The ids of a text that comes in pieces, cut anywhere, inside characters, too: together they are those of
/// Tokenizer::encode() of the whole. The text is cut before a space or at a line end where the vocabulary's
/// rules are known not to look across (text_cuts.hpp in bitnet-core/src/text): the splitters of GPT-2, Llama
/// 3 and Qwen 2, Metaspace, SentencePiece without a splitter. Of other vocabularies, and of a text without
/// such a place, up to StreamLimits::most bytes are encoded as one. Memory: about 20 bytes for each of the
/// bytes that are encoded at once. One per text; not thread-safe. Of no use after an exception.
class StreamEncoder {
 public:
  /// Throws Error(kInvalidArgument) on limits that are 0 or the wrong way round.
  explicit StreamEncoder(std::shared_ptr<const Tokenizer> tokenizer, const EncodeOptions& options = {},
                         const StreamLimits& limits = {});
  /// More of the text. Appends the ids of what is known by now. Throws Error(kInvalidArgument) on invalid
  /// UTF-8 with its byte offset in the whole text, Error(kUnsupported) where the text must be cut and cannot,
  /// and what encode() throws.
  void push(std::string_view bytes, std::vector<TokenId>& ids);
  /// The end of the text. Appends the rest of the ids. Throws as push().
  void finish(std::vector<TokenId>& ids);

 private:
  void encode(std::size_t bytes, std::vector<TokenId>& ids);
  void check();
  std::shared_ptr<const Tokenizer> tokenizer_;
  const text::PieceEncoder* pieces_;  // of the tokenizer, or null
  EncodeOptions options_;
  StreamLimits limits_;
  std::string pending_;
  std::size_t target_;       // bytes of pending_ at which a cut is looked for
  std::size_t checked_ = 0;  // bytes of pending_ that are whole characters
  std::uint64_t done_ = 0;   // bytes of the text before pending_
  bool begun_ = false;
};

}  // namespace bitnet
