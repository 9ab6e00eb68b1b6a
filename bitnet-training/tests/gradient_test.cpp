// Every differentiable op: forward values against double precision, gradients against central differences of
// the double-precision forward. Both passes run twice, so that overwriting and accumulating gradients are
// covered.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <vector>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/text/sequences.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/losses.hpp"
#include "gradient_check.hpp"

namespace bitnet::training {
namespace {

using namespace reference;

TEST(Gradient, Linear) {
  for (const auto& [n, in, out] : {std::array<std::int64_t, 3>{1, 1, 1}, {5, 17, 9}, {33, 40, 20}}) {
    Rng rng(1);
    check({{random(rng, n, in), random(rng, out, in)},
           [](Tape& t, const auto& v) { return linear(t, v[0], v[1]); },
           [](const auto& m) { return reference::linear(m[0], m[1]); }});
  }
}

TEST(Gradient, LinearInBf16RoundsTheFactorsOfAllThreeProducts) {
  const ExecutionContext context;
  Tape tape(context, true, PrecisionPolicy::training(DType::kBF16));
  Rng rng(11);
  const Matrix x = random(rng, 5, 17), w = random(rng, 9, 17);
  const auto rounded = [](Matrix m) {
    for (double& v : m.v) v = static_cast<double>(bf16_to_f32(f32_to_bf16(static_cast<float>(v))));
    return m;
  };
  Parameter px(context, "x", 5, 17, false), pw(context, "w", 9, 17, false);
  fill(px, x);
  fill(pw, w);
  const Variable y = linear(tape, px.variable(), pw.variable());
  const Matrix expected = reference::linear(rounded(x), rounded(w));
  EXPECT_LT(relative_error(y.value(), expected.v), kTolerance);
  EXPECT_GT(relative_error(y.value(), reference::linear(x, w).v), 1e-4);  // bf16 has 8 bits
  tape.backward(reference::weighted_sum(tape, y));
  Matrix d = rounded(expected);
  for (std::size_t i = 0; i < d.v.size(); ++i) d.v[i] = coefficient(i);
  d = rounded(d);
  Matrix dx = rounded(x), dw = rounded(w);
  for (double& v : dx.v) v = 0;
  for (double& v : dw.v) v = 0;
  const Matrix xr = rounded(x), wr = rounded(w);
  for (std::size_t r = 0; r < 5; ++r)
    for (std::size_t o = 0; o < 9; ++o)
      for (std::size_t i = 0; i < 17; ++i) {
        dx.v[r * 17 + i] += d.v[r * 9 + o] * wr.v[o * 17 + i];
        dw.v[o * 17 + i] += d.v[r * 9 + o] * xr.v[r * 17 + i];
      }
  EXPECT_LT(relative_error(px.grad(), dx.v), kTolerance);
  EXPECT_LT(relative_error(pw.grad(), dw.v), kTolerance);
  BITNET_EXPECT_ERROR(Tape(context, true, PrecisionPolicy::training(DType::kF16)), ErrorCode::kUnsupported,
                      "precision of dense linear in training: storage f32, compute f16");
  BITNET_EXPECT_ERROR(Tape(context, true, PrecisionPolicy::inference()), ErrorCode::kUnsupported,
                      "precision of ternary linear in training: storage ternary");
}

TEST(Gradient, Add) {
  Rng rng(2);
  check({{random(rng, 7, 19), random(rng, 7, 19)},
         [](Tape& t, const auto& v) { return add(t, v[0], v[1]); },
         [](const auto& m) { return reference::add(m[0], m[1]); }});
}

TEST(Gradient, AddOfOneVariableToItselfCountsTwice) {
  Rng rng(3);
  check({{random(rng, 3, 5)},
         [](Tape& t, const auto& v) { return add(t, v[0], v[0]); },
         [](const auto& m) { return reference::add(m[0], m[0]); }});
}

TEST(Gradient, RmsNorm) {
  for (const std::int64_t cols : {1, 15, 16, 37}) {
    Rng rng(4);
    check({{random(rng, 70, cols), random(rng, 1, cols)},  // 70 rows: more than one partial sum
           [](Tape& t, const auto& v) { return rms_norm(t, v[0], v[1], 1e-5f); },
           [](const auto& m) { return reference::rms_norm(m[0], m[1], static_cast<double>(1e-5f)); }});
  }
}

TEST(Gradient, Relu2Gate) {
  Rng rng(5);
  check({{random(rng, 6, 21), random(rng, 6, 21)},
         [](Tape& t, const auto& v) { return relu2_gate(t, v[0], v[1]); },
         [](const auto& m) { return reference::relu2_gate(m[0], m[1]); }});
}

TEST(Gradient, Rope) {
  for (const std::int64_t head_dim : {2, 10, 32}) {
    Rng rng(6);
    const RopeTable table(8, head_dim, 10000.0);
    check({{random(rng, 10, 2 * head_dim)},
           [&](Tape& t, const auto& v) { return rope(t, v[0], table, {5}); },
           [&](const auto& m) { return reference::rope(m[0], head_dim, 10000.0, 5); }});
  }
}

TEST(Gradient, CausalAttention) {
  // Grouped heads; the last case has several query blocks with a short one at the end.
  for (const AttentionShape& s : {AttentionShape{1, 1, 1, 2}, {5, 4, 2, 6}, {7, 3, 3, 4}, {66, 2, 1, 2}}) {
    Rng rng(7);
    const std::int64_t sequences = s.length > 10 ? 1 : 2;  // differences of the long one are slow enough
    const std::int64_t n = sequences * s.length, q = s.n_heads * s.head_dim, kv = s.n_kv_heads * s.head_dim;
    check({{random(rng, n, q), random(rng, n, kv), random(rng, n, kv)},
           [&](Tape& t, const auto& v) { return causal_attention(t, v[0], v[1], v[2], s); },
           [&](const auto& m) { return reference::attention(m[0], m[1], m[2], s); }});
  }
}

TEST(Gradient, AttentionAndRopeOfPackedDocumentsFollowTheMaskOfCore) {
  // Documents of these lengths in rows of 70: more than one query block, documents that end within blocks,
  // padding at the end, and a row of padding but for one token.
  std::vector<std::vector<TokenId>> documents;
  for (const std::size_t n : {30, 20, 17, 1, 70, 1}) documents.emplace_back(n, 1);
  const PackedBatch packed = pack(documents, 70);
  ASSERT_EQ(packed.rows, 2 + (packed.rows == 3));
  std::vector<std::uint8_t> mask;
  std::vector<std::int32_t> positions;
  for (std::int64_t r = 0; r < packed.rows; ++r)
    for (const std::uint8_t m : attention_mask(packed, r)) mask.push_back(m);
  for (std::size_t i = 0; i < packed.ids.size(); ++i)
    positions.push_back(packed.sequence[i] < 0 ? -1 : packed.position[i]);
  const AttentionShape s{70, 2, 1, 2};
  Rng rng(7);
  const std::int64_t n = packed.rows * 70;
  check({{random(rng, n, 4), random(rng, n, 2), random(rng, n, 2)},
         [&](Tape& t, const auto& v) { return causal_attention(t, v[0], v[1], v[2], s, positions); },
         [&](const auto& m) { return reference::attention(m[0], m[1], m[2], s, mask); }});
  const RopeTable table(70, 2, 10000.0);
  auto seen = positions;
  std::replace(seen.begin(), seen.end(), -1, 0);
  check({{random(rng, n, 4)},
         [&](Tape& t, const auto& v) {
           return rope(t, v[0], table, {70, positions});
         },
         [&](const auto& m) { return reference::rope(m[0], 2, 10000.0, 70, seen); }});
  const ExecutionContext context;
  Tape tape(context);
  const Variable x = tape.make(3, 2, true);
  const std::vector<std::int32_t> jumps = {0, 2, 3}, few = {0};
  BITNET_EXPECT_ERROR(rope(tape, x, table, {3, jumps}), ErrorCode::kInvalidArgument, "position 2 of row 1");
  BITNET_EXPECT_ERROR(causal_attention(tape, x, x, x, {3, 1, 1, 2}, few), ErrorCode::kInvalidArgument,
                      "1 positions for 3 rows");
}

TEST(Gradient, Embedding) {
  Rng rng(8);
  static const std::vector<std::int32_t> ids = {3, 0, 3, 3, 6};  // repeated and absent rows
  check({{random(rng, 7, 70)},
         [](Tape& t, const auto& v) { return embedding(t, v[0], ids); },
         [](const auto& m) {
           Matrix y(5, 70);
           for (std::int64_t r = 0; r < 5; ++r)
             for (std::int64_t c = 0; c < 70; ++c) y.at(r, c) = m[0].at(ids[static_cast<std::size_t>(r)], c);
           return y;
         }});
}

TEST(Tape, UnreachedParametersGetZeros) {
  const ExecutionContext context;
  Tape tape(context);
  Parameter used(context, "used", 2, 2, false), unused(context, "unused", 2, 2, false);
  for (float& g : unused.grad()) g = 7;
  used.value()[0] = 1;
  linear(tape, used.variable(), unused.variable());  // recorded, but the loss does not depend on it
  tape.backward(reference::weighted_sum(tape, used.variable()));
  unused.finish_grad();
  for (const float g : unused.grad()) EXPECT_EQ(g, 0.0f);
  EXPECT_NE(used.grad()[0], 0.0f);
}

TEST(Tape, ItsMemoryIsOfTheContextsPool) {
  MemoryPoolOptions options;
  options.tracking = TrackingLevel::kStandard;
  const auto pool = std::make_shared<HybridMemoryPool>(options);
  {
    ExecutionContext::Options machine;
    machine.memory = pool;
    const ExecutionContext context(machine);
    Tape tape(context);
    Parameter q(context, "q", 8, 16, false), kv(context, "kv", 8, 8, false);
    tape.backward(reference::weighted_sum(
        tape, causal_attention(tape, q.variable(), kv.variable(), kv.variable(),
                               {.length = 8, .n_heads = 2, .n_kv_heads = 1, .head_dim = 8})));
    Parameter w(context, "w", 4, 16, false);
    static_cast<void>(linear(tape, q.variable(), w.variable()));
    std::vector<std::string> tags;
    for (const TagStats& tag : pool->tags()) tags.push_back(tag.tag);
    EXPECT_EQ(tags, (std::vector<std::string>{"gemm panels", "gradients", "parameters", "training scratch",
                                              "training tape"}));
    EXPECT_GE(pool->stats().used, tape.bytes_held());
  }
  EXPECT_EQ(pool->stats().used, 0u);
}

TEST(Tape, ASteadyStepTakesNoMoreMemory) {
  const ExecutionContext context;
  Tape tape(context);
  Rng rng(11);
  Parameter x(context, "x", 500, 300, false), w(context, "w", 400, 300, false),
      v(context, "v", 200, 400, false);
  std::size_t held = 0;
  for (int step = 0; step < 4; ++step) {
    tape.backward(
        reference::weighted_sum(tape, linear(tape, linear(tape, x.variable(), w.variable()), v.variable())));
    tape.reset();
    if (step == 1) held = tape.bytes_held();
    if (step > 1) {
      EXPECT_EQ(tape.bytes_held(), held);
    }
  }
}

TEST(Tape, EvaluationRecordsNothing) {
  const ExecutionContext context;
  Tape tape(context, false);
  Parameter x(context, "x", 3, 3, false);
  const Variable y = add(tape, x.variable(), x.variable());
  EXPECT_FALSE(y.needs_grad());
  BITNET_EXPECT_ERROR(tape.backward(tape.make(1, 1, true)), ErrorCode::kInvalidArgument, "recorded scalar");
}

TEST(Ops, ShapesThatDisagreeAreErrors) {
  const ExecutionContext context;
  Tape tape(context);
  const Variable a = tape.make(2, 3, true), b = tape.make(3, 2, true);
  const std::vector<std::int32_t> outside = {2, 3}, targets = {0, 0};
  const RopeTable table(4, 2, 10000.0);
  BITNET_EXPECT_ERROR(linear(tape, a, b), ErrorCode::kInvalidArgument, "[2, 3]");
  BITNET_EXPECT_ERROR(add(tape, a, b), ErrorCode::kInvalidArgument, "[3, 2]");
  BITNET_EXPECT_ERROR(rms_norm(tape, a, b, 1e-5f), ErrorCode::kInvalidArgument, "rms_norm");
  BITNET_EXPECT_ERROR(relu2_gate(tape, a, b), ErrorCode::kInvalidArgument, "relu2_gate");
  BITNET_EXPECT_ERROR(embedding(tape, b, outside), ErrorCode::kInvalidArgument, "id 3");
  BITNET_EXPECT_ERROR(cross_entropy(tape, b, targets, 1.0f), ErrorCode::kInvalidArgument, "2 targets");
  BITNET_EXPECT_ERROR(cross_entropy(tape, a, outside, 1.0f), ErrorCode::kInvalidArgument, "target 3");
  BITNET_EXPECT_ERROR(rope(tape, a, table, {2}), ErrorCode::kInvalidArgument, "rope");
  BITNET_EXPECT_ERROR(causal_attention(tape, a, a, a, {2, 3, 2, 1}), ErrorCode::kInvalidArgument, "heads");
  BITNET_EXPECT_ERROR(RopeTable(4, 3, 10000.0), ErrorCode::kInvalidArgument, "even");
}

}  // namespace
}  // namespace bitnet::training
