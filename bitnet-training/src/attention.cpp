// Causal attention: one work item per sequence and key-value head, in blocks of query rows so that the upper
// triangle and the keys of earlier documents are never multiplied. Probabilities are kept for the backward
// pass. Other ops are ops.cpp.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "bitnet/training/ops.hpp"
#include "ops_common.hpp"

namespace bitnet::training {
namespace {

constexpr std::int64_t kQueryBlock = 64;

/// The matrices of one call, with their row strides in floats.
struct Operands {
  AttentionShape s;
  const float *q, *k, *v;
  float* probabilities;  // [sequences, n_heads, length, length]; written from a block's first key to its last
  std::int64_t q_stride, kv_stride;
  const std::int32_t* positions;  // [sequences · length] or null
  std::int64_t group() const { return s.n_heads / s.n_kv_heads; }
  float inv_sqrt() const { return 1.0f / std::sqrt(static_cast<float>(s.head_dim)); }
  /// The first key that row r of a sequence sees, its last being r; r + 1: none, it is padding.
  std::int64_t first_key(std::int64_t sequence, std::int64_t r) const {
    return positions ? r - positions[sequence * s.length + r] : 0;
  }
  /// Of rows [begin, end): the documents of a sequence begin in order, so the first row that is no padding
  /// has it. Rows of padding give keys behind their own.
  std::int64_t first_key(std::int64_t sequence, std::int64_t begin, std::int64_t end) const {
    std::int64_t first = end - 1;
    for (std::int64_t r = begin; r < end; ++r) first = std::min(first, first_key(sequence, r));
    return first;
  }
};

/// `scratch`: gemm_scratch floats.
void forward_item(const F32Kernels& f, const Operands& o, std::int64_t sequence, std::int64_t kv_head,
                  float* out, float* scratch) {
  const auto [length, n_heads, n_kv, dim] = o.s;
  const float* k = o.k + sequence * length * o.kv_stride + kv_head * dim;
  const float* v = o.v + sequence * length * o.kv_stride + kv_head * dim;
  for (std::int64_t h = kv_head * o.group(); h < (kv_head + 1) * o.group(); ++h) {
    const std::int64_t at = sequence * length * o.q_stride + h * dim;
    float* p = o.probabilities + (sequence * n_heads + h) * length * length;
    for (std::int64_t i = 0; i < length; i += kQueryBlock) {
      const std::int64_t rows = std::min(kQueryBlock, length - i), cols = i + rows;
      const std::int64_t from = o.first_key(sequence, i, cols), keys = cols - from;
      f.gemm(rows, keys, dim, o.q + at + i * o.q_stride, o.q_stride, 1, k + from * o.kv_stride, 1,
             o.kv_stride, p + i * length + from, length, false, scratch);
      for (std::int64_t r = i; r < cols; ++r) {
        float* row = p + r * length;
        const std::int64_t first = o.first_key(sequence, r);
        const auto n = static_cast<std::size_t>(r + 1 - first);
        if (n > 0) {
          f.scale(o.inv_sqrt(), row + first, n);
          f.scale(1.0f / f.exp_sum(row + first, f.max(row + first, n), n), row + first, n);
        }
        std::fill(row + from, row + first, 0.0f);
        std::fill(row + r + 1, row + cols, 0.0f);
      }
      f.gemm(rows, dim, keys, p + i * length + from, length, 1, v + from * o.kv_stride, o.kv_stride, 1,
             out + at + i * o.q_stride, o.q_stride, false, scratch);
    }
  }
}

struct Gradients {
  const float* d_out;
  Tape::GradTarget q, k, v;
};

/// `scratch`: gemm_scratch floats and kQueryBlock · length behind them.
void backward_item(const F32Kernels& f, const TrainKernels& t, const Operands& o, const Gradients& g,
                   std::int64_t sequence, std::int64_t kv_head, float* scratch) {
  const auto [length, n_heads, n_kv, dim] = o.s;
  float* ds = scratch + f.gemm_scratch;  // [kQueryBlock, length]
  const std::int64_t kv_at = sequence * length * o.kv_stride + kv_head * dim;
  if (!g.k.accumulate || !g.v.accumulate)
    for (std::int64_t r = 0; r < length; ++r) {
      if (!g.k.accumulate) std::fill_n(g.k.data + kv_at + r * o.kv_stride, dim, 0.0f);
      if (!g.v.accumulate) std::fill_n(g.v.data + kv_at + r * o.kv_stride, dim, 0.0f);
    }
  for (std::int64_t h = kv_head * o.group(); h < (kv_head + 1) * o.group(); ++h) {
    const std::int64_t at = sequence * length * o.q_stride + h * dim;
    const float* p = o.probabilities + (sequence * n_heads + h) * length * length;
    for (std::int64_t i = 0; i < length; i += kQueryBlock) {
      const std::int64_t rows = std::min(kQueryBlock, length - i), cols = i + rows;
      const std::int64_t from = o.first_key(sequence, i, cols), keys = cols - from;
      const std::int64_t kv_from = kv_at + from * o.kv_stride;
      const float* d = g.d_out + at + i * o.q_stride;
      f.gemm(rows, keys, dim, d, o.q_stride, 1, o.v + kv_from, 1, o.kv_stride, ds + from, length, false,
             scratch);
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t first = o.first_key(sequence, i + r), end = i + r + 1;
        float* row = ds + r * length;
        t.softmax_backward(p + (i + r) * length + first, row + first, o.inv_sqrt(),
                           static_cast<std::size_t>(end - first));
        std::fill(row + from, row + first, 0.0f);
        std::fill(row + end, row + cols, 0.0f);
      }
      f.gemm(keys, dim, rows, p + i * length + from, 1, length, d, o.q_stride, 1, g.v.data + kv_from,
             o.kv_stride, true, scratch);
      f.gemm(rows, dim, keys, ds + from, length, 1, o.k + kv_from, o.kv_stride, 1,
             g.q.data + at + i * o.q_stride, o.q_stride, g.q.accumulate, scratch);
      f.gemm(keys, dim, rows, ds + from, 1, length, o.q + at + i * o.q_stride, o.q_stride, 1,
             g.k.data + kv_from, o.kv_stride, true, scratch);
    }
  }
}

}  // namespace

