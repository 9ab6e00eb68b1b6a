#pragma once
// Drafts for speculative decoding out of the sequence's own text: what followed the last n tokens when they
// occurred before (prompt lookup: Saxena 2023; Yang et al. 2023, "Inference with Reference"). No model is
// asked; whether a draft holds is decided in generator.cpp.
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "bitnet/core/text/tokenizer.hpp"

namespace bitnet::inference {

/// An index of the n-grams of one growing sequence: hash chains, as LZ77 compressors have them (RFC 1951,
/// section 4). A token costs O(n) to add and a draft at most kCandidates · kLongestMatch comparisons, however
/// long the sequence is. Not thread-safe.
class PromptLookup {
 public:
  static constexpr std::size_t kCandidates = 16;    ///< earlier places that a draft looks at
  static constexpr std::size_t kLongestMatch = 32;  ///< tokens back that two places are compared

  /// For sequences of at most `capacity` tokens; a draft needs `ngram` ≥ 1 tokens that match. Takes 8 to 12
  /// bytes a token of capacity; nothing allocates afterwards.
  PromptLookup(std::size_t ngram, std::size_t capacity);

  /// Adds what `tokens` has beyond the previous call's; only its end may be new.
  void extend(std::span<const TokenId> tokens) noexcept;
  /// Writes what probably follows `tokens` (those of the last extend()) to `to`: the continuation of the
  /// earlier place whose past agrees longest, of equal ones the latest. A continuation that reaches the end
  /// goes on periodically. Returns the number of tokens: to.size(), or 0 where no place matches.
  std::size_t draft(std::span<const TokenId> tokens, std::span<TokenId> to) const noexcept;

 private:
  std::size_t bucket(std::span<const TokenId> ngram) const noexcept;

  std::size_t ngram_;
  std::size_t size_ = 0;                // tokens that are in the index
  std::vector<std::int32_t> last_;      // [2^k ≥ capacity] bucket → position where its latest n-gram ends
  std::vector<std::int32_t> previous_;  // [capacity] position → the one before it in the same bucket, or −1
};

}  // namespace bitnet::inference
