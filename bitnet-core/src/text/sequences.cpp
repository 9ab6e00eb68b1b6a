// Truncating, cutting, padding, packing and bucketing of token sequences; see sequences.hpp. Their statistics
// are sequence_statistics.cpp.
#include "bitnet/core/text/sequences.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "bitnet/core/error.hpp"

namespace bitnet {
namespace {

[[noreturn]] void refuse(const std::string& message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kInvalidArgument, message, where);
}

void check_lengths(std::span<const std::int64_t> lengths) {
  for (std::size_t i = 0; i < lengths.size(); ++i)
    if (lengths[i] < 0) refuse(fmt::format("length {} of sequence {}: expected 0 or more", lengths[i], i));
}

/// Indices by length, descending or ascending; equal ones stay in order.
template <class Before>
std::vector<std::size_t> sorted(std::span<const std::int64_t> lengths, Before before) {
  std::vector<std::size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return before(lengths[a], lengths[b]); });
  return order;
}

constexpr std::int64_t kMost32 = std::numeric_limits<std::int32_t>::max();

/// rows · width, for the rectangles; ids and indices are 32-bit.
std::size_t cells(std::size_t rows, std::int64_t width) {
  std::int64_t n = 0;
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max() / 8;  // of bytes, four a cell
  if (__builtin_mul_overflow(static_cast<std::int64_t>(rows), width, &n) || n > kMost || width > kMost32 ||
      rows > static_cast<std::size_t>(kMost32))
    refuse(fmt::format("a batch of {} rows of {} tokens: expected at most {} of each and {} in all", rows,
                       width, kMost32, kMost));
  return static_cast<std::size_t>(n);
}

/// `sees(q, k)` for every pair of a row's places with k ≤ q.
template <class Sees>
std::vector<std::uint8_t> causal_mask(std::int64_t width, Sees sees) {
  const auto n = static_cast<std::size_t>(width);
  std::vector<std::uint8_t> mask(cells(n, width), 0);
  for (std::size_t q = 0; q < n; ++q)
    for (std::size_t k = 0; k <= q; ++k) mask[q * n + k] = sees(q, k) ? 1 : 0;
  return mask;
}

void check_row(std::int64_t row, std::int64_t rows) {
  if (row < 0 || row >= rows)
    refuse(fmt::format("row {} of a batch of {}: expected 0 … {}", row, rows, rows - 1));
}

/// A batch is a struct that anybody may fill.
void check_cells(std::size_t has, std::int64_t rows, std::int64_t width, const char* name,
                 SourceLocation where = SourceLocation::current()) {
  if (width < 0 || has != cells(static_cast<std::size_t>(rows), width))
    refuse(fmt::format("{} of a batch has {} values: expected {} rows × {}", name, has, rows, width), where);
}

}  // namespace

std::int64_t truncate(std::vector<TokenId>& ids, std::int64_t most, SequenceSide side,
                      std::int64_t keep_first) {
  if (keep_first < 0 || most < keep_first)
    refuse(fmt::format("truncating to {} tokens of which the first {} stay: expected 0 ≤ {} ≤ {}", most,
                       keep_first, keep_first, most));
  const std::int64_t excess = static_cast<std::int64_t>(ids.size()) - most;
  if (excess <= 0) return 0;
  const auto from = side == SequenceSide::kLeft ? ids.begin() + keep_first : ids.end() - excess;
  ids.erase(from, from + excess);
  return excess;
}

