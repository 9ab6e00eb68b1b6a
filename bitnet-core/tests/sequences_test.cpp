// Cutting, padding, packing and bucketing of token sequences against their definitions, taken literally.
#include "bitnet/core/text/sequences.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "bitnet/core/rng.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet {
namespace {

using ::testing::ElementsAre;
using Ids = std::vector<TokenId>;
using Lengths = std::vector<std::int64_t>;

/// `n` sequences of 0 … longest tokens; every token is another number.
std::vector<Ids> random_sequences(Rng& rng, std::size_t n, std::uint64_t longest) {
  std::vector<Ids> all(n);
  TokenId next = 1;
  for (Ids& s : all) {
    s.resize(rng.below(longest + 1));
    for (TokenId& id : s) id = next++;
  }
  return all;
}

TEST(Truncate, CutsOneSideAndKeepsTheHead) {
  Ids ids{0, 1, 2, 3, 4, 5};
  EXPECT_EQ(truncate(ids, 6, SequenceSide::kLeft), 0);
  EXPECT_EQ(ids.size(), 6u);
  Ids left = ids, right = ids, with_bos = ids, right_bos = ids;
  EXPECT_EQ(truncate(left, 4, SequenceSide::kLeft), 2);
  EXPECT_THAT(left, ElementsAre(2, 3, 4, 5));
  EXPECT_EQ(truncate(right, 4, SequenceSide::kRight), 2);
  EXPECT_THAT(right, ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(truncate(with_bos, 3, SequenceSide::kLeft, 1), 3);
  EXPECT_THAT(with_bos, ElementsAre(0, 4, 5));
  EXPECT_EQ(truncate(right_bos, 1, SequenceSide::kRight, 1), 5);
  EXPECT_THAT(right_bos, ElementsAre(0));
  EXPECT_EQ(truncate(ids, 0, SequenceSide::kRight), 6);
  EXPECT_TRUE(ids.empty());
  BITNET_EXPECT_ERROR(truncate(ids, 2, SequenceSide::kLeft, 3), ErrorCode::kInvalidArgument,
                      "the first 3 stay: expected 0 ≤ 3 ≤ 2");
}

TEST(Truncate, LongestFirstIsOneTokenAtATime) {
  Rng rng(3);
  for (int round = 0; round < 300; ++round) {
    Lengths lengths(1 + rng.below(6));
    for (auto& n : lengths) n = static_cast<std::int64_t>(rng.below(12));
    const std::int64_t total = std::accumulate(lengths.begin(), lengths.end(), std::int64_t{0});
    const auto most = static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>(total) + 3));
    Lengths expected = lengths;
    for (std::int64_t sum = total; sum > most; --sum) {
      std::size_t longest = 0;  // the last of the longest
      for (std::size_t i = 0; i < expected.size(); ++i)
        if (expected[i] >= expected[longest]) longest = i;
      --expected[longest];
    }
    EXPECT_EQ(truncate_longest_first(lengths, most), expected) << ::testing::PrintToString(lengths) << most;
  }
  EXPECT_TRUE(truncate_longest_first({}, 5).empty());
  BITNET_EXPECT_ERROR(truncate_longest_first(Lengths{1}, -1), ErrorCode::kInvalidArgument,
                      "truncating to -1 tokens: expected 0 or more");
  BITNET_EXPECT_ERROR(truncate_longest_first(Lengths{1, -2}, 1), ErrorCode::kInvalidArgument, "sequence 1");
}

TEST(Windows, CoverTheTokensWithoutOverlap) {
  const Ids ids{0, 1, 2, 3, 4, 5, 6};
  const TokenWindows all(ids, 3), shifted(ids, 3, 2), none(ids, 3, 7);
  ASSERT_EQ(all.size(), 2);
  EXPECT_THAT(all[1], ElementsAre(3, 4, 5));
  ASSERT_EQ(shifted.size(), 1);
  EXPECT_EQ(shifted.begin_of(0), 2);
  EXPECT_THAT(shifted[0], ElementsAre(2, 3, 4));
  EXPECT_EQ(none.size(), 0);
  EXPECT_EQ(TokenWindows(Ids{}, 3).size(), 0);
  BITNET_EXPECT_ERROR(TokenWindows(ids, 0), ErrorCode::kInvalidArgument, "windows of 0 tokens");
  BITNET_EXPECT_ERROR(TokenWindows(ids, 3, 8), ErrorCode::kInvalidArgument, "token 8 of 7");
}

