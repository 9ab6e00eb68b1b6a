// Sampler: each filter against its definition, determinism, distributions, refusals.
#include "bitnet/inference/sampler.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "bitnet/core/rng.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::inference {
namespace {

SamplerOptions everything_off() {
  SamplerOptions o;
  o.temperature = 1;
  o.top_k = 0;
  o.top_p = 1;
  o.min_p = 0;
  return o;
}

std::set<TokenId> seen(const SamplerOptions& options, const std::vector<float>& logits, int draws = 4000) {
  Sampler sampler(options, static_cast<std::int64_t>(logits.size()));
  std::set<TokenId> ids;
  for (int i = 0; i < draws; ++i) ids.insert(sampler.sample(logits));
  return ids;
}

TEST(Sampler, GreedyTakesTheLargestAndTheLowestIdOnTies) {
  SamplerOptions o;
  o.temperature = 0;
  EXPECT_EQ(Sampler(o, 4).sample(std::vector<float>{1, 3, 3, 2}), 1);
  EXPECT_EQ(Sampler(o, 3).sample(std::vector<float>{-5, -INFINITY, -4}), 2);
}

TEST(Sampler, DrawsWithTheProbabilitiesOfSoftmax) {
  const std::vector<float> logits{0.0f, std::log(2.0f), std::log(5.0f)};
  SamplerOptions o = everything_off();
  o.seed = 7;
  Sampler sampler(o, 3);
  std::map<TokenId, int> counts;
  const int n = 80000;
  for (int i = 0; i < n; ++i) ++counts[sampler.sample(logits)];
  for (const auto& [id, p] : std::map<TokenId, double>{{0, 0.125}, {1, 0.25}, {2, 0.625}})
    EXPECT_NEAR(counts[id] / static_cast<double>(n), p, 5 * std::sqrt(p * (1 - p) / n));
}

TEST(Sampler, TemperatureSharpens) {
  const std::vector<float> logits{0.0f, std::log(2.0f)};
  SamplerOptions o = everything_off();
  o.temperature = 0.5f;  // odds 1 : 4
  Sampler sampler(o, 2);
  int ones = 0;
  for (int i = 0; i < 40000; ++i) ones += sampler.sample(logits);
  EXPECT_NEAR(ones / 40000.0, 0.8, 5 * std::sqrt(0.8 * 0.2 / 40000));
}

TEST(Sampler, TheNeededLogitsDecideAlone) {
  constexpr std::int64_t kVocab = 500;
  Rng rng(3);
  for (const float temperature : {0.0f, 0.9f}) {
    for (const std::int32_t top_k : {1, 7, 40}) {
      for (const float penalty : {1.0f, 1.7f}) {
        SamplerOptions o;
        o.temperature = temperature;
        o.top_k = top_k;
        o.repeat_penalty = penalty;
        o.repeat_last_n = 20;
        Sampler whole(o, kVocab), part(o, kVocab);
        const std::int64_t needed = whole.needed_logits();
        ASSERT_EQ(needed, (temperature == 0 ? 1 : top_k) + (penalty > 1 ? 20 : 0));
        for (int step = 0; step < 300; ++step) {
          std::vector<float> logits;
          for (std::int64_t i = 0; i < kVocab; ++i)  // of few values, so that there are ties
            logits.push_back(std::round(static_cast<float>(rng.normal()) * 4) -
                             (step % 2 == 0 ? 30.0f : 0.0f));
          std::vector<std::size_t> order(logits.size());
          std::iota(order.begin(), order.end(), std::size_t{0});
          std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return logits[a] > logits[b]; });
          std::vector<float> largest(logits.size(), -INFINITY);
          for (std::int64_t i = 0; i < needed; ++i) {
            const std::size_t id = order[static_cast<std::size_t>(i)];
            largest[id] = logits[id];
          }
          const TokenId token = whole.sample(logits);
          ASSERT_EQ(part.sample(largest), token) << "step " << step << ", top_k " << top_k;
          whole.accept(token);
          part.accept(token);
        }
      }
    }
  }
  SamplerOptions all;
  all.top_k = 0;
  EXPECT_EQ(Sampler(all, kVocab).needed_logits(), 0);
  all.temperature = 0;
  EXPECT_EQ(Sampler(all, kVocab).needed_logits(), 1);
  all.repeat_penalty = 0.5f;  // lifts logits from anywhere
  EXPECT_EQ(Sampler(all, kVocab).needed_logits(), 0);
}

