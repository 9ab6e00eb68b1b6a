// Operations on single values and on short pieces of rows: ReLU, SiLU gate, bias, scaled sums, dropout, the
// Hadamard transform.
// Products, norms and embeddings are ops.cpp.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "bitnet/training/ops.hpp"
#include "ops_common.hpp"

namespace bitnet::training {

Variable relu(Tape& tape, Variable x) {
  const auto cols = static_cast<std::size_t>(x.cols());
  Variable out = tape.make(x.rows(), x.cols(), x.needs_grad());
  for_rows(tape, x.rows(), 32, [&](std::int64_t r) {
    const auto at = static_cast<std::size_t>(r) * cols;
    train_of(tape).relu(x.value().data() + at, out.value().data() + at, cols);
  });
  Tape* t = &tape;
  tape.on_backward(out, [t, x, out, cols] {
    const auto dx = t->grad_target(x);
    const float* d = out.grad().data();
    for_rows(*t, x.rows(), 32, [&](std::int64_t r) {
      const auto at = static_cast<std::size_t>(r) * cols;
      train_of(*t).relu_backward(x.value().data() + at, d + at, dx.data + at, dx.accumulate, cols);
    });
  });
  return out;
}

Variable silu_gate(Tape& tape, Variable gate, Variable up) {
  return gated(
      tape, "silu_gate", gate, up,
      [](const Tape& t, const float* g, const float* u, float* y, std::size_t n) {
        f32_of(t).silu_gate(g, u, y, n);
      },
      [](const Tape&, const float* gates, const float* u, const float* d, Tape::GradTarget dg,
         Tape::GradTarget du, std::size_t n) {
        for (std::size_t i = 0; i < n; ++i) {
          const float g = gates[i], s = 1.0f / (1.0f + std::exp(-g));
          const float to_g = d[i] * u[i] * (s * (1.0f + g * (1.0f - s))), to_u = d[i] * (g * s);
          dg.data[i] = dg.accumulate ? dg.data[i] + to_g : to_g;
          du.data[i] = du.accumulate ? du.data[i] + to_u : to_u;
        }
      });
}

Variable add_scaled(Tape& tape, Variable x, Variable y, float factor) {
  BITNET_REQUIRE(x.rows() == y.rows() && x.cols() == y.cols(), "add_scaled", dims(x) + " + " + dims(y));
  const auto cols = static_cast<std::size_t>(x.cols());
  Variable out = tape.make(x.rows(), x.cols(), x.needs_grad() || y.needs_grad());
  for_rows(tape, x.rows(), 32, [&](std::int64_t r) {
    const auto at = static_cast<std::size_t>(r) * cols;
    std::memcpy(out.value().data() + at, x.value().data() + at, cols * sizeof(float));
    f32_of(tape).axpy(factor, y.value().data() + at, out.value().data() + at, cols);
  });
  Tape* t = &tape;
  tape.on_backward(out, [t, x, y, out, cols, factor] {
    const float* d = out.grad().data();
    const auto pass = [&](Variable input, float by) {
      if (!input.needs_grad()) return;
      const auto target = t->grad_target(input);
      for_rows(*t, input.rows(), 32, [&](std::int64_t r) {
        const auto at = static_cast<std::size_t>(r) * cols;
        if (target.accumulate)
          f32_of(*t).axpy(by, d + at, target.data + at, cols);
        else
          train_of(*t).scale_to(by, d + at, target.data + at, cols);
      });
    };
    pass(x, 1.0f);
    pass(y, factor);
  });
  return out;
}

Variable add_bias(Tape& tape, Variable x, Variable b) {
  BITNET_REQUIRE(b.rows() == 1 && b.cols() == x.cols(), "add_bias",
                 "bias " + dims(b) + " for input " + dims(x));
  const auto cols = static_cast<std::size_t>(x.cols());
  Variable out = tape.make(x.rows(), x.cols(), x.needs_grad() || b.needs_grad());
  for_rows(tape, x.rows(), 32, [&](std::int64_t r) {
    const auto at = static_cast<std::size_t>(r) * cols;
    train_of(tape).add_to(x.value().data() + at, b.value().data(), out.value().data() + at, cols);
  });
  Tape* t = &tape;
  tape.on_backward(out, [t, x, b, out, cols] {
    const float* d = out.grad().data();
    if (x.needs_grad()) {
      const auto dx = t->grad_target(x);
      for_rows(*t, x.rows(), 32, [&](std::int64_t r) {
        const auto at = static_cast<std::size_t>(r) * cols;
        if (dx.accumulate)
          f32_of(*t).add(d + at, dx.data + at, cols);
        else
          std::memcpy(dx.data + at, d + at, cols * sizeof(float));
      });
    }
    if (b.needs_grad()) {
      const auto db = t->grad_target(b);
      const std::int64_t rows = x.rows();
      // Threads own columns, so that rows are added in order whatever the number of threads.
      t->context().parallel_for(cols, 64, [&](std::size_t begin, std::size_t end) {
        if (!db.accumulate) std::fill(db.data + begin, db.data + end, 0.0f);
        for (std::int64_t r = 0; r < rows; ++r)
          f32_of(*t).add(d + static_cast<std::size_t>(r) * cols + begin, db.data + begin, end - begin);
      });
    }
  });
  return out;
}

Variable dropout(Tape& tape, Variable x, double p, std::uint64_t key) {
  BITNET_REQUIRE(p >= 0 && p < 1, "dropout", "p must be at least 0 and below 1, got " + std::to_string(p));
  BITNET_REQUIRE(x.value().size() < (std::size_t{1} << 32), "dropout", "of 2^32 values or more");
  if (!tape.recording() || p == 0) return x;
  const auto cols = static_cast<std::size_t>(x.cols());
  const auto scale = static_cast<float>(1.0 / (1.0 - p));
  Variable out = tape.make(x.rows(), x.cols(), x.needs_grad());
  for_rows(tape, x.rows(), 32, [&](std::int64_t r) {
    const auto at = static_cast<std::size_t>(r) * cols;
    train_of(tape).dropout(key, at, p, scale, x.value().data() + at, out.value().data() + at, false, cols);
  });
  Tape* t = &tape;
  tape.on_backward(out, [t, x, out, cols, key, p, scale] {
    const auto dx = t->grad_target(x);
    const float* d = out.grad().data();
    for_rows(*t, x.rows(), 32, [&](std::int64_t r) {
      const auto at = static_cast<std::size_t>(r) * cols;
      train_of(*t).dropout(key, at, p, scale, d + at, dx.data + at, dx.accumulate, cols);
    });
  });
  return out;
}

Variable hadamard(Tape& tape, Variable x) {
  const auto cols = static_cast<std::size_t>(x.cols()), block = cols & (~cols + 1);  // its lowest set bit
  const auto scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(block)));
  const auto transform = [cols, block, scale](const Tape& t, float* row) {
    for (std::size_t b = 0; b < cols; b += block) train_of(t).hadamard(row + b, scale, block);
  };
  Variable out = tape.make(x.rows(), x.cols(), x.needs_grad());
  for_rows(tape, x.rows(), 8, [&](std::int64_t r) {
    const auto at = static_cast<std::size_t>(r) * cols;
    std::memcpy(out.value().data() + at, x.value().data() + at, cols * sizeof(float));
    transform(tape, out.value().data() + at);
  });
  Tape* t = &tape;
  tape.on_backward(out, [t, x, out, cols, transform] {
    const auto dx = t->grad_target(x);
    float* d = out.grad().data();  // transformed where it lies: nobody reads it after this step
    for_rows(*t, x.rows(), 8, [&](std::int64_t r) {
      const auto at = static_cast<std::size_t>(r) * cols;
      transform(*t, d + at);
      if (dx.accumulate)
        f32_of(*t).add(d + at, dx.data + at, cols);
      else
        std::memcpy(dx.data + at, d + at, cols * sizeof(float));
    });
  });
  return out;
}

}  // namespace bitnet::training
