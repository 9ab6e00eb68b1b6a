#pragma once
// Sequences of token ids as batches: cutting, truncating, padding, packing, bucketing, and their statistics.
// Inference is ragged and needs no padding (inference/batch_scheduler.hpp): it cuts (`bitnet batch`), windows
// and packs (perplexity). Training windows and packs (training/data.hpp), so that all padding is at the ends
// of packed rows. Rectangles, masks and buckets are for code of others that wants them. Pure
// functions of their arguments, thread-safe. All throw Error(kInvalidArgument) with the numbers, and
// std::bad_alloc.
#include <cstdint>
#include <span>
#include <vector>

#include "bitnet/core/text/tokenizer.hpp"

namespace bitnet {

enum class SequenceSide : std::uint8_t { kLeft, kRight };

using Sequences = std::span<const std::vector<TokenId>>;

/// Removes tokens on `side` until `most` are left. The first `keep_first` (a BOS, a system prompt) stay
/// whatever the side. Returns how many went. Throws if most < keep_first.
std::int64_t truncate(std::vector<TokenId>& ids, std::int64_t most, SequenceSide side,
                      std::int64_t keep_first = 0);

/// The lengths that are left when a token of the longest sequence is taken away, again and again, until their
/// sum is at most `most`. Of equal ones the later gives way first. O(n log n).
std::vector<std::int64_t> truncate_longest_first(std::span<const std::int64_t> lengths, std::int64_t most);

/// Tokens of each sequence.
std::vector<std::int64_t> lengths_of(Sequences sequences);

/// Consecutive windows of `length` tokens from token `first` on; what is left at the end is in none. A view:
/// the tokens must live as long.
class TokenWindows {
 public:
  TokenWindows(std::span<const TokenId> tokens, std::int64_t length, std::int64_t first = 0);
  std::int64_t size() const noexcept { return size_; }
  /// Where window i begins in the tokens, 0 ≤ i < size().
  std::int64_t begin_of(std::int64_t i) const noexcept { return first_ + i * length_; }
  /// Window i, 0 ≤ i < size().
  std::span<const TokenId> operator[](std::int64_t i) const noexcept {
    return tokens_.subspan(static_cast<std::size_t>(begin_of(i)), static_cast<std::size_t>(length_));
  }

 private:
  std::span<const TokenId> tokens_;
  std::int64_t length_, first_, size_;
};

struct PadOptions {
  TokenId id = 0;  ///< what is put into the empty places
  SequenceSide side =
      SequenceSide::kRight;      ///< where it is put: kLeft puts every last token into the last column
  std::int64_t width = 0;        ///< 0: that of the longest
  std::int64_t multiple_of = 1;  ///< the width is rounded up to it
};

/// A rectangle of sequences, one a row.
struct PaddedBatch {
  std::int64_t rows = 0, width = 0;
  std::vector<TokenId> ids;            // [rows, width]
  std::vector<std::uint8_t> mask;      // [rows, width], 1 where there is a token of the sequence
  std::vector<std::int32_t> position;  // [rows, width], of the token in its sequence; 0 in padding
};

/// Throws when a sequence is longer than options.width.
PaddedBatch pad(Sequences sequences, const PadOptions& options = {});

/// Several sequences a row, one behind the other, padding at the end of each row.
struct PackedBatch {
  std::int64_t rows = 0, width = 0;
  std::vector<TokenId> ids;            // [rows, width]
  std::vector<std::int32_t> sequence;  // [rows, width], index of the sequence, −1 in padding
  std::vector<std::int32_t> position;  // [rows, width], of the token in its sequence
};

/// Which sequences share a row: rows of at most `width` tokens, by first-fit decreasing (at most 11/9 of the
/// fewest possible rows and one more; Dósa 2007). Of equal lengths the earlier comes first; empty ones are in
/// no row. Throws when one is longer than `width`.
std::vector<std::vector<std::size_t>> pack_lengths(std::span<const std::int64_t> lengths, std::int64_t width);
/// The rows of pack_lengths() filled in.
PackedBatch pack(Sequences sequences, std::int64_t width, TokenId pad_id = 0);

/// May token `query` of a row see token `key`? Causal, and within one sequence: [width, width] bytes, 1: yes.
/// A token of padding sees nothing. Throws on a row that is not there and a batch whose arrays are not
/// rows × width.
std::vector<std::uint8_t> attention_mask(const PaddedBatch& batch, std::int64_t row);
std::vector<std::uint8_t> attention_mask(const PackedBatch& batch, std::int64_t row);

/// For each of the ascending `widths` the indices of the sequences that fit into it and not into the one
/// before. Throws when one fits into none.
std::vector<std::vector<std::size_t>> bucket(std::span<const std::int64_t> lengths,
                                             std::span<const std::int64_t> widths);
/// Batches of sequences of like length: sorted by length (equal ones in order) and cut so that
/// members × longest ≤ most_cells. Throws when one sequence is longer than that.
std::vector<std::vector<std::size_t>> batches_by_length(std::span<const std::int64_t> lengths,
                                                        std::int64_t most_cells);

/// Quantiles are nearest-rank: the smallest length that at least that share of the sequences does not exceed.
struct LengthStatistics {
  std::int64_t count = 0, total = 0, shortest = 0, longest = 0, median = 0, p90 = 0, p99 = 0;
  double mean = 0, deviation = 0;  ///< of the sample (n − 1)
};
/// Throws on a length below 0 and on a total of 2^63 or more. All 0 for no lengths.
LengthStatistics length_statistics(std::span<const std::int64_t> lengths);

struct TokenCount {
  TokenId id = 0;
  std::int64_t count = 0;
};

struct CorpusStatistics {
  LengthStatistics lengths;
  std::int64_t distinct_tokens = 0;
  double entropy_bits = 0;                ///< of a token by itself: −Σ p log2 p
  std::vector<TokenCount> most_frequent;  ///< of equal ones the smaller id first
};

/// Over all sequences; ids from 0 to vocab_size − 1, else Error(kInvalidArgument) naming sequence and place.
/// vocab_size: 1 … 2^31, eight bytes of memory each.
CorpusStatistics corpus_statistics(Sequences sequences, std::int64_t vocab_size,
                                   std::size_t most_frequent = 10);
/// The same of sequences one behind the other: i is tokens [ends[i − 1], ends[i]). Throws where the ends do
/// not ascend to the number of tokens.
CorpusStatistics corpus_statistics(std::span<const TokenId> tokens, std::span<const std::int64_t> ends,
                                   std::int64_t vocab_size, std::size_t most_frequent = 10);

}  // namespace bitnet