Variable causal_attention(Tape& tape, Variable q, Variable k, Variable v, const AttentionShape& s,
                          std::span<const std::int32_t> positions) {
  BITNET_REQUIRE(
      s.length > 0 && s.n_kv_heads > 0 && s.head_dim > 0 && s.n_heads % s.n_kv_heads == 0 &&
          q.rows() % s.length == 0 && k.rows() == q.rows() && v.rows() == q.rows() &&
          q.cols() == s.n_heads * s.head_dim && k.cols() == s.n_kv_heads * s.head_dim && v.cols() == k.cols(),
      "causal_attention", "q " + dims(q) + ", k " + dims(k) + ", v " + dims(v) + " do not fit the heads");
  const std::int64_t sequences = q.rows() / s.length;
  Variable out = tape.make(q.rows(), q.cols(), q.needs_grad() || k.needs_grad() || v.needs_grad());
  float* p = tape.floats(static_cast<std::size_t>(sequences * s.n_heads * s.length * s.length));
  const Operands o{s,
                   q.value().data(),
                   k.value().data(),
                   v.value().data(),
                   p,
                   q.cols(),
                   k.cols(),
                   checked_positions("causal_attention", {s.length, positions}, q.rows())};
  for_rows(tape, sequences * s.n_kv_heads, 1, [&](std::int64_t item) {
    const Scratch scratch(tape, f32_of(tape).gemm_scratch);
    forward_item(f32_of(tape), o, item / s.n_kv_heads, item % s.n_kv_heads, out.value().data(),
                 scratch.data());
  });
  Tape* t = &tape;
  tape.on_backward(out, [t, q, k, v, out, o, sequences] {
    const Gradients g{out.grad().data(), t->grad_target(q), t->grad_target(k), t->grad_target(v)};
    for_rows(*t, sequences * o.s.n_kv_heads, 1, [&](std::int64_t item) {
      const auto block = static_cast<std::size_t>(kQueryBlock * o.s.length);
      const Scratch scratch(*t, f32_of(*t).gemm_scratch + block);
      backward_item(f32_of(*t), train_of(*t), o, g, item / o.s.n_kv_heads, item % o.s.n_kv_heads,
                    scratch.data());
    });
  });
  return out;
}

}  // namespace bitnet::training
