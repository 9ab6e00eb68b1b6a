#pragma once
// Finding added tokens ("<|eot_id|>") in a text: the longest one at the leftmost place, again and again.
#include <array>
#include <string_view>
#include <vector>

#include "text/pair_table.hpp"
#include "text/spec.hpp"

namespace bitnet::text {

/// A trie over the added tokens. Immutable, thread-safe.
class AddedTokens {
 public:
  /// `special`: with the special ones.
  AddedTokens(const TokenizerSpec& spec, bool special);

  struct Part {
    std::string_view text;  ///< where id < 0
    TokenId id = -1;
  };
  /// Cuts `text` into added tokens and what is between them (no empty parts).
  std::vector<Part> split(std::string_view text) const;

 private:
  // Length of the longest token at `pos`, 0 if none, and its index in tokens_.
  std::size_t longest(std::string_view text, std::size_t pos, std::size_t& index) const;

  std::vector<AddedToken> tokens_;
  PairTable edges_;  // (node, byte) → (index of the token that ends there or -1, next node)
  std::array<bool, 256> first_ = {};
};

}  // namespace bitnet::text