TEST(Pad, FillsARectangle) {
  const std::vector<Ids> s{{1, 2, 3}, {}, {4}};
  const PaddedBatch right = pad(s, {.id = 9, .multiple_of = 4});
  EXPECT_EQ(right.width, 4);
  EXPECT_THAT(right.ids, ElementsAre(1, 2, 3, 9, 9, 9, 9, 9, 4, 9, 9, 9));
  EXPECT_THAT(right.mask, ElementsAre(1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0));
  const PaddedBatch left = pad(s, {.id = 9, .side = SequenceSide::kLeft});
  EXPECT_THAT(left.ids, ElementsAre(1, 2, 3, 9, 9, 9, 9, 9, 4));
  EXPECT_THAT(left.position, ElementsAre(0, 1, 2, 0, 0, 0, 0, 0, 0));
  EXPECT_EQ(pad(s, {.width = 5}).width, 5);
  EXPECT_EQ(pad({}, {}).ids.size(), 0u);
  BITNET_EXPECT_ERROR(pad(s, {.width = 2}), ErrorCode::kInvalidArgument, "has 3 tokens, the batch is 2");
  BITNET_EXPECT_ERROR(pad(s, {.multiple_of = 0}), ErrorCode::kInvalidArgument, "multiple of 0");
  BITNET_EXPECT_ERROR(pad(s, {.width = std::int64_t{1} << 62}), ErrorCode::kInvalidArgument, "batch of 3");
}

TEST(Pack, LosesNothingAndNeverFillsARowTwice) {
  Rng rng(7);
  for (int round = 0; round < 50; ++round) {
    const auto s = random_sequences(rng, rng.below(40), 16);
    const PackedBatch batch = pack(s, 16, -5);
    std::map<std::int32_t, Ids> found;
    for (std::size_t i = 0; i < batch.ids.size(); ++i) {
      if (batch.sequence[i] < 0) {
        EXPECT_EQ(batch.ids[i], -5);
        continue;
      }
      Ids& own = found[batch.sequence[i]];
      EXPECT_EQ(batch.position[i], static_cast<std::int32_t>(own.size()));
      own.push_back(batch.ids[i]);
    }
    std::int64_t total = 0;
    for (std::size_t i = 0; i < s.size(); ++i) {
      EXPECT_EQ(found[static_cast<std::int32_t>(i)], s[i]);
      total += static_cast<std::int64_t>(s[i].size());
    }
    // First fit leaves at most one row less than half full.
    EXPECT_LE(batch.rows, 2 * total / 16 + 1);
  }
}

TEST(Pack, IsFirstFitDecreasing) {
  Rng rng(8);
  for (int round = 0; round < 100; ++round) {
    Lengths lengths(rng.below(30));
    for (auto& n : lengths) n = static_cast<std::int64_t>(rng.below(11));
    std::vector<std::size_t> order(lengths.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return lengths[a] > lengths[b]; });
    std::vector<std::vector<std::size_t>> rows;
    Lengths used;
    for (const std::size_t s : order) {
      if (lengths[s] == 0) continue;
      std::size_t r = 0;
      while (r < rows.size() && used[r] + lengths[s] > 10) ++r;
      if (r == rows.size()) rows.emplace_back(), used.push_back(0);
      rows[r].push_back(s);
      used[r] += lengths[s];
    }
    EXPECT_EQ(pack_lengths(lengths, 10), rows);
  }
  BITNET_EXPECT_ERROR(pack_lengths(Lengths{3, 11}, 10), ErrorCode::kInvalidArgument,
                      "sequence 1 has 11 tokens, a row takes 10");
}

