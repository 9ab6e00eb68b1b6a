// Dense operations: forward and, in the closure beside it, backward. Attention is attention.cpp, what works
// value by value pointwise_ops.cpp.
#include "bitnet/training/ops.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "bitnet/core/dtype.hpp"
#include "ops_common.hpp"

namespace bitnet::training {
namespace {

/// Rows per partial sum where gradients are summed over rows: fixed, so that the order of additions is.
constexpr std::int64_t kRowsPerPartial = 64;

}  // namespace

Variable embedding(Tape& tape, Variable table, std::span<const std::int32_t> ids) {
  for (const std::int32_t id : ids)
    BITNET_REQUIRE(
        id >= 0 && id < table.rows(), "embedding",
        "id " + std::to_string(id) + " is outside a vocabulary of " + std::to_string(table.rows()));
  const auto n = static_cast<std::int64_t>(ids.size());
  const std::int64_t dim = table.cols();
  Variable out = tape.make(n, dim, table.needs_grad());
  const float* from = table.value().data();
  float* to = out.value().data();
  for (std::int64_t r = 0; r < n; ++r)
    std::memcpy(to + r * dim, from + ids[static_cast<std::size_t>(r)] * dim,
                static_cast<std::size_t>(dim) * 4);
  Tape* t = &tape;
  tape.on_backward(out, [t, table, ids, out, n, dim] {
    const auto [grad, accumulate] = t->grad_target(table);
    if (!accumulate) std::fill_n(grad, table.rows() * dim, 0.0f);
    const float* d = out.grad().data();
    float* g = grad;
    // Threads own columns, so that rows are added in order whatever the number of threads.
    t->context().parallel_for(static_cast<std::size_t>(dim), 64, [&](std::size_t begin, std::size_t end) {
      for (std::int64_t r = 0; r < n; ++r) {
        float* row = g + ids[static_cast<std::size_t>(r)] * dim;
        for (std::size_t c = begin; c < end; ++c) row[c] += d[r * dim + static_cast<std::int64_t>(c)];
      }
    });
  });
  return out;
}

namespace {

/// `count` factors of a product in the type that it is computed in: themselves in f32, else rounded to bf16
/// and widened, in memory of the tape.
const float* factors(Tape& tape, const float* x, std::int64_t count, DType compute) {
  if (compute == DType::kF32) return x;
  constexpr std::int64_t kPiece = 16384;
  float* const rounded = tape.floats(static_cast<std::size_t>(count));
  for_rows(tape, (count + kPiece - 1) / kPiece, 1, [&](std::int64_t piece) {
    const std::int64_t end = std::min(count, (piece + 1) * kPiece);
    for (std::int64_t i = piece * kPiece; i < end; ++i) rounded[i] = bf16_to_f32(f32_to_bf16(x[i]));
  });
  return rounded;
}

}  // namespace

Variable linear(Tape& tape, Variable x, Variable w, OpClass op) {
  BITNET_REQUIRE(x.cols() == w.cols(), "linear", "input " + dims(x) + " does not fit weights " + dims(w));
  const std::int64_t n = x.rows(), in = x.cols(), out_dim = w.rows();
  const DType compute = tape.precision().at(op).compute;
  const float* const xf = factors(tape, x.value().data(), n * in, compute);
  const float* const wf = factors(tape, w.value().data(), out_dim * in, compute);
  Variable out = tape.make(n, out_dim, x.needs_grad() || w.needs_grad());
  gemm(tape.context(), n, out_dim, in, xf, in, 1, wf, 1, in, out.value().data(), out_dim, false);
  Tape* t = &tape;
  tape.on_backward(out, [t, x, w, out, n, in, out_dim, compute, xf, wf] {
    const float* d = factors(*t, out.grad().data(), n * out_dim, compute);
    if (x.needs_grad()) {
      const auto [dx, accumulate] = t->grad_target(x);
      gemm(t->context(), n, in, out_dim, d, out_dim, 1, wf, in, 1, dx, in, accumulate);
    }
    if (w.needs_grad()) {
      const auto [dw, accumulate] = t->grad_target(w);
      gemm(t->context(), out_dim, in, n, d, 1, out_dim, xf, in, 1, dw, in, accumulate);
    }
  });
  return out;
}

Variable add(Tape& tape, Variable x, Variable y) {
  BITNET_REQUIRE(x.rows() == y.rows() && x.cols() == y.cols(), "add", dims(x) + " + " + dims(y));
  Variable out = tape.make(x.rows(), x.cols(), x.needs_grad() || y.needs_grad());
  const auto cols = static_cast<std::size_t>(x.cols());
  const TrainKernels& k = train_of(tape);
  for_rows(tape, x.rows(), 32, [&](std::int64_t r) {
    const auto at = static_cast<std::size_t>(r) * cols;
    k.add_to(x.value().data() + at, y.value().data() + at, out.value().data() + at, cols);
  });
  Tape* t = &tape;
  tape.on_backward(out, [t, x, y, out, cols] {
    const float* d = out.grad().data();
    for (Variable input : {x, y}) {
      if (!input.needs_grad()) continue;
      const auto target = t->grad_target(input);
      for_rows(*t, input.rows(), 32, [&](std::int64_t r) {
        const auto at = static_cast<std::size_t>(r) * cols;
        if (target.accumulate)
          f32_of(*t).add(d + at, target.data + at, cols);
        else
          std::memcpy(target.data + at, d + at, cols * sizeof(float));
      });
    }
  });
  return out;
}

Variable make_rms_norm(Tape& tape, Variable x, Variable w, float eps, bool with_values) {
  BITNET_REQUIRE(w.rows() == 1 && w.cols() == x.cols(), "rms_norm",
                 "weight " + dims(w) + " for input " + dims(x));
  const std::int64_t n = x.rows();
  const auto cols = static_cast<std::size_t>(x.cols());
  const bool needs_grad = x.needs_grad() || w.needs_grad();
  const Variable out =
      with_values ? tape.make(n, x.cols(), needs_grad) : tape.make_without_values(n, x.cols(), needs_grad);
  Tape* t = &tape;
  tape.on_backward(out, [t, x, w, out, n, cols, eps] {
    const auto dx = t->grad_target(x);
    // A frozen weight lives longer than the tape and must not get memory of it as gradient.
    const auto dw = w.needs_grad() ? t->grad_target(w) : Tape::GradTarget{t->floats(cols), false};
    const std::int64_t partials = (n + kRowsPerPartial - 1) / kRowsPerPartial;
    float* sums = t->floats(static_cast<std::size_t>(partials) * cols);
    const float* d = out.grad().data();
    for_rows(*t, partials, 1, [&](std::int64_t p) {
      float* sum = sums + static_cast<std::size_t>(p) * cols;
      std::fill_n(sum, cols, 0.0f);
      for (std::int64_t r = p * kRowsPerPartial; r < std::min(n, (p + 1) * kRowsPerPartial); ++r) {
        const auto at = static_cast<std::size_t>(r) * cols;
        train_of(*t).rms_norm_backward(x.value().data() + at, w.value().data(), d + at, eps, dx.data + at,
                                       dx.accumulate, sum, cols);
      }
    });
    if (!dw.accumulate) std::fill_n(dw.data, cols, 0.0f);
    for (std::int64_t p = 0; p < partials; ++p)
      f32_of(*t).add(sums + static_cast<std::size_t>(p) * cols, dw.data, cols);
  });
  return out;
}

Variable rms_norm(Tape& tape, Variable x, Variable w, float eps) {
  const Variable out = make_rms_norm(tape, x, w, eps, true);
  const auto cols = static_cast<std::size_t>(x.cols());
  for_rows(tape, x.rows(), 16, [&](std::int64_t r) {
    const auto at = static_cast<std::size_t>(r) * cols;
    f32_of(tape).rms_norm(x.value().data() + at, w.value().data(), eps, out.value().data() + at, cols);
  });
  return out;
}

Variable relu2_gate(Tape& tape, Variable gate, Variable up) {
  return gated(
      tape, "relu2_gate", gate, up,
      [](const Tape& t, const float* g, const float* u, float* y, std::size_t n) {
        f32_of(t).relu2_gate(g, u, y, n);
      },
      [](const Tape& t, const float* g, const float* u, const float* d, Tape::GradTarget dg,
         Tape::GradTarget du, std::size_t n) {
        train_of(t).relu2_gate_backward(g, u, d, dg.data, dg.accumulate, du.data, du.accumulate, n);
      });
}

RopeTable::RopeTable(std::int64_t position_count, std::int64_t head_dim, double theta)
    : positions(position_count), half(head_dim / 2) {
  BITNET_REQUIRE(head_dim > 0 && head_dim % 2 == 0, "rope",
                 "head_dim must be even, got " + std::to_string(head_dim));
  cos.resize(static_cast<std::size_t>(positions * half));
  sin.resize(cos.size());
  for (std::int64_t p = 0; p < positions; ++p)
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(p) *
                           std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
      cos[static_cast<std::size_t>(p * half + i)] = static_cast<float>(std::cos(angle));
      sin[static_cast<std::size_t>(p * half + i)] = static_cast<float>(std::sin(angle));
    }
}

