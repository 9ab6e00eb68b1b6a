// Attention relations against double precision, and that a student comes nearer to its teacher. The KL of
// predictions is losses_test.cpp.
#include "bitnet/training/distillation.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "bitnet/testing/reference_forward.hpp"
#include "bitnet/testing/testing.hpp"
#include "bitnet/training/language_model.hpp"
#include "bitnet/training/losses.hpp"
#include "bitnet/training/optimizer.hpp"
#include "gradient_check.hpp"

namespace bitnet::training {
namespace {

using reference::Matrix;

/// Softmax relations of row i with rows [begin, end) in one head.
std::vector<double> relations(const Matrix& x, std::int64_t i, std::int64_t begin, std::int64_t end,
                              std::int64_t head, std::int64_t heads) {
  const std::int64_t dim = x.cols / heads;
  std::vector<double> p;
  double sum = 0;
  for (std::int64_t j = begin; j < end; ++j) {
    double dot = 0;
    for (std::int64_t d = head * dim; d < (head + 1) * dim; ++d) dot += x.at(i, d) * x.at(j, d);
    p.push_back(std::exp(dot / std::sqrt(static_cast<double>(dim))));
    sum += p.back();
  }
  for (double& v : p) v /= sum;
  return p;
}

/// `documents`: [begin, end) of rows, which are whole documents.
Matrix slow_relations(const Matrix& x, const Matrix& teacher, std::int64_t heads, double scale,
                      const std::vector<std::pair<std::int64_t, std::int64_t>>& documents) {
  Matrix loss(1, 1);
  for (const auto& [begin, end] : documents)
    for (std::int64_t head = 0; head < heads; ++head)
      for (std::int64_t i = begin; i < end; ++i) {
        const auto q = relations(x, i, begin, end, head, heads),
                   p = relations(teacher, i, begin, end, head, heads);
        for (std::size_t j = 0; j < p.size(); ++j)
          loss.v[0] += scale / static_cast<double>(heads) * p[j] * std::log(p[j] / q[j]);
      }
  return loss;
}

void check_relations(const std::vector<std::int32_t>& positions,
                     const std::vector<std::pair<std::int64_t, std::int64_t>>& documents) {
  const ExecutionContext context;
  Rng rng(3);
  const Matrix teacher = reference::random(rng, 10, 18, 0.7);
  Parameter t(context, "t", 10, 18, false);
  reference::fill(t, teacher);
  reference::check({{reference::random(rng, 10, 12, 0.7)},
                    [&](Tape& tape, const auto& v) {
                      return attention_relations(tape, v[0], t.variable(), 3, {5, positions}, 0.5f);
                    },
                    [&](const auto& m) { return slow_relations(m[0], teacher, 3, 0.5, documents); }});
}

TEST(AttentionRelations, AreThoseOfTheDocumentsRows) {
  check_relations({}, {{0, 5}, {5, 10}});
  check_relations({0, 1, 0, 1, 2, 0, 1, 2, -1, -1}, {{0, 2}, {2, 5}, {5, 8}});
}

TEST(AttentionRelations, OfTheSameStatesAreNoLoss) {
  const ExecutionContext context;
  Rng rng(3);
  Parameter x(context, "x", 8, 12, false);
  reference::fill(x, reference::random(rng, 8, 12));
  Tape tape(context);
  const Variable loss = attention_relations(tape, x.variable(), x.variable(), 2, {8, {}}, 1);
  EXPECT_EQ(loss.value()[0], 0);
  tape.backward(loss);
  EXPECT_TRUE(std::all_of(x.grad().begin(), x.grad().end(), [](float g) { return g == 0; }));
  BITNET_EXPECT_ERROR(attention_relations(tape, x.variable(), x.variable(), 5, {8, {}}, 1),
                      ErrorCode::kInvalidArgument, "in 5 heads");
}

std::vector<std::int32_t> some_ids(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<std::int32_t> ids(n);
  for (auto& id : ids) id = static_cast<std::int32_t>(rng.below(61));
  return ids;
}

TEST(Distillation, BringsAStudentNearerToATeacherOfAnotherShape) {
  const ExecutionContext context(ExecutionContext::Options{2, {}});
  ModelConfig teachers = testing::tiny_config();
  teachers.weights = WeightKind::kDense;
  teachers.sub_norms = false;
  teachers.family = ModelFamily::kLlama;
  teachers.activation = Activation::kSilu;
  teachers.n_layers = 3;
  const testing::TensorModel tensors = testing::random_model(teachers, 3);
  for (const bool relations_only : {false, true}) {
    ModelConfig config = testing::tiny_config();
    LanguageModel student(context, config, Quantization::kTernary);
    Rng rng(1);
    student.initialize(rng, 0.05f);
    student.refresh(context);
    DistillationOptions options;
    options.logits = relations_only ? 0 : 1;
    options.attention = relations_only ? 1 : 0;
    Distillation distillation(context, std::make_unique<FrozenModel>(context, teachers, tensors), config,
                              options);
    EXPECT_EQ(distillation.states() != nullptr, relations_only);
    AdamW optimizer(context, student.parameters(), {});
    Tape tape(context);
    const auto ids = some_ids(32, 1), targets = some_ids(32, 2);
    float first = 0, last = 0;
    for (int i = 0; i < 60; ++i) {
      const Variable logits = student.forward(tape, ids, {16, {}}, distillation.states());
      const Variable loss = distillation.loss(tape, logits, ids, {16, {}}, targets, 1.0f / 32);
      last = loss.value()[0];
      if (i == 0) first = last;
      tape.backward(loss);
      tape.reset();
      optimizer.step(context, 3e-3f, 0, 1);
      student.refresh(context);
    }
    EXPECT_GT(first, 0);
    EXPECT_LT(last, 0.85f * first) << (relations_only ? "relations" : "predictions");
  }
}

TEST(Distillation, RowsWithoutTargetTeachNoPredictions) {
  const ExecutionContext context;
  const testing::TensorModel tensors = testing::random_model(testing::tiny_config(), 3);
  Distillation distillation(context, std::make_unique<FrozenModel>(context, tensors.config, tensors),
                            tensors.config, {});
  Tape tape(context);
  Parameter logits(context, "logits", 4, 61, false);
  const auto ids = some_ids(4, 1);
  const std::vector<std::int32_t> targets{-1, 3, -1, 5};
  tape.backward(distillation.loss(tape, logits.variable(), ids, {4, {}}, targets, 1));
  for (std::size_t r = 0; r < 4; ++r) {
    const auto row = logits.grad().subspan(r * 61, 61);
    const bool zero = std::all_of(row.begin(), row.end(), [](float g) { return g == 0; });
    EXPECT_EQ(zero, targets[r] < 0) << r;
  }
}

TEST(Distillation, WhatDoesNotFitIsRefused) {
  const ExecutionContext context;
  const testing::TensorModel tensors = testing::random_model(testing::tiny_config(), 3);
  const auto refuse = [&](auto change, const char* text) {
    ModelConfig student = tensors.config;
    DistillationOptions o;
    o.attention = 1;
    change(student, o);
    BITNET_EXPECT_ERROR(
        Distillation(context, std::make_unique<FrozenModel>(context, tensors.config, tensors), student, o),
        ErrorCode::kInvalidArgument, text);
  };
  refuse([](ModelConfig& c, auto&) { c.vocab_size = 60; }, "61 tokens, the student's 60");
  refuse([](ModelConfig&, auto& o) { o.layer = 2; }, "layer 2 of the student");
  refuse([](ModelConfig&, auto& o) { o.teacher_layer = 5; }, "layer 5 of the teacher");
  refuse([](ModelConfig&, auto& o) { o.relation_heads = 3; }, "3 relation heads");
}

}  // namespace
}  // namespace bitnet::training