std::vector<std::int64_t> truncate_longest_first(std::span<const std::int64_t> lengths, std::int64_t most) {
  check_lengths(lengths);
  if (most < 0) refuse(fmt::format("truncating to {} tokens: expected 0 or more", most));
  // All that are longer than a level come down to it, or to one more. The level is the largest at which the
  // sum is within `most`; ascending, `sum` is that of those before i.
  const std::vector<std::size_t> order = sorted(lengths, std::less<>{});
  std::vector<std::int64_t> result(lengths.begin(), lengths.end());
  std::int64_t left = most;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const auto others = static_cast<std::int64_t>(order.size() - i);
    if (lengths[order[i]] <= left / others) {
      left -= lengths[order[i]];
      continue;
    }
    std::vector<std::size_t> long_ones(order.begin() + static_cast<std::ptrdiff_t>(i), order.end());
    std::sort(long_ones.begin(), long_ones.end());
    const std::int64_t level = left / others, extra = left % others;
    for (std::size_t j = 0; j < long_ones.size(); ++j)
      result[long_ones[j]] = level + (static_cast<std::int64_t>(j) < extra ? 1 : 0);
    break;
  }
  return result;
}

std::vector<std::int64_t> lengths_of(Sequences sequences) {
  std::vector<std::int64_t> lengths;
  lengths.reserve(sequences.size());
  for (const auto& s : sequences) lengths.push_back(static_cast<std::int64_t>(s.size()));
  return lengths;
}

TokenWindows::TokenWindows(std::span<const TokenId> tokens, std::int64_t length, std::int64_t first)
    : tokens_(tokens), length_(length), first_(first) {
  const auto n = static_cast<std::int64_t>(tokens.size());
  if (length <= 0 || first < 0 || first > n)
    refuse(fmt::format("windows of {} tokens from token {} of {}: expected 1 or more, from 0 … {}", length,
                       first, n, n));
  size_ = (n - first) / length;
}

PaddedBatch pad(Sequences sequences, const PadOptions& options) {
  if (options.width < 0 || options.multiple_of < 1)
    refuse(fmt::format("padding to {} tokens, a multiple of {}: expected 0 or more, of 1 or more",
                       options.width, options.multiple_of));
  std::int64_t width = options.width;
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    const auto n = static_cast<std::int64_t>(sequences[i].size());
    if (options.width > 0 && n > options.width)
      refuse(fmt::format("sequence {} has {} tokens, the batch is {} wide", i, n, options.width));
    width = std::max(width, n);
  }
  if (const std::int64_t rest = width % options.multiple_of; rest != 0) {
    if (__builtin_add_overflow(width, options.multiple_of - rest, &width))
      refuse(fmt::format("a width that is a multiple of {}", options.multiple_of));
  }
  PaddedBatch batch{static_cast<std::int64_t>(sequences.size()), width, {}, {}, {}};
  const std::size_t n = cells(sequences.size(), width);
  batch.ids.assign(n, options.id);
  batch.mask.assign(n, 0);
  batch.position.assign(n, 0);
  for (std::size_t r = 0; r < sequences.size(); ++r) {
    const auto& s = sequences[r];
    const std::size_t free = static_cast<std::size_t>(width) - s.size();
    const std::size_t at =
        r * static_cast<std::size_t>(width) + (options.side == SequenceSide::kLeft ? free : 0);
    for (std::size_t i = 0; i < s.size(); ++i) {
      batch.ids[at + i] = s[i];
      batch.mask[at + i] = 1;
      batch.position[at + i] = static_cast<std::int32_t>(i);
    }
  }
  return batch;
}

std::vector<std::vector<std::size_t>> pack_lengths(std::span<const std::int64_t> lengths,
                                                   std::int64_t width) {
  check_lengths(lengths);
  std::vector<std::vector<std::size_t>> rows;
  // A tree over the rows' free places finds the first that is large enough in O(log n): leaf i is row i, and
  // a row that is not begun is free whole.
  std::size_t leaves = 1;
  while (leaves < lengths.size()) leaves *= 2;
  std::vector<std::int64_t> most_free(2 * leaves, width);
  for (const std::size_t s : sorted(lengths, std::greater<>{})) {
    if (lengths[s] > width)
      refuse(fmt::format("sequence {} has {} tokens, a row takes {}", s, lengths[s], width));
    if (lengths[s] == 0) continue;
    std::size_t node = 1;
    while (node < leaves) node = 2 * node + (most_free[2 * node] >= lengths[s] ? 0 : 1);
    if (node - leaves == rows.size()) rows.emplace_back();
    rows[node - leaves].push_back(s);
    most_free[node] -= lengths[s];
    while (node > 1) {
      node /= 2;
      most_free[node] = std::max(most_free[2 * node], most_free[2 * node + 1]);
    }
  }
  return rows;
}

