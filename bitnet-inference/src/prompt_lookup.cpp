// The n-gram index behind drafts: hash chains over positions, and the search for the longest common past.
#include "prompt_lookup.hpp"

#include <algorithm>
#include <bit>

namespace bitnet::inference {

PromptLookup::PromptLookup(std::size_t ngram, std::size_t capacity)
    : ngram_(ngram), last_(std::bit_ceil(std::max<std::size_t>(capacity, 1)), -1), previous_(capacity, -1) {}

std::size_t PromptLookup::bucket(std::span<const TokenId> ngram) const noexcept {
  std::uint64_t h = 0;
  for (const TokenId id : ngram) h = (h ^ static_cast<std::uint32_t>(id)) * 0x9E3779B97F4A7C15u;  // 2^64 / φ
  return static_cast<std::size_t>(h >> 32) & (last_.size() - 1);
}

void PromptLookup::extend(std::span<const TokenId> tokens) noexcept {
  for (; size_ < std::min(tokens.size(), previous_.size()); ++size_) {
    if (size_ + 1 < ngram_) continue;
    std::int32_t& last = last_[bucket(tokens.subspan(size_ + 1 - ngram_, ngram_))];
    previous_[size_] = last;
    last = static_cast<std::int32_t>(size_);
  }
}

std::size_t PromptLookup::draft(std::span<const TokenId> tokens, std::span<TokenId> to) const noexcept {
  if (to.empty() || tokens.empty() || tokens.size() != size_) return 0;
  const std::size_t end = tokens.size() - 1;
  std::size_t longest = 0, next = 0;  // next: the position after the best match
  std::int32_t place = previous_[end];
  for (std::size_t i = 0; i < kCandidates && place >= 0 && longest < kLongestMatch; ++i) {
    const auto p = static_cast<std::size_t>(place);
    std::size_t length = 0;
    while (length < kLongestMatch && length <= p && tokens[p - length] == tokens[end - length]) ++length;
    if (length >= ngram_ && length > longest) {  // a bucket holds other n-grams, too
      longest = length;
      next = p + 1;
    }
    place = previous_[p];
  }
  if (longest == 0) return 0;
  for (std::size_t i = 0; i < to.size(); ++i) {
    const std::size_t from = next + i;
    to[i] = from < tokens.size() ? tokens[from] : to[from - tokens.size()];
  }
  return to.size();
}

}  // namespace bitnet::inference
