#pragma once
// Slow, obvious double-precision versions of the training ops' forward passes, and gradient checks by central
// differences through them. Nothing here shares code with the library.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "bitnet/core/rng.hpp"
#include "bitnet/training/ops.hpp"
#include "bitnet/training/tape.hpp"

namespace bitnet::training::reference {

/// [rows, cols] in double.
struct Matrix {
  std::int64_t rows = 0, cols = 0;
  std::vector<double> v;
  Matrix() = default;
  Matrix(std::int64_t r, std::int64_t c) : rows(r), cols(c), v(static_cast<std::size_t>(r * c)) {}
  double& at(std::int64_t r, std::int64_t c) { return v[static_cast<std::size_t>(r * cols + c)]; }
  double at(std::int64_t r, std::int64_t c) const { return v[static_cast<std::size_t>(r * cols + c)]; }
};

inline Matrix random(Rng& rng, std::int64_t rows, std::int64_t cols, double deviation = 1.0) {
  Matrix m(rows, cols);
  for (double& x : m.v) x = static_cast<float>(rng.normal() * deviation);  // exactly representable in f32
  return m;
}

inline Matrix linear(const Matrix& x, const Matrix& w) {
  Matrix y(x.rows, w.rows);
  for (std::int64_t r = 0; r < x.rows; ++r)
    for (std::int64_t o = 0; o < w.rows; ++o)
      for (std::int64_t i = 0; i < x.cols; ++i) y.at(r, o) += x.at(r, i) * w.at(o, i);
  return y;
}

inline Matrix add(const Matrix& x, const Matrix& y) {
  Matrix z = x;
  for (std::size_t i = 0; i < z.v.size(); ++i) z.v[i] += y.v[i];
  return z;
}

inline Matrix rms_norm(const Matrix& x, const Matrix& w, double eps) {
  Matrix y(x.rows, x.cols);
  for (std::int64_t r = 0; r < x.rows; ++r) {
    double ss = 0;
    for (std::int64_t c = 0; c < x.cols; ++c) ss += x.at(r, c) * x.at(r, c);
    for (std::int64_t c = 0; c < x.cols; ++c)
      y.at(r, c) = x.at(r, c) / std::sqrt(ss / static_cast<double>(x.cols) + eps) * w.at(0, c);
  }
  return y;
}

inline Matrix relu2_gate(const Matrix& g, const Matrix& u) {
  Matrix h = g;
  for (std::size_t i = 0; i < h.v.size(); ++i) h.v[i] = std::pow(std::max(g.v[i], 0.0), 2) * u.v[i];
  return h;
}

inline Matrix rope(const Matrix& x, std::int64_t head_dim, double theta, std::int64_t length,
                   const std::vector<std::int32_t>& positions = {}) {
  Matrix y = x;
  const std::int64_t half = head_dim / 2;
  for (std::int64_t r = 0; r < x.rows; ++r)
    for (std::int64_t h = 0; h < x.cols; h += head_dim)
      for (std::int64_t i = 0; i < half; ++i) {
        const double angle =
            static_cast<double>(positions.empty() ? r % length : positions[static_cast<std::size_t>(r)]) /
            std::pow(theta, 2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
        const double a = x.at(r, h + i), b = x.at(r, h + half + i);
        y.at(r, h + i) = a * std::cos(angle) - b * std::sin(angle);
        y.at(r, h + half + i) = b * std::cos(angle) + a * std::sin(angle);
      }
  return y;
}

/// `mask` [sequences, length, length]: may a row see a key; empty: every one up to itself.
inline Matrix attention(const Matrix& q, const Matrix& k, const Matrix& v, const AttentionShape& s,
                        const std::vector<std::uint8_t>& mask = {}) {
  Matrix out(q.rows, q.cols);
  for (std::int64_t r = 0; r < q.rows; ++r)
    for (std::int64_t h = 0; h < s.n_heads; ++h) {
      const std::int64_t first = r / s.length * s.length, kv = h / (s.n_heads / s.n_kv_heads);
      std::vector<double> p;
      double sum = 0;
      for (std::int64_t j = first; j <= r; ++j) {
        if (!mask.empty() && !mask[static_cast<std::size_t>(r * s.length + j - first)]) {
          p.push_back(0);
          continue;
        }
        double dot = 0;
        for (std::int64_t d = 0; d < s.head_dim; ++d)
          dot += q.at(r, h * s.head_dim + d) * k.at(j, kv * s.head_dim + d);
        p.push_back(std::exp(dot / std::sqrt(static_cast<double>(s.head_dim))));
        sum += p.back();
      }
      for (std::int64_t j = first; j <= r; ++j)
        for (std::int64_t d = 0; d < s.head_dim; ++d)
          out.at(r, h * s.head_dim + d) +=
              (sum > 0 ? p[static_cast<std::size_t>(j - first)] / sum : 0) * v.at(j, kv * s.head_dim + d);
    }
  return out;
}

inline double cross_entropy(const Matrix& logits, const std::vector<std::int32_t>& targets, double scale) {
  double total = 0;
  for (std::int64_t r = 0; r < logits.rows; ++r) {
    const std::int32_t t = targets[static_cast<std::size_t>(r)];
    if (t < 0) continue;
    double sum = 0;
    for (std::int64_t c = 0; c < logits.cols; ++c) sum += std::exp(logits.at(r, c) - logits.at(r, t));
    total += std::log(sum);
  }
  return total * scale;
}

/// What one op is, twice: on the tape in f32, and in double.
struct OpCase {
  std::vector<Matrix> inputs;
  std::function<Variable(Tape&, const std::vector<Variable>&)> op;
  std::function<Matrix(const std::vector<Matrix>&)> reference;
};

/// Σ over the output of coefficient · y, with coefficients fixed by position: turns any op into a scalar.
inline double coefficient(std::size_t i) { return std::sin(1.0 + 1.7 * static_cast<double>(i)); }
inline double weighted_sum(const Matrix& y) {
  double s = 0;
  for (std::size_t i = 0; i < y.v.size(); ++i) s += coefficient(i) * y.v[i];
  return s;
}

/// The same scalar on the tape.
inline Variable weighted_sum(Tape& tape, Variable y) {
  Variable out = tape.make(1, 1, true);
  double s = 0;
  for (std::size_t i = 0; i < y.value().size(); ++i) s += coefficient(i) * y.value()[i];
  out.value()[0] = static_cast<float>(s);
  Tape* t = &tape;
  tape.on_backward(out, [t, y, out] {
    const auto target = t->grad_target(y);
    for (std::size_t i = 0; i < y.value().size(); ++i) {
      const auto g = static_cast<float>(coefficient(i)) * out.grad()[0];
      target.data[i] = target.accumulate ? target.data[i] + g : g;
    }
  });
  return out;
}

/// Largest error relative to the largest entry (so that zeros count too).
inline double relative_error(std::span<const float> ours, const std::vector<double>& theirs) {
  double worst = 0, largest = 1e-30;
  for (std::size_t i = 0; i < theirs.size(); ++i) {
    worst = std::max(worst, std::abs(static_cast<double>(ours[i]) - theirs[i]));
    largest = std::max(largest, std::abs(theirs[i]));
  }
  return worst / largest;
}

/// Gradient of f with respect to `m` by central differences.
inline std::vector<double> central_differences(Matrix& m, const std::function<double()>& f) {
  constexpr double kStep = 1e-5;
  std::vector<double> g(m.v.size());
  for (std::size_t i = 0; i < m.v.size(); ++i) {
    const double x = m.v[i];
    m.v[i] = x + kStep;
    const double up = f();
    m.v[i] = x - kStep;
    const double down = f();
    m.v[i] = x;
    g[i] = (up - down) / (2 * kStep);
  }
  return g;
}

inline void fill(Parameter& p, const Matrix& m) {
  for (std::size_t i = 0; i < m.v.size(); ++i) p.value()[i] = static_cast<float>(m.v[i]);
}

}  // namespace bitnet::training::reference
