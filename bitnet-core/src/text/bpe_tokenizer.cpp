// The one Tokenizer class: added tokens, pre-tokenizer, BPE model, in that order, and the way back. All
// variety between vocabularies is in the spec.
#include <algorithm>
#include <limits>
#include <unordered_map>

#include "bitnet/core/error.hpp"
#include "text/added_tokens.hpp"
#include "text/bpe_model.hpp"
#include "text/byte_symbols.hpp"
#include "text/pre_tokenizer.hpp"
#include "text/spec.hpp"
#include "text/text_cuts.hpp"
#include "text/utf8.hpp"

namespace bitnet::text {
namespace {

void check(const TokenizerSpec& spec) {
  const auto fail = [](const std::string& message) { throw Error(ErrorCode::kCorruptFile, message); };
  const std::size_t n = spec.tokens.size();
  if (n == 0) fail("empty vocabulary");
  if (n > (1u << 24)) throw Error(ErrorCode::kUnsupported, "vocabulary of more than 16777216 tokens");
  if (spec.types.size() != n) fail("as many token types as tokens expected");
  if (!spec.scores.empty() && spec.scores.size() != n) fail("as many scores as tokens expected");
  for (std::size_t i = 0; i < n; ++i)
    if (find_invalid_utf8(spec.tokens[i]) != std::string_view::npos)
      fail("token " + std::to_string(i) + " is not valid UTF-8");
  for (const float score : spec.scores)
    if (!(score == score)) fail("a score is not a number");
  const auto check_id = [&](TokenId id, const char* what) {
    if (id < 0 || static_cast<std::size_t>(id) >= n)
      fail(std::string(what) + " " + std::to_string(id) + " is outside the vocabulary of " +
           std::to_string(n));
  };
  for (const auto& [left, right] : spec.merges) check_id(left, "merge of id"), check_id(right, "merge of id");
  for (const AddedToken& a : spec.added) check_id(a.id, "added token");
  if (spec.unknown) check_id(*spec.unknown, "unknown token");
  if (spec.bos) check_id(*spec.bos, "BOS token");
  for (const TokenId id : spec.eos) check_id(id, "EOS token");
  if (spec.adds_bos && !spec.bos) fail("the vocabulary adds a BOS token but does not say which");
  if (spec.adds_eos && spec.eos.empty()) fail("the vocabulary adds an EOS token but does not say which");
}

// See Tokenizer::splits_at_lines. Every step must be known not to look across such a place: Llama 3's pattern
// ends a match there, a prefix would be put there, and GPT-2's pattern takes the last line end by itself.
bool may_split_at_lines(const TokenizerSpec& spec) {
  const auto& steps = spec.pre_tokenizer;
  if (!spec.normalizer.empty() || steps.size() != 2) return false;
  if (steps[0].kind != PreTokenizerStep::Kind::kSplit || steps[0].pattern != kLlama3Pattern ||
      steps[0].behavior != SplitBehavior::kIsolated)
    return false;
  if (steps[1].kind != PreTokenizerStep::Kind::kByteLevel ||
      steps[1].prepend != PreTokenizerStep::Prepend::kNever)
    return false;
  return std::none_of(spec.added.begin(), spec.added.end(), [&](const AddedToken& a) {
    const bool line_end = spec.tokens[static_cast<std::size_t>(a.id)].find('\n') != std::string::npos;
    return !a.special && (a.lstrip || line_end);
  });
}

class BpeTokenizer final : public Tokenizer, public PieceEncoder {
 public:
  explicit BpeTokenizer(TokenizerSpec spec)
      : spec_((check(spec), std::move(spec))),
        model_(spec_),
        pre_tokenizer_(spec_.normalizer, spec_.pre_tokenizer),
        plain_tokens_(spec_, false),
        all_tokens_(spec_, true),
        splits_at_lines_(may_split_at_lines(spec_)),
        cuts_(cut_rules(spec_)) {
    bos_ = spec_.bos;
    eos_ = spec_.eos;
    adds_bos_ = spec_.adds_bos;
    adds_eos_ = spec_.adds_eos;
    chat_template_ = spec_.chat_template;
  }

  std::vector<TokenId> encode(std::string_view text, const EncodeOptions& options) const override {
    if (text.size() > static_cast<std::size_t>(std::numeric_limits<std::int32_t>::max()))
      throw Error(ErrorCode::kInvalidArgument, "text of more than 2147483647 bytes");
    require_utf8(text, "text");
    std::vector<TokenId> ids;
    if (options.add_bos && spec_.adds_bos) ids.push_back(*spec_.bos);
    encode_piece(text, options.parse_special, false, ids);
    if (options.add_eos && spec_.adds_eos) ids.push_back(spec_.eos.front());
    return ids;
  }

  void encode_piece(std::string_view text, bool special, bool continues,
                    std::vector<TokenId>& ids) const override {
    std::size_t room = PreTokenizer::room_for(text);
    for (const AddedTokens::Part& part : added(special).split(text)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      const TextPlace first = continues ? TextPlace::kContinues : TextPlace::kStart;
      encode_plain(part.text, part.text.data() == text.data() ? first : TextPlace::kPart, room, ids);
    }
  }