TEST(Sampler, TopKKeepsTheKLargest) {
  SamplerOptions o = everything_off();
  o.top_k = 2;
  EXPECT_EQ(seen(o, {1, 1.5f, 2, 1.9f}), (std::set<TokenId>{2, 3}));
  o.top_k = 1;
  EXPECT_EQ(seen(o, {2, 2, 2}), (std::set<TokenId>{0}));  // lowest ids on ties
  o.top_k = 100;
  EXPECT_EQ(seen(o, {1, 1, 1}).size(), 3u);
}

/// penalty → top-k → temperature with a whole sort, from the definition.
TokenId plain_sample(std::vector<float> logits, const std::set<TokenId>& window, const SamplerOptions& o,
                     Rng& rng) {
  for (const TokenId id : window) {
    float& logit = logits[static_cast<std::size_t>(id)];
    logit = logit <= 0 ? logit * o.repeat_penalty : logit / o.repeat_penalty;
  }
  std::vector<TokenId> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto at = [&](TokenId id) { return logits[static_cast<std::size_t>(id)]; };
  std::stable_sort(ids.begin(), ids.end(), [&](TokenId a, TokenId b) { return at(a) > at(b); });
  if (o.temperature == 0) return ids[0];
  if (o.top_k > 0 && static_cast<std::size_t>(o.top_k) < ids.size())
    ids.resize(static_cast<std::size_t>(o.top_k));
  double sum = 0;
  std::vector<double> p;
  for (const TokenId id : ids) {
    p.push_back(std::exp((static_cast<double>(at(id)) - at(ids[0])) / o.temperature));
    sum += p.back();
  }
  double left = rng.uniform() * sum;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    left -= p[i];
    if (left < 0) return ids[i];
  }
  return ids[0];
}

// Sizes around whole blocks of logits, many ties, both zeros, impossible tokens.
TEST(Sampler, TakesWhatAWholeSortTakes) {
  Rng random(3);
  for (const std::size_t vocab : {1u, 5u, 63u, 64u, 65u, 200u, 1000u}) {
    for (const std::int32_t top_k : {0, 1, 40, 70, 5000}) {
      for (const float temperature : {0.0f, 0.9f}) {
        for (const float penalty : {1.0f, 1.3f}) {
          SamplerOptions o = everything_off();
          o.top_k = top_k;
          o.temperature = temperature;
          o.repeat_penalty = penalty;
          o.repeat_last_n = 4;
          o.seed = vocab;
          Sampler sampler(o, static_cast<std::int64_t>(vocab));
          Rng rng(o.seed);
          std::vector<TokenId> last;
          for (int step = 0; step < 20; ++step) {
            std::vector<float> logits(vocab);
            for (float& l : logits) l = static_cast<float>(random.below(41)) / 4 - 5;  // zeros and ties
            for (float& l : logits)
              if (random.below(10) == 0) l = l == 0 ? -0.0f : -INFINITY;
            logits[random.below(vocab)] = 1;  // one is possible
            const std::set<TokenId> window(last.size() > 4 ? last.end() - 4 : last.begin(), last.end());
            const TokenId expected =
                plain_sample(logits, penalty == 1 ? std::set<TokenId>{} : window, o, rng);
            ASSERT_EQ(sampler.sample(logits), expected) << vocab << ' ' << top_k << ' ' << temperature;
            last.push_back(expected);
            sampler.accept(expected);
          }
        }
      }
    }
  }
}

TEST(Sampler, TopPKeepsTheSmallestSetThatReachesP) {
  // probabilities 0.5, 0.3, 0.2
  const std::vector<float> logits{std::log(0.2f), std::log(0.5f), std::log(0.3f)};
  SamplerOptions o = everything_off();
  o.top_p = 0.45f;
  EXPECT_EQ(seen(o, logits), (std::set<TokenId>{1}));
  o.top_p = 0.6f;
  EXPECT_EQ(seen(o, logits), (std::set<TokenId>{1, 2}));
  o.top_p = 0.85f;
  EXPECT_EQ(seen(o, logits).size(), 3u);
}