PackedBatch pack(Sequences sequences, std::int64_t width, TokenId pad_id) {
  if (sequences.size() > static_cast<std::size_t>(kMost32))
    refuse(fmt::format("packing {} sequences: expected at most {}", sequences.size(), kMost32));
  if (width < 0) refuse(fmt::format("rows of {} tokens: expected 0 or more", width));
  const auto rows = pack_lengths(lengths_of(sequences), width);
  PackedBatch batch{static_cast<std::int64_t>(rows.size()), width, {}, {}, {}};
  const std::size_t n = cells(rows.size(), width);
  batch.ids.assign(n, pad_id);
  batch.sequence.assign(n, -1);
  batch.position.assign(n, 0);
  for (std::size_t r = 0; r < rows.size(); ++r) {
    std::size_t at = r * static_cast<std::size_t>(width);
    for (const std::size_t s : rows[r]) {
      for (std::size_t i = 0; i < sequences[s].size(); ++i, ++at) {
        batch.ids[at] = sequences[s][i];
        batch.sequence[at] = static_cast<std::int32_t>(s);
        batch.position[at] = static_cast<std::int32_t>(i);
      }
    }
  }
  return batch;
}

std::vector<std::uint8_t> attention_mask(const PaddedBatch& batch, std::int64_t row) {
  check_row(row, batch.rows);
  check_cells(batch.mask.size(), batch.rows, batch.width, "mask");
  const std::uint8_t* mask = batch.mask.data() + row * batch.width;
  return causal_mask(batch.width, [&](std::size_t q, std::size_t k) { return mask[q] != 0 && mask[k] != 0; });
}

std::vector<std::uint8_t> attention_mask(const PackedBatch& batch, std::int64_t row) {
  check_row(row, batch.rows);
  check_cells(batch.sequence.size(), batch.rows, batch.width, "sequence");
  const std::int32_t* of = batch.sequence.data() + row * batch.width;
  return causal_mask(batch.width, [&](std::size_t q, std::size_t k) { return of[q] >= 0 && of[q] == of[k]; });
}

std::vector<std::vector<std::size_t>> bucket(std::span<const std::int64_t> lengths,
                                             std::span<const std::int64_t> widths) {
  check_lengths(lengths);
  for (std::size_t i = 1; i < widths.size(); ++i)
    if (widths[i] <= widths[i - 1])
      refuse(fmt::format("bucket widths must ascend: {} after {}", widths[i], widths[i - 1]));
  std::vector<std::vector<std::size_t>> buckets(widths.size());
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    const auto fits = std::lower_bound(widths.begin(), widths.end(), lengths[s]);
    if (fits == widths.end())
      refuse(fmt::format("sequence {} has {} tokens, the widest bucket takes {}", s, lengths[s],
                         widths.empty() ? 0 : widths.back()));
    buckets[static_cast<std::size_t>(fits - widths.begin())].push_back(s);
  }
  return buckets;
}

std::vector<std::vector<std::size_t>> batches_by_length(std::span<const std::int64_t> lengths,
                                                        std::int64_t most_cells) {
  check_lengths(lengths);
  std::vector<std::vector<std::size_t>> batches;
  for (const std::size_t s : sorted(lengths, std::less<>{})) {
    if (lengths[s] > most_cells)
      refuse(fmt::format("sequence {} has {} tokens, a batch takes {}", s, lengths[s], most_cells));
    // Ascending, so the newcomer is the longest.
    const bool fits =
        !batches.empty() &&
        (lengths[s] == 0 || static_cast<std::int64_t>(batches.back().size()) < most_cells / lengths[s]);
    if (!fits) batches.emplace_back();
    batches.back().push_back(s);
  }
  return batches;
}

}  // namespace bitnet
