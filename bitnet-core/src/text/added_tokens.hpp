#pragma once
// Finding added tokens ("<|eot_id|>") in a text: the longest one at the leftmost place, again and again.
#include <array>
#include <string_view>
#include <vector>

#include "text/pair_table.hpp"
#include "text/spec.hpp"

namespace bitnet::text {

/// Aho and Corasick's automaton over the tokens written backwards, which reads a text backwards: where it
/// stands it knows the longest token that begins there, so a text costs time in proportion to its length,
/// however long the tokens are. Immutable, thread-safe.
class AddedTokens {
 public:
  /// `special`: with the special ones. Throws Error(kUnsupported) where they have too many bytes.
  AddedTokens(const TokenizerSpec& spec, bool special);

  struct Part {
    std::string_view text;  ///< where id < 0
    TokenId id = -1;
  };
  /// Cuts `text` into added tokens and what is between them (no empty parts).
  std::vector<Part> split(std::string_view text) const;
  /// Bytes of the longest one; 0 without any.
  std::size_t longest() const noexcept { return longest_; }

 private:
  struct Match {
    std::size_t begin;
    std::int32_t index;  // in tokens_
  };
  // The longest token that begins at each place where one does, last place first.
  std::vector<Match> find(std::string_view text) const;
  void add(std::string_view text, std::int32_t index);
  void link();

  struct Node {
    std::int32_t parent, depth;
    std::int32_t shorter = 0;   // the node of the longest end of this node's bytes that is a node, too
    std::int32_t longest = -1;  // the longest token among the ends of this node's bytes, or -1
    unsigned char byte;
  };
  std::vector<AddedToken> tokens_;
  std::vector<std::size_t> lengths_;
  std::size_t longest_ = 0;
  std::vector<Node> nodes_;
  PairTable edges_;  // (node, byte) → next node as `result`
  std::array<bool, 256> last_ = {};
};

}  // namespace bitnet::text