TEST(Masks, AreCausalAndWithinOneSequence) {
  const std::vector<Ids> s{{1, 2}, {3, 4}};
  const auto packed = attention_mask(pack(s, 5), 0);
  EXPECT_THAT(packed, ElementsAre(1, 0, 0, 0, 0,  //
                                  1, 1, 0, 0, 0,  //
                                  0, 0, 1, 0, 0,  //
                                  0, 0, 1, 1, 0,  //
                                  0, 0, 0, 0, 0));
  const PaddedBatch left = pad(s, {.side = SequenceSide::kLeft, .width = 3});
  EXPECT_THAT(attention_mask(left, 1), ElementsAre(0, 0, 0, 0, 1, 0, 0, 1, 1));
  BITNET_EXPECT_ERROR(attention_mask(left, 2), ErrorCode::kInvalidArgument, "row 2 of a batch of 2");
}

TEST(Bucket, PutsEachIntoTheNarrowestThatFits) {
  const Lengths lengths{5, 1, 8, 0, 4, 9};
  EXPECT_THAT(bucket(lengths, Lengths{4, 8, 16}),
              ElementsAre(ElementsAre(1u, 3u, 4u), ElementsAre(0u, 2u), ElementsAre(5u)));
  BITNET_EXPECT_ERROR(bucket(lengths, Lengths{4, 8}), ErrorCode::kInvalidArgument, "sequence 5 has 9 tokens");
  BITNET_EXPECT_ERROR(bucket(lengths, Lengths{8, 8}), ErrorCode::kInvalidArgument, "must ascend");
}

TEST(Bucket, BatchesByLengthStayWithinTheirCells) {
  Rng rng(9);
  Lengths lengths(200);
  for (auto& n : lengths) n = static_cast<std::int64_t>(rng.below(50));
  const auto batches = batches_by_length(lengths, 120);
  std::set<std::size_t> seen;
  std::int64_t before = 0;
  for (std::size_t b = 0; b < batches.size(); ++b) {
    std::int64_t longest = 0;
    for (const std::size_t s : batches[b]) {
      EXPECT_TRUE(seen.insert(s).second);
      EXPECT_GE(lengths[s], before);
      before = lengths[s];
      longest = std::max(longest, lengths[s]);
    }
    const auto members = static_cast<std::int64_t>(batches[b].size());
    EXPECT_LE(members * longest, 120);
    if (b + 1 < batches.size()) {
      EXPECT_GT((members + 1) * lengths[batches[b + 1].front()], 120);
    }
  }
  EXPECT_EQ(seen.size(), lengths.size());
  BITNET_EXPECT_ERROR(batches_by_length(Lengths{121}, 120), ErrorCode::kInvalidArgument, "has 121 tokens");
}

TEST(Statistics, AreThoseOfTheLengths) {
  Lengths lengths(100);
  std::iota(lengths.begin(), lengths.end(), 1);
  std::reverse(lengths.begin(), lengths.end());
  const LengthStatistics s = length_statistics(lengths);
  EXPECT_EQ(s.count, 100);
  EXPECT_EQ(s.total, 5050);
  EXPECT_EQ(s.shortest, 1);
  EXPECT_EQ(s.longest, 100);
  EXPECT_EQ(s.median, 50);
  EXPECT_EQ(s.p90, 90);
  EXPECT_EQ(s.p99, 99);
  EXPECT_DOUBLE_EQ(s.mean, 50.5);
  EXPECT_NEAR(s.deviation, std::sqrt(100.0 * 101 / 12), 1e-12);  // of 1 … n: sqrt(n(n+1)/12)
  EXPECT_EQ(length_statistics({}).count, 0);
  const LengthStatistics one = length_statistics(Lengths{7});
  EXPECT_EQ(one.median + one.p90 + one.p99, 21);
  EXPECT_EQ(one.deviation, 0);
}

