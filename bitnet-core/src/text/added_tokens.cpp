// A byte trie whose edges live in one hash table.
#include "text/added_tokens.hpp"

#include "text/utf8.hpp"

namespace bitnet::text {
namespace {

// First byte of the white space that ends at `pos`, not before `from`.
std::size_t skip_back(std::string_view text, std::size_t from, std::size_t pos) {
  while (pos > from) {
    std::size_t begin = pos - 1;
    while (begin > from && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
    if (!is_white_space(utf8_at(text, begin).code_point)) break;
    pos = begin;
  }
  return pos;
}

std::size_t skip_forward(std::string_view text, std::size_t pos) {
  while (pos < text.size()) {
    const Utf8Unit unit = utf8_at(text, pos);
    if (!is_white_space(unit.code_point)) break;
    pos += unit.length;
  }
  return pos;
}

}  // namespace

AddedTokens::AddedTokens(const TokenizerSpec& spec, bool special) {
  std::int32_t nodes = 1;
  for (const AddedToken& token : spec.added) {
    const std::string_view text = spec.tokens[static_cast<std::size_t>(token.id)];
    if ((token.special && !special) || text.empty()) continue;
    std::int32_t node = 0;
    for (std::size_t i = 0; i < text.size(); ++i) {
      const auto byte = static_cast<unsigned char>(text[i]);
      if (i == 0) first_[byte] = true;
      const PairTable::Merge* edge = edges_.find(node, byte);
      PairTable::Merge next = edge ? *edge : PairTable::Merge{-1, nodes++};
      if (i + 1 == text.size()) next.rank = static_cast<std::int32_t>(tokens_.size());
      edges_.set(node, byte, next);
      node = next.result;
    }
    tokens_.push_back(token);
  }
}

std::size_t AddedTokens::longest(std::string_view text, std::size_t pos, std::size_t& index) const {
  std::size_t length = 0;
  std::int32_t node = 0;
  for (std::size_t i = pos; i < text.size(); ++i) {
    const PairTable::Merge* edge = edges_.find(node, static_cast<unsigned char>(text[i]));
    if (!edge) break;
    if (edge->rank >= 0) {
      length = i + 1 - pos;
      index = static_cast<std::size_t>(edge->rank);
    }
    node = edge->result;
  }
  return length;
}

std::vector<AddedTokens::Part> AddedTokens::split(std::string_view text) const {
  std::vector<Part> parts;
  std::size_t from = 0;  // what is before has been cut off
  for (std::size_t pos = 0; pos < text.size();) {
    std::size_t index = 0, length = 0;
    if (first_[static_cast<unsigned char>(text[pos])]) length = longest(text, pos, index);
    if (length == 0) {
      ++pos;
      continue;
    }
    const AddedToken& token = tokens_[index];
    const std::size_t begin = token.lstrip ? skip_back(text, from, pos) : pos;
    if (from < begin) parts.push_back({text.substr(from, begin - from), -1});
    parts.push_back({{}, token.id});
    from = pos = token.rstrip ? skip_forward(text, pos + length) : pos + length;
  }
  if (from < text.size()) parts.push_back({text.substr(from), -1});
  return parts;
}

}  // namespace bitnet::text
