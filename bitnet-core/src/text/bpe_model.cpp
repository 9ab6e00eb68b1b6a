// Two ways to say which pair merges first: a list of merges (Hugging Face) or a score for each token
// (SentencePiece: the pair whose concatenation scores highest). Both become one table of pairs with ranks.
// Where merging goes by score, a character outside the vocabulary is still a symbol that may merge (its id is
// then vocab_size + code point) and falls back to bytes only if it is left; by merges it falls back at once.
#include "text/bpe_model.hpp"

#include <algorithm>
#include <map>

#include "bitnet/core/error.hpp"
#include "text/byte_symbols.hpp"
#include "text/utf8.hpp"

namespace bitnet::text {
namespace {

constexpr std::size_t kMaxScoredTokenBytes = 256;  // finding a token's splits takes the square of its length

Error corrupt(const std::string& message) { return {ErrorCode::kCorruptFile, message}; }

}  // namespace

BpeModel::BpeModel(const TokenizerSpec& spec) : spec_(spec) {
  by_score_ = spec.merges.empty() && !spec.scores.empty();
  byte_ids_.fill(-1);
  index_tokens();
  if (by_score_) {
    index_scores();
  } else {
    index_merges();
  }
  const auto missing = std::find(byte_ids_.begin(), byte_ids_.end(), -1);
  if (missing == byte_ids_.end()) return;
  const std::string byte = byte_token(static_cast<unsigned char>(missing - byte_ids_.begin()));
  if (spec.byte_level)
    throw Error(ErrorCode::kUnsupported, "byte-level vocabulary without a token for byte " + byte);
  if (spec.byte_fallback) throw Error(ErrorCode::kUnsupported, "byte fallback without the token " + byte);
  if (!spec.unknown)
    throw Error(ErrorCode::kUnsupported, "vocabulary with neither byte tokens nor an unknown token");
}

bool BpeModel::takes_part(TokenId id) const {
  const TokenType type = spec_.types[static_cast<std::size_t>(id)];
  return type == TokenType::kNormal || type == TokenType::kUnused || type == TokenType::kUserDefined;
}

void BpeModel::index_tokens() {
  ids_.reserve(spec_.tokens.size());
  for (std::size_t i = 0; i < spec_.tokens.size(); ++i) {
    const std::string& token = spec_.tokens[i];
    if (token.empty()) continue;
    const auto id = static_cast<TokenId>(i);
    // A duplicate: the first one is what text becomes, unless that one cannot come from text.
    const auto [slot, added] = ids_.emplace(token, id);
    if (!added && !takes_part(slot->second) && takes_part(id)) slot->second = id;
    const Utf8Unit unit = utf8_at(token, 0);
    if (!spec_.byte_level && unit.length == token.size() && takes_part(id))
      character_ids_.emplace(unit.code_point, id);
  }
  for (unsigned b = 0; b < 256; ++b) {
    const auto byte = static_cast<unsigned char>(b);
    if (!spec_.byte_level && !spec_.byte_fallback) continue;
    const auto found = find(spec_.byte_level ? std::string(byte_symbol(byte)) : byte_token(byte));
    if (found) byte_ids_[b] = *found;
  }
}

void BpeModel::index_merges() {
  std::string text;
  for (std::size_t rank = 0; rank < spec_.merges.size(); ++rank) {
    const auto [left, right] = spec_.merges[rank];
    text = spec_.tokens[static_cast<std::size_t>(left)];
    text += spec_.tokens[static_cast<std::size_t>(right)];
    const auto result = find(text);
    if (!result)
      throw corrupt("merge " + std::to_string(rank) + ": the result '" + text + "' is not in the vocabulary");
    merges_.set(left, right, {static_cast<std::int32_t>(rank), *result});
  }
}

std::int32_t BpeModel::character_id(char32_t c) const {
  const auto found = character_ids_.find(c);
  if (found != character_ids_.end()) return found->second;
  return static_cast<std::int32_t>(spec_.tokens.size() + c);
}

void BpeModel::index_scores() {
  std::map<float, std::int32_t, std::greater<>>
      ranks;  // equal scores, equal ranks: then the leftmost pair wins
  for (const float score : spec_.scores) ranks.emplace(score, 0);
  std::int32_t next = 0;
  for (auto& [score, rank] : ranks) rank = next++;
  const auto symbol = [&](std::string_view part) -> std::int32_t {
    const Utf8Unit unit = utf8_at(part, 0);
    if (unit.length == part.size()) return character_id(unit.code_point);
    const auto found = ids_.find(part);
    return found != ids_.end() && takes_part(found->second) ? found->second : -1;
  };
  for (std::size_t i = 0; i < spec_.tokens.size(); ++i) {
    const std::string_view token = spec_.tokens[i];
    const auto id = static_cast<TokenId>(i);
    if (token.empty() || !takes_part(id) || ids_.at(token) != id) continue;
    if (token.size() > kMaxScoredTokenBytes) {
      if (spec_.types[i] == TokenType::kUserDefined) continue;  // found as a whole, never by merging
      throw Error(ErrorCode::kUnsupported, "token " + std::to_string(i) + " is longer than 256 bytes");
    }
    for (std::size_t cut = utf8_at(token, 0).length; cut < token.size(); cut += utf8_at(token, cut).length) {
      const std::int32_t left = symbol(token.substr(0, cut)), right = symbol(token.substr(cut));
      if (left >= 0 && right >= 0) merges_.set(left, right, {ranks.at(spec_.scores[i]), id});
    }
  }
}

std::optional<TokenId> BpeModel::find(std::string_view token) const {
  const auto found = ids_.find(token);
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

void BpeModel::add_character(std::string_view character, char32_t code_point, Workspace& work,
                             bool& fused) const {
  const auto add = [&](std::int32_t id) { work.symbols.push_back({id, 0, 0}); };
  const std::int32_t id = character_id(code_point);
  const bool known = id < static_cast<std::int32_t>(spec_.tokens.size());
  if (known || by_score_) {
    add(id);
  } else if (spec_.byte_fallback) {
    for (const char c : character) add(byte_ids_[static_cast<unsigned char>(c)]);
  } else if (!fused || !spec_.fuse_unknown) {
    add(*spec_.unknown);
    fused = true;
    return;
  } else {
    return;
  }
  fused = false;
}

void BpeModel::add_symbols(std::string_view piece, Workspace& work) const {
  work.symbols.clear();
  if (spec_.byte_level) {
    for (const char c : piece) work.symbols.push_back({byte_ids_[static_cast<unsigned char>(c)], 0, 0});
  } else {
    bool fused = false;
    for (std::size_t i = 0; i < piece.size();) {
      const Utf8Unit unit = utf8_at(piece, i);
      add_character(piece.substr(i, unit.length), unit.code_point, work, fused);
      i += unit.length;
    }
  }
  const auto n = static_cast<std::int32_t>(work.symbols.size());
  for (std::int32_t i = 0; i < n; ++i) {
    work.symbols[static_cast<std::size_t>(i)].previous = i - 1;
    work.symbols[static_cast<std::size_t>(i)].next = i + 1 < n ? i + 1 : -1;
  }
}

void BpeModel::merge(Workspace& work) const {
  auto& symbols = work.symbols;
  auto& heap = work.heap;
  const auto at = [&](std::int32_t i) -> Workspace::Symbol& { return symbols[static_cast<std::size_t>(i)]; };
  // The top of the heap is the best rank and, among equals, the leftmost.
  const auto later = [](const Workspace::Candidate& a, const Workspace::Candidate& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
  };
  const auto candidate = [&](std::int32_t left) {
    if (left < 0 || at(left).next < 0) return false;
    const PairTable::Merge* m = merges_.find(at(left).id, at(at(left).next).id);
    if (m) heap.push_back({m->rank, left, m->result});
    return m != nullptr;
  };
  heap.clear();
  for (std::size_t i = 0; i + 1 < symbols.size(); ++i) candidate(static_cast<std::int32_t>(i));
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    const Workspace::Candidate best = heap.front();
    std::pop_heap(heap.begin(), heap.end(), later);
    heap.pop_back();
    Workspace::Symbol& left = at(best.position);
    if (left.id < 0 || left.next < 0) continue;
    const PairTable::Merge* m = merges_.find(left.id, at(left.next).id);
    if (!m || m->result != best.result) continue;  // stale: one of the two has merged since
    Workspace::Symbol& right = at(left.next);
    left.id = best.result;
    left.next = right.next;
    right.id = -1;
    if (left.next >= 0) at(left.next).previous = best.position;
    if (candidate(left.previous)) std::push_heap(heap.begin(), heap.end(), later);
    if (candidate(best.position)) std::push_heap(heap.begin(), heap.end(), later);
  }
}

void BpeModel::emit(std::int32_t symbol, std::vector<TokenId>& ids) const {
  const auto n = static_cast<std::int32_t>(spec_.tokens.size());
  if (symbol < n) {
    ids.push_back(symbol);
    return;
  }
  if (!spec_.byte_fallback) {
    if (!spec_.fuse_unknown || ids.empty() || ids.back() != *spec_.unknown) ids.push_back(*spec_.unknown);
    return;
  }
  std::string character;
  append_utf8(character, static_cast<char32_t>(symbol - n));
  for (const char c : character) ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
}

void BpeModel::encode(std::string_view piece, Workspace& work, std::vector<TokenId>& ids) const {
  if (piece.empty()) return;
  if (spec_.ignore_merges) {
    const auto whole = spec_.byte_level ? find(to_byte_symbols(piece)) : find(piece);
    if (whole && takes_part(*whole)) {
      ids.push_back(*whole);
      return;
    }
  }
  add_symbols(piece, work);
  merge(work);
  for (std::int32_t i = work.symbols.empty() ? -1 : 0; i >= 0;) {
    const Workspace::Symbol& s = work.symbols[static_cast<std::size_t>(i)];
    emit(s.id, ids);
    i = s.next;
  }
}

}  // namespace bitnet::text
