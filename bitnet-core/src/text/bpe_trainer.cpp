// Byte-level BPE training after Sennrich et al. 2016 (arXiv:1508.07909), with pair counts that are updated
// only where a merge changed something and a heap whose entries may be out of date.
#include "bitnet/core/text/bpe_trainer.hpp"

#include <algorithm>
#include <queue>
#include <unordered_map>
#include <unordered_set>

#include "bitnet/core/error.hpp"
#include "text/byte_symbols.hpp"
#include "text/regex.hpp"
#include "text/spec.hpp"
#include "text/utf8.hpp"

namespace bitnet {
namespace {

using text::TokenizerSpec;

struct Word {
  std::vector<TokenId> symbols;
  std::int64_t count;
};

std::uint64_t pair_key(TokenId left, TokenId right) {
  return std::uint64_t{static_cast<std::uint32_t>(left)} << 32 | static_cast<std::uint32_t>(right);
}
TokenId left_of(std::uint64_t key) { return static_cast<TokenId>(key >> 32); }
TokenId right_of(std::uint64_t key) { return static_cast<TokenId>(key & 0xFFFFFFFFu); }

// Words, the counts of the pairs in them and where each pair may be found.
class PairCounts {
 public:
  PairCounts(std::vector<Word> words, const std::vector<std::string>& tokens, std::int64_t min_frequency)
      : words_(std::move(words)), min_frequency_(min_frequency), heap_(Later{&tokens}) {
    for (std::size_t w = 0; w < words_.size(); ++w) {
      const auto& s = words_[w].symbols;
      for (std::size_t i = 0; i + 1 < s.size(); ++i) change(s[i], s[i + 1], words_[w].count, w);
    }
    for (const auto& [key, pair] : pairs_) push(key, pair.count);
    touched_.clear();
  }

  // The most frequent pair; false when none is left that is frequent enough.
  bool best(std::uint64_t& key) {
    while (!heap_.empty()) {
      const Entry top = heap_.top();
      heap_.pop();
      const auto found = pairs_.find(top.key);
      if (found == pairs_.end() || found->second.count != top.count)
        continue;  // a newer entry exists, or none
      key = top.key;
      return true;
    }
    return false;
  }

  void merge(std::uint64_t key, TokenId result) {
    const std::vector<std::size_t> where = std::move(pairs_.at(key).words);
    for (const std::size_t w : where) merge_in(w, left_of(key), right_of(key), result);
    pairs_.erase(key);
    std::sort(touched_.begin(), touched_.end());
    touched_.erase(std::unique(touched_.begin(), touched_.end()), touched_.end());
    for (const std::uint64_t k : touched_) {
      const auto found = pairs_.find(k);
      if (found != pairs_.end()) push(k, found->second.count);
    }
    touched_.clear();
  }

 private:
  struct Pair {
    std::int64_t count = 0;
    std::vector<std::size_t> words;  // every word that has the pair, and some that had it
  };
  struct Entry {
    std::int64_t count;
    std::uint64_t key;
  };
  struct Later {  // of two entries, which comes out of the heap later
    const std::vector<std::string>* tokens;
    const std::string& name(TokenId id) const { return (*tokens)[static_cast<std::size_t>(id)]; }
    bool operator()(const Entry& a, const Entry& b) const {
      if (a.count != b.count) return a.count < b.count;
      const int order = name(left_of(a.key)).compare(name(left_of(b.key)));
      return order != 0 ? order > 0 : name(right_of(a.key)) > name(right_of(b.key));
    }
  };

  void push(std::uint64_t key, std::int64_t count) {
    if (count >= min_frequency_ && count > 0) heap_.push({count, key});
  }

  void change(TokenId left, TokenId right, std::int64_t by, std::size_t word) {
    Pair& pair = pairs_[pair_key(left, right)];
    pair.count += by;
    if (by > 0 && (pair.words.empty() || pair.words.back() != word)) pair.words.push_back(word);
    touched_.push_back(pair_key(left, right));
  }

  // Counts of the pairs that disappear go down, those of the new neighbours go up.
  void merge_in(std::size_t w, TokenId left, TokenId right, TokenId result) {
    std::vector<TokenId>& s = words_[w].symbols;
    const std::int64_t count = words_[w].count;
    std::size_t out = 0;
    for (std::size_t i = 0; i < s.size(); ++out) {
      if (i + 1 == s.size() || s[i] != left || s[i + 1] != right) {
        s[out] = s[i++];
        continue;
      }
      if (out > 0) {
        change(s[out - 1], left, -count, w);
        change(s[out - 1], result, count, w);
      }
      if (i + 2 < s.size()) {
        change(right, s[i + 2], -count, w);
        change(result, s[i + 2], count, w);
      }
      s[out] = result;
      i += 2;
    }
    s.resize(out);
  }

