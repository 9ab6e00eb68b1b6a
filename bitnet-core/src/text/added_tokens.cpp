// The automaton: a byte trie whose edges live in one hash table, its links, the search.
#include "text/added_tokens.hpp"

#include <algorithm>
#include <numeric>

#include "bitnet/core/error.hpp"
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

AddedTokens::AddedTokens(const TokenizerSpec& spec, bool special) : nodes_{{0, 0, 0, -1, 0}} {
  for (const AddedToken& token : spec.added) {
    const std::string_view text = spec.tokens[static_cast<std::size_t>(token.id)];
    if ((token.special && !special) || text.empty()) continue;
    add(text, static_cast<std::int32_t>(tokens_.size()));
    tokens_.push_back(token);
    lengths_.push_back(text.size());
    longest_ = std::max(longest_, text.size());
  }
  link();
}

void AddedTokens::add(std::string_view text, std::int32_t index) {
  constexpr std::size_t kMaxNodes = std::size_t{1} << 28;  // so that the numbers of nodes fit
  if (text.size() > kMaxNodes - nodes_.size())
    throw Error(ErrorCode::kUnsupported, "added tokens of more than 256 MiB are not supported");
  last_[static_cast<unsigned char>(text.back())] = true;
  std::int32_t node = 0;
  for (std::size_t i = text.size(); i-- > 0;) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (const PairTable::Merge* edge = edges_.find(node, byte)) {
      node = edge->result;
      continue;
    }
    const auto next = static_cast<std::int32_t>(nodes_.size());
    nodes_.push_back({node, nodes_[static_cast<std::size_t>(node)].depth + 1, 0, -1, byte});
    edges_.set(node, byte, {0, next});
    node = next;
  }
  nodes_[static_cast<std::size_t>(node)].longest = index;
}

// Aho and Corasick 1975, algorithm 3: a node's link follows from its parent's, so short ones come first.
void AddedTokens::link() {
  const auto node_at = [&](std::int32_t i) -> Node& { return nodes_[static_cast<std::size_t>(i)]; };
  std::vector<std::int32_t> order(nodes_.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return node_at(a).depth < node_at(b).depth; });
  for (const std::int32_t i : order) {
    Node& node = node_at(i);
    if (node.depth > 1) {
      std::int32_t from = node_at(node.parent).shorter;
      const PairTable::Merge* edge = nullptr;
      while (!(edge = edges_.find(from, node.byte)) && from != 0) from = node_at(from).shorter;
      node.shorter = edge ? edge->result : 0;
    }
    if (node.longest < 0) node.longest = node_at(node.shorter).longest;
  }
}

std::vector<AddedTokens::Match> AddedTokens::find(std::string_view text) const {
  std::vector<Match> found;
  std::int32_t node = 0;
  for (std::size_t i = text.size(); i-- > 0;) {
    const auto byte = static_cast<unsigned char>(text[i]);
    if (node == 0 && !last_[byte]) continue;
    const PairTable::Merge* edge = nullptr;
    while (!(edge = edges_.find(node, byte)) && node != 0)
      node = nodes_[static_cast<std::size_t>(node)].shorter;
    node = edge ? edge->result : 0;
    const std::int32_t longest = nodes_[static_cast<std::size_t>(node)].longest;
    if (longest >= 0) found.push_back({i, longest});
  }
  return found;
}

std::vector<AddedTokens::Part> AddedTokens::split(std::string_view text) const {
  std::vector<Part> parts;
  std::size_t from = 0;  // what is before has been cut off
  const std::vector<Match> found = find(text);
  for (auto match = found.rbegin(); match != found.rend(); ++match) {
    if (match->begin < from) continue;
    const auto index = static_cast<std::size_t>(match->index);
    const AddedToken& token = tokens_[index];
    const std::size_t begin = token.lstrip ? skip_back(text, from, match->begin) : match->begin;
    const std::size_t end = match->begin + lengths_[index];
    if (from < begin) parts.push_back({text.substr(from, begin - from), -1});
    parts.push_back({{}, token.id});
    from = token.rstrip ? skip_forward(text, end) : end;
  }
  if (from < text.size()) parts.push_back({text.substr(from), -1});
  return parts;
}

}  // namespace bitnet::text
