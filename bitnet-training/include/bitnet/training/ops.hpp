#pragma once
// Differentiable operations on a Tape, dense ones; each adds to the gradients of its inputs what calculus
// says. Losses are losses.hpp, images image_ops.hpp, quantising operations with straight-through gradients
// fake_quant.hpp. All throw
// Error(kInvalidArgument) when shapes disagree; all give the same bits for any number of threads. Not
// thread-safe, as their tape is not.
#include <cstdint>
#include <span>

#include "bitnet/core/precision.hpp"
#include "bitnet/training/tape.hpp"

namespace bitnet::training {

/// Rows of `table` [vocab, dim] chosen by `ids` (kept by the caller until the tape's reset) → [ids.size(),
/// dim]. An id outside the table is an Error(kInvalidArgument).
Variable embedding(Tape& tape, Variable table, std::span<const std::int32_t> ids);

/// y = x·Wᵀ; x [n, in], w [out, in] → [n, out]. Where the tape's precision of `op` computes in bf16, both
/// factors of all three products (y, dX = dY·W, dW = dYᵀ·X) are rounded to it; sums are f32.
Variable linear(Tape& tape, Variable x, Variable w, OpClass op = OpClass::kDenseLinear);

/// z = x + y, same shapes.
Variable add(Tape& tape, Variable x, Variable y);

/// z = x + factor · y, same shapes: one fused multiply-add a value where the processor has it.
Variable add_scaled(Tape& tape, Variable x, Variable y, float factor);

/// y = x / sqrt(mean x² + eps) · w, row by row; w [1, cols].
Variable rms_norm(Tape& tape, Variable x, Variable w, float eps);

/// h = max(g, 0)² · u, the 2B-4T feed-forward gate.
Variable relu2_gate(Tape& tape, Variable gate, Variable up);

/// h = g / (1 + exp(−g)) · u, the gate of Llama's feed-forward.
Variable silu_gate(Tape& tape, Variable gate, Variable up);

/// Angles of the rotary embedding: cos and sin of position · theta^(−2i/head_dim), computed in double.
struct RopeTable {
  RopeTable(std::int64_t positions, std::int64_t head_dim, double theta);
  std::int64_t positions, half;
  std::vector<float> cos, sin;  // [positions, half]
};

/// Where rows stand that are sequences of `length` one after the other. `positions` (one a row, kept by the
/// caller until the tape's reset) is for rows of several documents: the place of the row's token in its
/// document, counted from 0, −1 in padding. Empty: each sequence is one document.
struct RowLayout {
  std::int64_t length;
  std::span<const std::int32_t> positions = {};
};

/// Rotate-half RoPE on every head of x [sequences · length, heads · head_dim] by each row's position in its
/// document. `table` must outlive the tape's step.
Variable rope(Tape& tape, Variable x, const RopeTable& table, const RowLayout& layout);

/// Heads of sequences of `length` rows.
struct AttentionShape {
  std::int64_t length, n_heads, n_kv_heads, head_dim;
};
/// Causal softmax(q·kᵀ / sqrt(head_dim))·v within each document, with grouped-query heads: what
/// bitnet::attention_mask allows. The values of a document are the same bits wherever it lies in its row;
/// rows of padding give zeros. q [n, n_heads · head_dim], k and v [n, n_kv_heads · head_dim] → [n, n_heads ·
/// head_dim]. Throws Error(kInvalidArgument) for positions that do not count up from 0.
Variable causal_attention(Tape& tape, Variable q, Variable k, Variable v, const AttentionShape& shape,
                          std::span<const std::int32_t> positions = {});

/// y = max(x, 0).
Variable relu(Tape& tape, Variable x);

/// y = x + b on every row; b [1, cols].
Variable add_bias(Tape& tape, Variable x, Variable b);

/// Each value is 0 with probability `p`, else x / (1 − p): decided by a hash of `key` and its index, the same
/// for any number of threads. On a tape that does not record: x itself. Throws Error(kInvalidArgument) unless
/// 0 ≤ p < 1, and for 2^32 values or more.
Variable dropout(Tape& tape, Variable x, double p, std::uint64_t key);

/// Orthonormal Walsh–Hadamard transform of each row, in blocks of the largest power of two that divides cols:
/// its own inverse, and its own gradient. Spreads outliers before a 4-bit quantiser (BitNet v2,
/// arXiv:2504.18415, for whole powers of two).
Variable hadamard(Tape& tape, Variable x);

}  // namespace bitnet::training
