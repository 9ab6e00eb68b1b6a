#pragma once
// Text ↔ token ids: byte-level BPE (GPT-2, Llama-3) and SentencePiece-BPE (Llama-2), read from
// tokenizer.json, tokenizer.model or GGUF metadata. Training a vocabulary is bpe_trainer.hpp; chat formats
// are chat_template.hpp.
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bitnet/core/io/gguf.hpp"

namespace bitnet {

using TokenId = std::int32_t;

/// What a token is, with GGUF's numbers.
enum class TokenType : std::uint8_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6
};

struct EncodeOptions {
  bool add_bos = true;         ///< only where the vocabulary says that it adds one
  bool parse_special = false;  ///< turn text such as "<|eot_id|>" into the control token
  /// End with EOS where the vocabulary says that it adds one. Off, since a text that is to be continued must
  /// not end.
  bool add_eos = false;
};

/// A vocabulary with its rules. Immutable, thread-safe.
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;

  /// A directory (tokenizer.json or .model, tokenizer_config.json, chat_template.jinja), such a file, or
  /// GGUF. Throws Error(kNotFound | kCorruptFile | kUnsupported) naming file and place, kInvalidArgument
  /// above 256 MiB (not GGUF); an unknown pre-tokenizer is kUnsupported, never guessed.
  static std::shared_ptr<const Tokenizer> load(const std::filesystem::path& path);
  static std::shared_ptr<const Tokenizer> from_gguf(const GgufMetadata& metadata);
  /// `json`: the text of a tokenizer.json; `config`: of a tokenizer_config.json, or empty.
  static std::shared_ptr<const Tokenizer> from_json(std::string_view json, std::string_view config = {});
  /// `protobuf`: the bytes of a SentencePiece tokenizer.model (BPE).
  static std::shared_ptr<const Tokenizer> from_sentencepiece(std::span<const std::byte> protobuf);

  /// Throws Error(kInvalidArgument) with the byte offset on invalid UTF-8.
  virtual std::vector<TokenId> encode(std::string_view text, const EncodeOptions& options = {}) const = 0;
  /// Bytes of the tokens, as text; invalid UTF-8 sequences become U+FFFD. Control tokens are left out unless
  /// `special`. Throws Error(kInvalidArgument) on an id outside the vocabulary.
  std::string decode(std::span<const TokenId> ids, bool special = false) const;

  virtual std::int64_t vocab_size() const noexcept = 0;
  /// The token as stored in the file, e.g. "Ġthe" or "▁the".
  virtual std::string_view token(TokenId id) const = 0;
  virtual TokenType type(TokenId id) const = 0;
  /// The bytes that a token stands for (nothing for control tokens unless `special`).
  virtual std::string token_bytes(TokenId id, bool special = false) const = 0;
  virtual std::optional<TokenId> find(std::string_view token) const = 0;
  /// True when a text may be cut between a line end and a character of ASCII that is no white space, and its
  /// parts encoded alone: without BOS, EOS and special tokens their ids are those of the whole.
  virtual bool splits_at_lines() const noexcept = 0;
  /// True when decoding strips one leading space of the text (SentencePiece).
  virtual bool strips_leading_space() const noexcept = 0;

  std::optional<TokenId> bos() const noexcept { return bos_; }
  /// End of text, and every other token that ends a generation (end of turn).
  std::span<const TokenId> eos() const noexcept { return eos_; }
  bool adds_bos() const noexcept { return adds_bos_; }
  bool adds_eos() const noexcept { return adds_eos_; }
  const std::string& chat_template() const noexcept { return chat_template_; }
  /// The same vocabulary and rules with another chat template (its Jinja text; empty: none), for files that
  /// are to bring it, as ChatTemplate::source() gives it.
  virtual std::shared_ptr<const Tokenizer> with_chat_template(std::string source) const = 0;

  /// The text of a tokenizer.json that Hugging Face's tokenizers reads to the same ids.
  virtual std::string to_json() const = 0;
  /// The text of the tokenizer_config.json beside it (BOS, EOS, chat template).
  std::string config_json() const;
  /// `tokenizer.*` keys for a GGUF file.
  virtual void to_gguf(GgufMetadata& metadata) const = 0;

 protected:
  std::optional<TokenId> bos_;
  std::vector<TokenId> eos_;
  bool adds_bos_ = false, adds_eos_ = false;
  std::string chat_template_;
};

/// Turns a stream of tokens into text without ever emitting half a UTF-8 character. One per sequence; not
/// thread-safe.
class StreamDecoder {
 public:
  /// `at_start`: false where the tokens continue a text (a prompt), so that a leading space is kept.
  explicit StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool special = false,
                         bool at_start = true);
  /// Text that is complete after this token (often empty in the middle of a character).
  std::string push(TokenId id);
  /// What is left at the end: an unfinished character becomes U+FFFD.
  std::string finish();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool special_;
  bool at_start_;
  std::string pending_;
};

}  // namespace bitnet