  // Inside a part between added tokens that what follows cannot change: a token that lies across such a place
  // would end within the longest token's length of it, and be seen.
  std::size_t last_cut(std::string_view text, bool special) const override {
    const std::size_t longest = added(special).longest();
    if (!cuts_.any() || text.size() <= longest) return std::string_view::npos;
    const std::vector<AddedTokens::Part> parts = added(special).split(text);
    const std::size_t most = text.size() - longest;
    for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
      if (part->id >= 0) continue;
      const auto begin = static_cast<std::size_t>(part->text.data() - text.data());
      const std::size_t end = std::min(begin + part->text.size(), most);
      if (const std::size_t cut = text::last_cut(cuts_, text, begin + 1, end); cut != std::string_view::npos)
        return cut;
    }
    return std::string_view::npos;
  }

  std::int64_t vocab_size() const noexcept override { return static_cast<std::int64_t>(spec_.tokens.size()); }
  std::string_view token(TokenId id) const override { return spec_.tokens[index(id)]; }
  TokenType type(TokenId id) const override { return spec_.types[index(id)]; }
  std::optional<TokenId> find(std::string_view token) const override { return model_.find(token); }
  bool splits_at_lines() const noexcept override { return splits_at_lines_; }
  bool strips_leading_space() const noexcept override { return spec_.strip_leading_space; }
  std::shared_ptr<const Tokenizer> with_chat_template(std::string source) const override {
    TokenizerSpec spec = spec_;
    spec.chat_template = std::move(source);
    return std::make_shared<const BpeTokenizer>(std::move(spec));
  }
  std::string to_json() const override { return write_tokenizer_json(spec_); }
  void to_gguf(GgufMetadata& metadata) const override { write_gguf_vocabulary(spec_, metadata); }

  std::string token_bytes(TokenId id, bool special) const override {
    const std::string& token = spec_.tokens[index(id)];
    switch (spec_.types[index(id)]) {
      case TokenType::kControl:
      case TokenType::kUnknown:
        return special ? token : std::string();
      case TokenType::kUserDefined:
        return spec_.byte_level ? token : with_spaces(token);
      case TokenType::kByte:
        if (const auto byte = parse_byte_token(token)) return std::string(1, static_cast<char>(*byte));
        return token;
      case TokenType::kNormal:
      case TokenType::kUnused:
        break;
    }
    return spec_.byte_level ? from_byte_symbols(token).value_or(token) : with_spaces(token);
  }

 private:
  const AddedTokens& added(bool special) const { return special ? all_tokens_ : plain_tokens_; }

  std::size_t index(TokenId id) const {
    if (id < 0 || static_cast<std::size_t>(id) >= spec_.tokens.size())
      throw Error(ErrorCode::kInvalidArgument, "token id " + std::to_string(id) +
                                                   " is outside the vocabulary of " +
                                                   std::to_string(spec_.tokens.size()));
    return static_cast<std::size_t>(id);
  }

  static std::string with_spaces(std::string_view token) {
    std::string out;
    for (std::size_t i = 0; i < token.size();) {
      const bool space = token.substr(i, kVisibleSpace.size()) == kVisibleSpace;
      out += space ? ' ' : token[i];
      i += space ? kVisibleSpace.size() : 1;
    }
    return out;
  }

  // Text between added tokens. Most pieces of a long text have come before: their ids are copied.
  void encode_plain(std::string_view text, TextPlace place, std::size_t& room,
                    std::vector<TokenId>& ids) const {
    constexpr std::size_t kLongestCached = 64;  // bytes; longer pieces hardly come twice
    std::deque<std::string> storage;
    std::vector<std::string_view> pieces;
    pre_tokenizer_.split(text, place, room, storage, pieces);
    struct Seen {
      std::size_t begin, count;  // in ids
    };
    std::unordered_map<std::string_view, Seen> seen;
    BpeModel::Workspace work;
    for (const std::string_view piece : pieces) {
      const auto hit = piece.size() <= kLongestCached ? seen.find(piece) : seen.end();
      if (hit != seen.end()) {
        for (std::size_t i = 0; i < hit->second.count; ++i) {
          const TokenId id = ids[hit->second.begin + i];  // a copy: ids may move
          ids.push_back(id);
        }
        continue;
      }
      const std::size_t begin = ids.size();
      model_.encode(piece, work, ids);
      if (piece.size() <= kLongestCached) seen.emplace(piece, Seen{begin, ids.size() - begin});
    }
  }

  TokenizerSpec spec_;
  BpeModel model_;  // refers to spec_
  PreTokenizer pre_tokenizer_;
  AddedTokens plain_tokens_, all_tokens_;
  bool splits_at_lines_;
  CutRules cuts_;
};

}  // namespace

std::shared_ptr<const Tokenizer> make_tokenizer(TokenizerSpec spec) {
  return std::make_shared<const BpeTokenizer>(std::move(spec));
}

}  // namespace bitnet::text
