// Optimisers against their formulas in double, and the promises that they share: clipping, threads that
// change no bit, state that is all there is to remember.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "bitnet/testing/testing.hpp"
#include "bitnet/training/optimizer.hpp"
#include "double_ops.hpp"

namespace bitnet::training {
namespace {

using reference::Matrix;

TEST(AdamW, FollowsTheFormulas) {
  const ExecutionContext context;
  Parameter decayed(context, "w", 1, 5, true), plain(context, "n", 1, 5, false);
  Parameter* const both[] = {&decayed, &plain};
  AdamW optimizer(context, both, {.beta1 = 0.8f, .beta2 = 0.9f, .eps = 1e-6f});
  double w[2][5], m[2][5] = {}, v[2][5] = {};
  for (int p = 0; p < 2; ++p)
    for (int i = 0; i < 5; ++i)
      w[p][i] = both[p]->value()[static_cast<std::size_t>(i)] = static_cast<float>(0.3 * i - 0.5);
  for (int t = 1; t <= 20; ++t) {
    double norm = 0;
    double g[2][5];
    for (int p = 0; p < 2; ++p)
      for (int i = 0; i < 5; ++i) {
        g[p][i] = static_cast<float>(std::sin(t * (i + 1) + p));
        norm += g[p][i] * g[p][i];
        both[p]->grad()[static_cast<std::size_t>(i)] = static_cast<float>(g[p][i]);
      }
    decayed.variable().node()->grad_written = plain.variable().node()->grad_written = true;
    norm = std::sqrt(norm);
    EXPECT_NEAR(optimizer.step(context, 0.01f, 0.1f, 1.5f), norm, 1e-5);
    for (int p = 0; p < 2; ++p)
      for (int i = 0; i < 5; ++i) {
        const double d = g[p][i] * std::min(1.0, 1.5 / norm);
        m[p][i] = 0.8 * m[p][i] + 0.2 * d;
        v[p][i] = 0.9 * v[p][i] + 0.1 * d * d;
        const double mean = m[p][i] / (1 - std::pow(0.8, t)), square = v[p][i] / (1 - std::pow(0.9, t));
        w[p][i] = w[p][i] * (p == 0 ? 1 - 0.01 * 0.1 : 1) - 0.01 * mean / (std::sqrt(square) + 1e-6);
        EXPECT_NEAR(both[p]->value()[static_cast<std::size_t>(i)], w[p][i], 1e-5) << t;
      }
  }
  EXPECT_EQ(optimizer.steps(), 20);
}

/// Gradients of step t, the same for all tests.
double gradient(int t, std::size_t i) {
  return std::sin(0.37 * t * static_cast<double>(i + 1)) * std::exp(-0.01 * static_cast<double>(i % 97));
}

void give(Parameter& p, int t) {
  for (std::size_t i = 0; i < p.grad().size(); ++i) p.grad()[i] = static_cast<float>(gradient(t, i));
  p.variable().node()->grad_written = true;
}

TEST(Sgd, FollowsTheFormulas) {
  const ExecutionContext context;
  for (const bool nesterov : {false, true}) {
    Parameter p(context, "w", 3, 50, true);
    std::vector<double> w(150), v(150);
    for (std::size_t i = 0; i < 150; ++i)
      p.value()[i] = static_cast<float>(w[i] = static_cast<float>(0.01 * static_cast<double>(i) - 0.7));
    Parameter* const all[] = {&p};
    Sgd optimizer(context, all, {0.8f, nesterov});
    for (int t = 1; t <= 12; ++t) {
      give(p, t);
      double norm = 0;
      for (std::size_t i = 0; i < 150; ++i) norm += gradient(t, i) * gradient(t, i);
      norm = std::sqrt(norm);
      EXPECT_NEAR(optimizer.step(context, 0.1f, 0.05f, 2.0f), norm, 1e-5 * norm);
      for (std::size_t i = 0; i < 150; ++i) {
        const double g = gradient(t, i) * std::min(1.0, 2.0 / norm);
        v[i] = 0.8 * v[i] + g;
        w[i] = w[i] * (1 - 0.1 * 0.05) - 0.1 * (nesterov ? g + 0.8 * v[i] : v[i]);
        ASSERT_NEAR(p.value()[i], w[i], 2e-6) << t;
      }
    }
  }
  BITNET_EXPECT_ERROR(Sgd(context, {}, {1.0f, false}), ErrorCode::kInvalidArgument, "momentum");
}

Matrix product(const Matrix& a, const Matrix& b) {
  Matrix c(a.rows, b.cols);
  for (std::int64_t i = 0; i < a.rows; ++i)
    for (std::int64_t j = 0; j < b.cols; ++j)
      for (std::int64_t k = 0; k < a.cols; ++k) c.at(i, j) += a.at(i, k) * b.at(k, j);
  return c;
}

Matrix transposed(const Matrix& a) {
  Matrix t(a.cols, a.rows);
  for (std::int64_t i = 0; i < a.rows; ++i)
    for (std::int64_t j = 0; j < a.cols; ++j) t.at(j, i) = a.at(i, j);
  return t;
}

/// Newton–Schulz in double, whichever side is longer.
Matrix orthogonal(Matrix x, int iterations) {
  double squares = 0;
  for (const double v : x.v) squares += v * v;
  for (double& v : x.v) v /= std::sqrt(squares) + 1e-7;
  for (int n = 0; n < iterations; ++n) {
    const Matrix a = product(x, transposed(x)), a2 = product(a, a), ax = product(a, x), a2x = product(a2, x);
    for (std::size_t i = 0; i < x.v.size(); ++i)
      x.v[i] = 3.4445 * x.v[i] - 4.7750 * ax.v[i] + 2.0315 * a2x.v[i];
  }
  return x;
}

TEST(Muon, FollowsTheFormulasForWideAndTallMatricesAndAdamWForTheRest) {
  const ExecutionContext context;
  for (const auto& [rows, cols] : {std::pair<std::int64_t, std::int64_t>{6, 10}, {11, 5}, {4, 4}}) {
    Parameter p(context, "w", rows, cols, true), other(context, "e", 5, 3, true),
        alone(context, "e", 5, 3, true);
    Rng rng(31);
    Matrix w = reference::random(rng, rows, cols, 0.1), m(rows, cols);
    reference::fill(p, w);
    Parameter* const all[] = {&p, &other};
    Parameter* const matrices[] = {&p};
    Parameter* const rest[] = {&alone};
    Muon optimizer(context, all, matrices, {});
    AdamW adamw(context, rest, {});
    for (int t = 1; t <= 4; ++t) {
      give(p, t);
      give(other, t);
      give(alone, t);
      optimizer.step(context, 0.02f, 0.1f, 0);
      adamw.step(context, 0.02f, 0.1f, 0);
      Matrix nesterov(rows, cols);
      for (std::size_t i = 0; i < w.v.size(); ++i) {
        m.v[i] = 0.95 * m.v[i] + gradient(t, i);
        nesterov.v[i] = 0.95 * m.v[i] + gradient(t, i);
      }
      const Matrix o = orthogonal(nesterov, 5);
      for (std::size_t i = 0; i < w.v.size(); ++i) {
        w.v[i] = w.v[i] * (1 - 0.02 * 0.1) -
                 0.02 * 0.2 * std::sqrt(static_cast<double>(std::max(rows, cols))) * o.v[i];
        // The quintic multiplies small singular values' roundings by up to 3.4^5.
        ASSERT_NEAR(p.value()[i], w.v[i], 2e-5) << t;
      }
      EXPECT_TRUE(std::equal(other.value().begin(), other.value().end(), alone.value().begin()));
    }
  }
  BITNET_EXPECT_ERROR(Muon(context, {}, {}, {0.9f, 0, {}}), ErrorCode::kInvalidArgument, "iterations");
}

TEST(AdamW8, StaysBesideAdamWWithAQuarterOfItsMemory) {
  const ExecutionContext context;
  Parameter a(context, "w", 7, 100, true), b(context, "w", 7, 100, true);  // two blocks and a part of one
  Rng rng(32);
  reference::fill(a, reference::random(rng, 7, 100));
  std::copy(a.value().begin(), a.value().end(), b.value().begin());
  const std::vector<float> start(a.value().begin(), a.value().end());
  Parameter* const first[] = {&a};
  Parameter* const second[] = {&b};
  AdamW full(context, first, {});
  AdamW8 small(context, second, {});
  for (int t = 1; t <= 40; ++t) {
    give(a, t);
    give(b, t);
    EXPECT_EQ(full.step(context, 0.01f, 0.1f, 1.0f), small.step(context, 0.01f, 0.1f, 1.0f));
    if (t == 1) {
      EXPECT_TRUE(std::equal(a.value().begin(), a.value().end(), b.value().begin()));  // moments were 0
    }
  }
  double moved = 0, apart = 0;
  for (std::size_t i = 0; i < start.size(); ++i) {
    moved += std::pow(a.value()[i] - start[i], 2);
    apart += std::pow(a.value()[i] - b.value()[i], 2);
  }
  EXPECT_GT(moved, 0);
  EXPECT_LT(std::sqrt(apart / moved), 0.1);  // codes of 8 bits, of most values good to 1 %
  EXPECT_GT(apart, 0);
  std::size_t bytes = 0;
  for (const OptimizerState& s : small.state()) bytes += s.bytes.size();
  EXPECT_EQ(bytes, 2 * (700 + 3 * sizeof(float)));
}

TEST(AdamW8, ASecondMomentThatIsNotZeroStaysSo) {
  const ExecutionContext context;
  Parameter p(context, "w", 1, 256, false);
  Parameter* const all[] = {&p};
  AdamW8 optimizer(context, all, {});
  for (int t = 0; t < 5; ++t) {
    for (std::size_t i = 0; i < 256; ++i) p.grad()[i] = i == 0 ? 1.0f : 1e-5f;  // squares 1e10 apart
    p.variable().node()->grad_written = true;
    optimizer.step(context, 0.01f, 0, 0);
  }
  for (const float w : p.value()) EXPECT_LT(std::abs(w), 0.06);  // five steps of at most lr and a little
}

using Make = std::function<std::unique_ptr<Optimizer>(const ExecutionContext&, std::span<Parameter* const>)>;
const struct {
  const char* name;
  Make make;
} kKinds[] = {
    {"adamw", [](const auto& c, auto p) { return std::make_unique<AdamW>(c, p, AdamWOptions{}); }},
    {"adamw8", [](const auto& c, auto p) { return std::make_unique<AdamW8>(c, p, AdamWOptions{}); }},
    {"sgd", [](const auto& c, auto p) { return std::make_unique<Sgd>(c, p, SgdOptions{}); }},
    {"muon", [](const auto& c, auto p) { return std::make_unique<Muon>(c, p, p.first(1), MuonOptions{}); }},
};

TEST(Optimizers, ThreadsChangeNoBitAndTheStateIsAllTheyRemember) {
  for (const auto& kind : kKinds) {
    SCOPED_TRACE(kind.name);
    std::vector<std::vector<float>> results;
    for (const std::size_t threads : {1, 3}) {
      const ExecutionContext context(ExecutionContext::Options{threads, {}});
      Parameter w(context, "w", 150, 260, true), n(context, "n", 1, 300, false);
      Parameter* const all[] = {&w, &n};
      Rng rng(33);
      reference::fill(w, reference::random(rng, 150, 260));
      auto optimizer = kind.make(context, all);
      EXPECT_EQ(optimizer->name(), kind.name);
      for (int t = 1; t <= 6; ++t) {
        if (t == 4) {  // goes on in another one that is given the state
          auto next = kind.make(context, all);
          const auto from = optimizer->state(), to = next->state();
          ASSERT_EQ(from.size(), to.size());
          for (std::size_t i = 0; i < from.size(); ++i) {
            EXPECT_EQ(from[i].name, to[i].name);
            ASSERT_EQ(from[i].bytes.size(), to[i].bytes.size());
            std::memcpy(to[i].bytes.data(), from[i].bytes.data(), from[i].bytes.size());
          }
          next->set_steps(optimizer->steps());
          if (threads == 3) optimizer = std::move(next);
        }
        give(w, t);
        give(n, t);
        optimizer->step(context, 0.01f, 0.1f, 1.0f);
      }
      results.emplace_back(w.value().begin(), w.value().end());
      results.back().insert(results.back().end(), n.value().begin(), n.value().end());
    }
    EXPECT_EQ(results[0], results[1]);
  }
}

TEST(Optimizers, AGradientThatIsNotFiniteChangesNothing) {
  const ExecutionContext context;
  for (const auto& kind : kKinds) {
    Parameter p(context, "w", 2, 2, true);
    Parameter* const all[] = {&p};
    const auto optimizer = kind.make(context, all);
    p.value()[0] = 1.0f;
    p.grad()[1] = NAN;
    p.variable().node()->grad_written = true;
    EXPECT_FALSE(std::isfinite(optimizer->step(context, 0.1f, 0.1f, 1.0f))) << kind.name;
    EXPECT_EQ(p.value()[0], 1.0f);
    EXPECT_EQ(optimizer->steps(), 0);
  }
}

}  // namespace
}  // namespace bitnet::training