Variable rope(Tape& tape, Variable x, const RopeTable& table, const RowLayout& layout) {
  const std::int64_t head_dim = 2 * table.half, length = layout.length;
  BITNET_REQUIRE(
      x.cols() % head_dim == 0 && length > 0 && length <= table.positions && x.rows() % length == 0, "rope",
      "input " + dims(x) + " for sequences of " + std::to_string(length) + ", table of " +
          std::to_string(table.positions) + " positions");
  const std::int32_t* positions = checked_positions("rope", layout, x.rows());
  Variable out = tape.make(x.rows(), x.cols(), x.needs_grad());
  const auto turn = [length, positions, head_dim](const Tape& t, const RopeTable& angles, const float* from,
                                                  float* to, std::int64_t rows, std::int64_t cols, float sign,
                                                  bool accumulate) {
    for_rows(t, rows, 16, [&](std::int64_t r) {
      const std::int64_t position = positions ? std::max(positions[r], 0) : r % length;
      const float* c = angles.cos.data() + position * angles.half;
      const float* s = angles.sin.data() + position * angles.half;
      for (std::int64_t h = 0; h < cols; h += head_dim)
        train_of(t).rotate(from + r * cols + h, c, s, sign, to + r * cols + h, accumulate,
                           static_cast<std::size_t>(angles.half));
    });
  };
  turn(tape, table, x.value().data(), out.value().data(), x.rows(), x.cols(), 1.0f, false);
  Tape* t = &tape;
  const RopeTable* angles = &table;
  tape.on_backward(out, [t, x, out, turn, angles] {
    const auto dx = t->grad_target(x);
    turn(*t, *angles, out.grad().data(), dx.data, x.rows(), x.cols(), -1.0f, dx.accumulate);
  });
  return out;
}

}  // namespace bitnet::training
