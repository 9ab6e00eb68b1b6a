#pragma once
// One pass through the layers of a decoder whose weights somebody else keeps. layer() reads as the paper.
// Private to bitnet-training.
#include <array>
#include <cstdint>
#include <type_traits>

#include "bitnet/core/model/tensor_names.hpp"
#include "bitnet/training/ops.hpp"
#include "bitnet/training/recompute.hpp"
#include "bitnet/training/text_model.hpp"

namespace bitnet::training {

/// `Parts` points to the weights, which outlive the tape's step:
///   Variable norm(Tape&, TensorId, Variable x)   x itself where the model has no such norm
///   std::array<Variable, N> project(Tape&, std::int64_t layer, const std::array<TensorRole, N>&, Variable x)
template <class Parts>
struct DecoderPass {
  static_assert(std::is_trivially_copyable_v<Parts>);
  Parts parts;
  const ModelConfig& c;
  const RopeTable& table;
  RowLayout layout;
  AttentionStates* states = nullptr;

  Variable attention(Tape& tape, std::int64_t i, Variable x) {
    const auto [q, k, v] =
        parts.project(tape, i, std::array{TensorRole::kAttnQ, TensorRole::kAttnK, TensorRole::kAttnV},
                      parts.norm(tape, {TensorRole::kAttnNorm, i}, x));
    if (states && states->layer == i) {
      states->q = q;
      states->k = k;
      states->v = v;
    }
    const AttentionShape heads{layout.length, c.n_heads, c.n_kv_heads, c.head_dim};
    const Variable turned_q = rope(tape, q, table, layout), turned_k = rope(tape, k, table, layout);
    const Variable attended = causal_attention(tape, turned_q, turned_k, v, heads, layout.positions);
    return parts.project(tape, i, std::array{TensorRole::kAttnOutput},
                         parts.norm(tape, {TensorRole::kAttnSubNorm, i}, attended))[0];
  }
  Variable layer(Tape& tape, std::int64_t i, Variable x) {
    if (states && states->layer == i) states->input = x;
    x = add(tape, x, attention(tape, i, x));
    const auto [gate, up] = parts.project(tape, i, std::array{TensorRole::kFfnGate, TensorRole::kFfnUp},
                                          parts.norm(tape, {TensorRole::kFfnNorm, i}, x));
    const Variable h =
        c.activation == Activation::kRelu2 ? relu2_gate(tape, gate, up) : silu_gate(tape, gate, up);
    return add(tape, x,
               parts.project(tape, i, std::array{TensorRole::kFfnDown},
                             parts.norm(tape, {TensorRole::kFfnSubNorm, i}, h))[0]);
  }
  /// All layers; with `recomputed`, those whose states nobody keeps are computed again on the way back.
  Variable layers(Tape& tape, Variable x, bool recomputed) {
    for (std::int64_t i = 0; i < c.n_layers; ++i)
      x = recomputed && !(states && states->layer == i)
              ? recompute(tape, x,
                          [p = parts, config = &c, rope_of = &table, at = layout, i](Tape& t, Variable v) {
                            return DecoderPass{p, *config, *rope_of, at}.layer(t, i, v);
                          })
              : layer(tape, i, x);
    return x;
  }
};

}  // namespace bitnet::training