  std::vector<Word> words_;
  std::int64_t min_frequency_;
  std::unordered_map<std::uint64_t, Pair> pairs_;
  std::priority_queue<Entry, std::vector<Entry>, Later> heap_;
  std::vector<std::uint64_t> touched_;
};

void add_token(TokenizerSpec& spec, std::string token, TokenType type) {
  spec.tokens.push_back(std::move(token));
  spec.types.push_back(type);
}

// Special tokens, then the 256 byte symbols in the order of their characters.
TokenizerSpec initial_spec(const BpeTrainerOptions& options) {
  TokenizerSpec spec;
  for (const std::string& token : options.special_tokens) {
    spec.added.push_back({static_cast<TokenId>(spec.tokens.size()), true, false, false});
    add_token(spec, token, TokenType::kControl);
  }
  std::vector<std::string> symbols;
  for (unsigned b = 0; b < 256; ++b) symbols.emplace_back(text::byte_symbol(static_cast<unsigned char>(b)));
  std::sort(symbols.begin(), symbols.end());  // UTF-8 sorts like code points
  for (std::string& symbol : symbols) add_token(spec, std::move(symbol), TokenType::kNormal);
  spec.byte_level = true;
  spec.ignore_merges = true;
  text::PreTokenizerStep split, bytes;
  split.pattern = text::kLlama3Pattern;
  bytes.kind = text::PreTokenizerStep::Kind::kByteLevel;
  bytes.split = false;
  spec.pre_tokenizer = {split, bytes};
  if (!options.special_tokens.empty()) {
    spec.bos = 0;
    spec.adds_bos = true;
  }
  if (options.special_tokens.size() > 1) spec.eos = {1};
  return spec;
}

}  // namespace

struct BpeTrainer::Impl {
  BpeTrainerOptions options;
  text::Regex pattern{text::kLlama3Pattern};
  std::unordered_map<std::string, std::int64_t> pieces;
};

BpeTrainer::BpeTrainer(BpeTrainerOptions options) : impl_(std::make_unique<Impl>()) {
  impl_->options = std::move(options);
  const auto& special = impl_->options.special_tokens;
  for (std::size_t i = 0; i < special.size(); ++i) {
    text::require_utf8(special[i], "special token");
    const bool again = std::find(special.begin(), special.begin() + static_cast<std::ptrdiff_t>(i),
                                 special[i]) != special.begin() + static_cast<std::ptrdiff_t>(i);
    if (again || special[i].size() < 2)
      throw Error(ErrorCode::kInvalidArgument,
                  "special token '" + special[i] + "': expected two bytes or more, and each token once");
  }
}
BpeTrainer::~BpeTrainer() = default;
BpeTrainer::BpeTrainer(BpeTrainer&&) noexcept = default;

void BpeTrainer::feed(std::string_view text) {
  text::require_utf8(text, "training text");
  text::RegexMatcher matcher(impl_->pattern);
  std::unordered_map<std::string_view, std::int64_t> counts;  // of this text, without a copy per piece
  matcher.start(text);
  for (std::size_t begin = 0, end = 0; matcher.next(begin, end);) ++counts[text.substr(begin, end - begin)];
  for (const auto& [piece, count] : counts) impl_->pieces[std::string(piece)] += count;
}

std::string BpeTrainer::train() {
  const BpeTrainerOptions& options = impl_->options;
  TokenizerSpec spec = initial_spec(options);
  const auto fixed = static_cast<std::int64_t>(spec.tokens.size());
  if (options.vocab_size < fixed)
    throw Error(ErrorCode::kInvalidArgument,
                "vocab_size " + std::to_string(options.vocab_size) + " cannot hold " +
                    std::to_string(options.special_tokens.size()) + " special tokens and 256 bytes");
  std::unordered_map<std::string, TokenId> ids;
  for (std::int64_t i = fixed - 256; i < fixed; ++i)
    ids.emplace(spec.tokens[static_cast<std::size_t>(i)], static_cast<TokenId>(i));
  std::vector<Word> words;
  for (const auto& [piece, count] : impl_->pieces) {
    Word word{{}, count};
    for (const char c : piece)
      word.symbols.push_back(ids.at(std::string(text::byte_symbol(static_cast<unsigned char>(c)))));
    words.push_back(std::move(word));
  }
  PairCounts pairs(std::move(words), spec.tokens, options.min_frequency);
  std::unordered_set<std::uint64_t> merged;
  std::uint64_t key = 0;
  while (static_cast<std::int64_t>(spec.tokens.size()) < options.vocab_size && pairs.best(key)) {
    const TokenId left = left_of(key), right = right_of(key);
    std::string token =
        spec.tokens[static_cast<std::size_t>(left)] + spec.tokens[static_cast<std::size_t>(right)];
    // Two ways to merge may spell the same token; it then exists already.
    const auto [slot, added] = ids.emplace(token, static_cast<TokenId>(spec.tokens.size()));
    if (added) add_token(spec, std::move(token), TokenType::kNormal);
    if (merged.insert(key).second)
      spec.merges.emplace_back(left, right);  // for the same reason a pair may come back
    pairs.merge(key, slot->second);
  }
  return text::write_tokenizer_json(spec);
}

}  // namespace bitnet