TEST(Sampler, MinPIsRelativeToTheLargestAndPrecedesTemperature) {
  const std::vector<float> logits{std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  SamplerOptions o = everything_off();
  o.min_p = 0.5f;
  EXPECT_EQ(seen(o, logits), (std::set<TokenId>{0, 1}));
  o.temperature = 100;  // were it applied before, all three would be nearly equal
  EXPECT_EQ(seen(o, logits), (std::set<TokenId>{0, 1}));
}

TEST(Sampler, RepetitionPenaltyDividesPositiveAndMultipliesNegativeLogitsInItsWindow) {
  SamplerOptions o;
  o.temperature = 0;
  o.repeat_penalty = 2;
  o.repeat_last_n = 2;
  Sampler sampler(o, 3);
  sampler.accept(0);
  EXPECT_EQ(sampler.sample(std::vector<float>{3, 2, -9}), 1);       // 1.5 against 2
  EXPECT_EQ(sampler.sample(std::vector<float>{3, 1, -9}), 0);       // 1.5 against 1
  EXPECT_EQ(sampler.sample(std::vector<float>{-1, -1.5f, -9}), 1);  // −2 against −1.5
  sampler.accept(0);  // twice in the window: the penalty applies once
  EXPECT_EQ(sampler.sample(std::vector<float>{3, 1, -9}), 0);
  sampler.accept(2);
  sampler.accept(2);  // 0 has left the window
  EXPECT_EQ(sampler.sample(std::vector<float>{3, 2.9f, -9}), 0);
}

TEST(Sampler, SameSeedSameTokensOtherSeedOtherTokens) {
  std::vector<float> logits(100);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i));
  const auto draw = [&](std::uint64_t seed) {
    SamplerOptions o;
    o.seed = seed;
    Sampler sampler(o, 100);
    std::vector<TokenId> ids;
    for (int i = 0; i < 50; ++i) ids.push_back(sampler.sample(logits));
    return ids;
  };
  EXPECT_EQ(draw(3), draw(3));
  EXPECT_NE(draw(3), draw(4));
}

TEST(Sampler, RefusesLogitsThatAreNoNumbers) {
  for (const float temperature : {0.0f, 0.8f}) {
    SamplerOptions o;
    o.temperature = temperature;
    Sampler sampler(o, 3);
    BITNET_EXPECT_ERROR(sampler.sample(std::vector<float>{0, NAN, 1}), ErrorCode::kInternal,
                        "logit 1 is nan");
    BITNET_EXPECT_ERROR(sampler.sample(std::vector<float>{0, 1, INFINITY}), ErrorCode::kInternal, "logit 2");
    BITNET_EXPECT_ERROR(sampler.sample(std::vector<float>(3, -INFINITY)), ErrorCode::kInternal, "finite");
    BITNET_EXPECT_ERROR(sampler.sample(std::vector<float>(2)), ErrorCode::kInvalidArgument, "2 logits");
  }
}

TEST(Sampler, RefusesOptionsOutOfRange) {
  const auto refused = [](auto change, const char* name) {
    SamplerOptions o;
    change(o);
    BITNET_EXPECT_ERROR(Sampler(o, 3), ErrorCode::kInvalidArgument, name);
  };
  refused([](auto& o) { o.temperature = -1; }, "temperature");
  refused([](auto& o) { o.temperature = NAN; }, "temperature");
  refused([](auto& o) { o.top_p = 0; }, "top_p");
  refused([](auto& o) { o.top_p = 1.5f; }, "top_p");
  refused([](auto& o) { o.min_p = -0.1f; }, "min_p");
  refused([](auto& o) { o.repeat_penalty = 0; }, "repeat_penalty");
  refused([](auto& o) { o.repeat_last_n = -1; }, "repeat_last_n");
}

}  // namespace
}  // namespace bitnet::inference
