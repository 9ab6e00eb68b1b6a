// How long the sequences of a corpus are and which tokens they hold; see sequences.hpp.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bitnet/core/error.hpp"
#include "bitnet/core/text/sequences.hpp"

namespace bitnet {

LengthStatistics length_statistics(std::span<const std::int64_t> lengths) {
  LengthStatistics s;
  s.count = static_cast<std::int64_t>(lengths.size());
  if (lengths.empty()) return s;
  std::vector<std::int64_t> sorted(lengths.begin(), lengths.end());
  std::sort(sorted.begin(), sorted.end());
  // The smallest value with at least `percent` of all at or below it.
  const auto quantile = [&](std::int64_t percent) {
    const std::int64_t rank = (s.count / 100) * percent + ((s.count % 100) * percent + 99) / 100;
    return sorted[static_cast<std::size_t>(rank - 1)];
  };
  if (sorted.front() < 0)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("a sequence of length {}: expected 0 or more", sorted.front()));
  for (const std::int64_t n : sorted)
    if (__builtin_add_overflow(s.total, n, &s.total))
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("lengths of {} sequences: expected a sum below 2^63", s.count));
  s.shortest = sorted.front();
  s.longest = sorted.back();
  s.median = quantile(50);
  s.p90 = quantile(90);
  s.p99 = quantile(99);
  s.mean = static_cast<double>(s.total) / static_cast<double>(s.count);
  double squares = 0;
  for (const std::int64_t n : sorted) {
    const double d = static_cast<double>(n) - s.mean;
    squares += d * d;
  }
  if (s.count > 1) s.deviation = std::sqrt(squares / static_cast<double>(s.count - 1));
  return s;
}

namespace {

/// Tokens of sequences that are given one after the other.
class TokenCounter {
 public:
  explicit TokenCounter(std::int64_t vocab_size) : vocab_size_(vocab_size) {
    constexpr std::int64_t kMostTokens = std::int64_t{1} << 31;  // ids are 32-bit
    if (vocab_size < 1 || vocab_size > kMostTokens)
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("a vocabulary of {} tokens: expected 1 … {}", vocab_size, kMostTokens));
    counts_.resize(static_cast<std::size_t>(vocab_size), 0);
  }

  void add(std::span<const TokenId> sequence) {
    for (std::size_t t = 0; t < sequence.size(); ++t) {
      const TokenId id = sequence[t];
      if (id < 0 || id >= vocab_size_)
        throw Error(ErrorCode::kInvalidArgument, fmt::format("token {} of sequence {} is {}: expected 0 … {}",
                                                             t, sequences_, id, vocab_size_ - 1));
      ++counts_[static_cast<std::size_t>(id)];
    }
    ++sequences_;
  }

  CorpusStatistics statistics(std::span<const std::int64_t> lengths, std::size_t most_frequent) const {
    CorpusStatistics s;
    s.lengths = length_statistics(lengths);
    const auto total = static_cast<double>(s.lengths.total);
    std::vector<TokenCount> seen;
    for (std::size_t id = 0; id < counts_.size(); ++id) {
      if (counts_[id] == 0) continue;
      seen.push_back({static_cast<TokenId>(id), counts_[id]});
      const double p = static_cast<double>(counts_[id]) / total;
      s.entropy_bits -= p * std::log2(p);
    }
    s.distinct_tokens = static_cast<std::int64_t>(seen.size());
    const std::size_t n = std::min(most_frequent, seen.size());
    std::partial_sort(seen.begin(), seen.begin() + static_cast<std::ptrdiff_t>(n), seen.end(),
                      [](const TokenCount& a, const TokenCount& b) {
                        return a.count != b.count ? a.count > b.count : a.id < b.id;
                      });
    seen.resize(n);
    s.most_frequent = std::move(seen);
    return s;
  }

 private:
  std::int64_t vocab_size_;
  std::size_t sequences_ = 0;
  std::vector<std::int64_t> counts_;
};

}  // namespace

CorpusStatistics corpus_statistics(Sequences sequences, std::int64_t vocab_size, std::size_t most_frequent) {
  TokenCounter counter(vocab_size);
  for (const auto& sequence : sequences) counter.add(sequence);
  return counter.statistics(lengths_of(sequences), most_frequent);
}

CorpusStatistics corpus_statistics(std::span<const TokenId> tokens, std::span<const std::int64_t> ends,
                                   std::int64_t vocab_size, std::size_t most_frequent) {
  TokenCounter counter(vocab_size);
  std::vector<std::int64_t> lengths;
  lengths.reserve(ends.size());
  const auto n = static_cast<std::int64_t>(tokens.size());
  std::int64_t begin = 0;
  for (const std::int64_t end : ends) {
    if (end < begin || end > n)
      throw Error(ErrorCode::kInvalidArgument, fmt::format("sequence {} ends at token {}: expected {} … {}",
                                                           lengths.size(), end, begin, n));
    counter.add(tokens.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)));
    lengths.push_back(end - begin);
    begin = end;
  }
  if (begin != n)
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("the last sequence ends at token {}: expected {}", begin, n));
  return counter.statistics(lengths, most_frequent);
}

}  // namespace bitnet