TEST(Statistics, CountTokensOfACorpus) {
  const std::vector<Ids> s{{3, 1, 1}, {}, {1, 2, 2, 1, 4}};
  const CorpusStatistics c = corpus_statistics(s, 5, 2);
  EXPECT_EQ(c.lengths.total, 8);
  EXPECT_EQ(c.distinct_tokens, 4);
  EXPECT_DOUBLE_EQ(c.entropy_bits, 0.5 * 1 + 0.25 * 2 + 2 * 0.125 * 3);
  ASSERT_EQ(c.most_frequent.size(), 2u);
  EXPECT_EQ(c.most_frequent[0].id, 1);
  EXPECT_EQ(c.most_frequent[0].count, 4);
  EXPECT_EQ(c.most_frequent[1].id, 2);
  EXPECT_EQ(corpus_statistics({}, 5).entropy_bits, 0);
  BITNET_EXPECT_ERROR(corpus_statistics(s, 4), ErrorCode::kInvalidArgument,
                      "token 4 of sequence 2 is 4: expected 0 … 3");
  // The same sequences, one behind the other.
  const Ids flat{3, 1, 1, 1, 2, 2, 1, 4};
  const CorpusStatistics f = corpus_statistics(flat, Lengths{3, 3, 8}, 5, 2);
  EXPECT_EQ(f.lengths.count, 3);
  EXPECT_EQ(f.lengths.shortest, 0);
  EXPECT_EQ(f.lengths.longest, 5);
  EXPECT_EQ(f.distinct_tokens, 4);
  EXPECT_EQ(f.entropy_bits, c.entropy_bits);
  EXPECT_EQ(f.most_frequent[1].id, 2);
  BITNET_EXPECT_ERROR(corpus_statistics(flat, Lengths{3, 3, 8}, 4), ErrorCode::kInvalidArgument,
                      "token 4 of sequence 2 is 4: expected 0 … 3");
  BITNET_EXPECT_ERROR(corpus_statistics(flat, Lengths{3, 2, 8}, 5), ErrorCode::kInvalidArgument,
                      "sequence 1 ends at token 2: expected 3 … 8");
  BITNET_EXPECT_ERROR(corpus_statistics(flat, Lengths{3, 9}, 5), ErrorCode::kInvalidArgument,
                      "sequence 1 ends at token 9: expected 3 … 8");
  BITNET_EXPECT_ERROR(corpus_statistics(flat, Lengths{3}, 5), ErrorCode::kInvalidArgument,
                      "the last sequence ends at token 3: expected 8");
}

TEST(Statistics, RefuseWhatCannotBeCounted) {
  BITNET_EXPECT_ERROR(length_statistics(Lengths{3, -1}), ErrorCode::kInvalidArgument,
                      "a sequence of length -1: expected 0 or more");
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(length_statistics(Lengths{kHuge}).total, kHuge);
  BITNET_EXPECT_ERROR(length_statistics(Lengths{kHuge, 1}), ErrorCode::kInvalidArgument,
                      "lengths of 2 sequences: expected a sum below 2^63");
  for (const std::int64_t vocab : {std::int64_t{0}, (std::int64_t{1} << 31) + 1, kHuge})
    BITNET_EXPECT_ERROR(corpus_statistics({}, vocab), ErrorCode::kInvalidArgument, "expected 1 … 2147483648");
}

TEST(Batches, AMaskOfABatchThatDoesNotFitItselfIsRefused) {
  PaddedBatch padded = pad(std::vector<Ids>{{1, 2}, {3}});
  padded.width = 3;
  BITNET_EXPECT_ERROR(attention_mask(padded, 1), ErrorCode::kInvalidArgument,
                      "mask of a batch has 4 values: expected 2 rows × 3");
  PackedBatch packed = pack(std::vector<Ids>{{1, 2}, {3}}, 4);
  packed.sequence.pop_back();
  BITNET_EXPECT_ERROR(attention_mask(packed, 0), ErrorCode::kInvalidArgument, "sequence of a batch has 3");
  packed.width = -1;
  BITNET_EXPECT_ERROR(attention_mask(packed, 0), ErrorCode::kInvalidArgument, "rows × -1");
}

TEST(Batches, EveryRefusalHasAPlaceOfItsOwn) {
  const auto line_of = [](auto&& call) {
    try {
      call();
    } catch (const Error& e) {
      return e.where().line;
    }
    return 0u;
  };
  const unsigned long_one = line_of([] { (void)pad(std::vector<Ids>{{1, 2, 3}}, {.width = 2}); });
  const unsigned multiple = line_of([] { (void)pad(std::vector<Ids>{{1}}, {.multiple_of = 0}); });
  EXPECT_GT(long_one, 0u);
  EXPECT_GT(multiple, 0u);
  EXPECT_NE(long_one, multiple);  // through one helper
}

}  // namespace
}  // namespace bitnet
