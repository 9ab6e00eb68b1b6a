// The multiple-choice knapsack against every assignment tried, on small cases of all kinds; large ones
// against their bounds.
#include "bitnet/quant/assignment.hpp"

#include <cmath>
#include <limits>

#include "bitnet/core/rng.hpp"
#include "bitnet/testing/testing.hpp"

namespace bitnet::quant {
namespace {

using Things = std::vector<std::vector<Choice>>;

/// The least cost within the limit and, of those, the least weight; by trying all.
std::optional<Choice> brute_force(const Things& things, double limit) {
  std::optional<Choice> best;
  std::vector<std::size_t> at(things.size(), 0);
  for (;;) {
    Choice sum;
    for (std::size_t i = 0; i < things.size(); ++i) {
      sum.weight += things[i][at[i]].weight;
      sum.cost += things[i][at[i]].cost;
    }
    if (sum.weight <= limit &&
        (!best || sum.cost < best->cost || (sum.cost == best->cost && sum.weight < best->weight)))
      best = sum;
    std::size_t i = 0;
    while (i < things.size() && ++at[i] == things[i].size()) at[i++] = 0;
    if (i == things.size()) return best;
  }
}

/// Whole numbers, so that sums are exact and ties are many.
Things random_things(Rng& rng, std::size_t n, std::uint64_t sizes, std::uint64_t costs) {
  Things things(n);
  for (auto& t : things) {
    t.resize(1 + rng.below(4));
    for (Choice& c : t) c = {static_cast<double>(rng.below(sizes)), static_cast<double>(rng.below(costs))};
  }
  return things;
}

TEST(Assign, IsWhatTryingAllFinds) {
  Rng rng(1);
  std::size_t without = 0;
  for (int round = 0; round < 600; ++round) {
    const std::uint64_t sizes = round % 3 == 0 ? 5 : 1000, costs = round % 5 == 0 ? 4 : 100000;
    const Things things = random_things(rng, 1 + rng.below(7), sizes, costs);
    const double limit = static_cast<double>(rng.below(sizes * things.size()));
    const auto expected = brute_force(things, limit);
    const auto got = assign(things, limit);
    ASSERT_EQ(got.has_value(), expected.has_value()) << round;
    without += got ? 0 : 1;
    if (!got) continue;
    EXPECT_EQ(got->cost, expected->cost) << round;
    EXPECT_EQ(got->weight, expected->weight) << round;
    EXPECT_LE(got->weight, limit);
    EXPECT_TRUE(got->exact);
    Choice sum;
    for (std::size_t i = 0; i < things.size(); ++i) {
      sum.weight += things[i].at(got->chosen[i]).weight;
      sum.cost += things[i][got->chosen[i]].cost;
    }
    EXPECT_EQ(sum.cost, got->cost);
    EXPECT_EQ(sum.weight, got->weight);
  }
  EXPECT_GT(without, 10u);
  EXPECT_LT(without, 500u);
}

TEST(Assign, NegativeCostsAndFractions) {
  Rng rng(2);
  for (int round = 0; round < 200; ++round) {
    Things things = random_things(rng, 1 + rng.below(6), 50, 2);
    for (auto& t : things)
      for (Choice& c : t) c.cost = rng.normal();
    const double limit = static_cast<double>(rng.below(60 * things.size()));
    const auto expected = brute_force(things, limit);
    const auto got = assign(things, limit);
    ASSERT_EQ(got.has_value(), expected.has_value());
    if (got) {
      EXPECT_NEAR(got->cost, expected->cost, 1e-12);
    }
  }
}

/// As of a model of 32 layers: seven linears of four shapes, three sizes each.
Things model_like(Rng& rng, std::size_t layers) {
  Things things;
  for (std::size_t l = 0; l < layers; ++l)
    for (const double cells : {4096.0 * 4096, 4096.0 * 1024, 4096.0 * 1024, 4096.0 * 4096, 4096.0 * 14336,
                               4096.0 * 14336, 4096.0 * 14336}) {
      const double cost = std::exp(rng.normal());
      things.push_back({{cells / 4 + 16384, cost},
                        {cells / 2 + 32768, cost * (0.05 + 0.1 * rng.uniform())},
                        {cells + 16384, cost * 0.001}});
    }
  return things;
}

TEST(Assign, AModelOfManyLayers) {
  Rng rng(3);
  const Things things = model_like(rng, 32);
  double least = 0, most = 0, last = std::numeric_limits<double>::infinity();
  for (const auto& t : things) {
    least += t.front().weight;
    most += t.back().weight;
  }
  for (const double share : {0.0, 0.1, 0.35, 0.6, 0.9, 1.0}) {
    const double limit = least + share * (most - least);
    const auto got = assign(things, limit);
    ASSERT_TRUE(got.has_value());
    EXPECT_TRUE(got->exact);
    EXPECT_LE(got->weight, limit);
    EXPECT_LT(got->cost, last);
    last = got->cost;
    // Nothing is left that one more step would fit and improve.
    for (std::size_t i = 0; i < things.size(); ++i)
      for (const Choice& c : things[i]) {
        const Choice& now = things[i][got->chosen[i]];
        EXPECT_FALSE(c.cost < now.cost && got->weight - now.weight + c.weight <= limit);
      }
  }
  EXPECT_FALSE(assign(things, least - 1).has_value());
}

TEST(Assign, ACutSearchSaysSoAndKeepsToTheLimit) {
  Rng rng(4);
  Things things(60);
  for (auto& t : things)
    for (int i = 0; i < 3; ++i) t.push_back({1000 * rng.uniform(), 1000 * rng.uniform()});
  const auto exact = assign(things, 20000);
  ASSERT_TRUE(exact && exact->exact);
  const auto cut = assign(things, 20000, {.max_states = 2});
  ASSERT_TRUE(cut.has_value());
  EXPECT_FALSE(cut->exact);
  EXPECT_LE(cut->weight, 20000);
  EXPECT_GE(cut->cost, exact->cost);
  EXPECT_LT(cut->cost, 2 * exact->cost);
}

TEST(Assign, Refusals) {
  const double inf = std::numeric_limits<double>::infinity();
  EXPECT_EQ(assign({}, 0)->cost, 0);
  const Things none{{{1, 1}}, {}};
  BITNET_EXPECT_ERROR(assign(none, 1), ErrorCode::kInvalidArgument, "thing 1 has no choices");
  const Things nan{{{1, std::nan("")}}};
  BITNET_EXPECT_ERROR(assign(nan, 1), ErrorCode::kInvalidArgument,
                      "thing 0 has a choice of weight 1 and cost nan");
  const Things one{{{1, 1}}};
  BITNET_EXPECT_ERROR(assign(one, inf), ErrorCode::kInvalidArgument, "a limit of inf");
}

}  // namespace
}  // namespace bitnet::quant
