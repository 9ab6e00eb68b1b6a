#pragma once
// A tokenizer as plain data: what every reader (tokenizer.json, GGUF, tokenizer.model, trainer) produces,
// what BpeTokenizer runs and what every writer stores. The fields mean what Hugging Face's tokenizers means
// by them.
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bitnet/core/text/tokenizer.hpp"

namespace bitnet::text {

/// U+2581, SentencePiece's visible space.
inline constexpr std::string_view kVisibleSpace = "\xE2\x96\x81";

/// How tokenizer.json says NormalizerStep::kCollapseSpaces: a regular expression that is replaced by nothing.
/// (Not ^ and $: in Oniguruma they match at every line.)
inline constexpr std::string_view kCollapseSpacesPattern = R"(\A +| +\z| +(?= ))";

/// A token that is found in the text before anything else happens to it (longest first).
struct AddedToken {
  TokenId id = 0;
  bool special = false;                 ///< found only when special tokens are parsed
  bool lstrip = false, rstrip = false;  ///< also takes the white space on that side
};

struct NormalizerStep {
  enum class Kind : std::uint8_t {
    kPrepend,         ///< `to` before a text that is not empty
    kReplace,         ///< every `from` by `to`
    kCollapseSpaces,  ///< no spaces (U+0020) at the ends, runs of them become one
  };
  Kind kind = Kind::kReplace;
  std::string from, to;
};

/// What becomes of the matches of a splitting pattern.
enum class SplitBehavior : std::uint8_t {
  kRemoved,
  kIsolated,
  kMergedWithPrevious,
  kMergedWithNext,
  kContiguous
};

struct PreTokenizerStep {
  enum class Kind : std::uint8_t {
    kSplit,      ///< at `pattern`
    kMetaspace,  ///< spaces become U+2581, one is put in front by `prepend`, splits before each if `split`
    kByteLevel,  ///< the last step of byte-level vocabularies; GPT-2's pattern first if `split`
  };
  enum class Prepend : std::uint8_t { kNever, kAlways, kFirst };
  Kind kind = Kind::kSplit;
  std::string pattern;  ///< a regular expression
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;
  bool split = true;
  Prepend prepend = Prepend::kNever;  ///< kMetaspace; for kByteLevel kAlways is add_prefix_space
  std::string
      json;  ///< how tokenizer.json writes a kSplit that has a name of its own there (Digits, …); or empty
};

struct TokenizerSpec {
  std::vector<std::string> tokens;  ///< by id; "" where an id is not used
  std::vector<TokenType> types;
  std::vector<AddedToken> added;
  std::vector<std::pair<TokenId, TokenId>> merges;  ///< best first
  std::vector<float> scores;   ///< of SentencePiece: merging goes by these where there are no merges
  bool ignore_merges = false;  ///< a piece that is a token is taken whole
  bool byte_fallback = false;  ///< characters outside the vocabulary become <0xHH>
  bool fuse_unknown = false;
  std::optional<TokenId> unknown;
  std::vector<NormalizerStep> normalizer;
  std::vector<PreTokenizerStep> pre_tokenizer;
  bool byte_level = false;           ///< tokens are byte symbols, decoding maps them back
  bool strip_leading_space = false;  ///< decoding strips one
  std::optional<TokenId> bos;
  std::vector<TokenId> eos;
  bool adds_bos = false, adds_eos = false;
  std::string chat_template;
};

/// "<0x0A>"
std::string byte_token(unsigned char byte);
/// The byte of "<0x0A>".
std::optional<unsigned char> parse_byte_token(std::string_view token) noexcept;

/// Adds to `spec.eos` the control tokens that end a turn or a text by their well-known names, and sets
/// `spec.bos` by name if it is not set.
void find_well_known_tokens(TokenizerSpec& spec);

/// tokenizer.json (with tokenizer_config.json, or empty) and back; see tokenizer_json.cpp for what is
/// supported.
TokenizerSpec read_tokenizer_json(std::string_view json, std::string_view config);
/// What a tokenizer_config.json adds to or changes of a spec: BOS, EOS, add_bos_token, add_eos_token, chat
/// template.
void apply_tokenizer_config(std::string_view config, TokenizerSpec& spec);
std::string write_tokenizer_json(const TokenizerSpec& spec);

/// `tokenizer.*` keys and back; see tokenizer_gguf.cpp.
TokenizerSpec read_gguf_vocabulary(const GgufMetadata& metadata);
void write_gguf_vocabulary(const TokenizerSpec& spec, GgufMetadata& metadata);

/// A SentencePiece tokenizer.model; see sentencepiece_model.cpp.
TokenizerSpec read_sentencepiece_model(std::string_view protobuf);

/// The merges that SentencePiece's scores imply, as Hugging Face's converter lists them.
std::vector<std::pair<TokenId, TokenId>> merges_from_scores(const TokenizerSpec& spec);
/// Scores that put results of merges in the order of `merges`.
std::vector<float> scores_from_merges(const TokenizerSpec& spec);

/// Builds the tokenizer. Throws Error(kCorruptFile | kUnsupported) when the parts contradict each other.
std::shared_ptr<const Tokenizer> make_tokenizer(TokenizerSpec spec);

}  // namespace bitnet::text
