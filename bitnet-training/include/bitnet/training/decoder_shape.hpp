#pragma once
// The configuration of a decoder by the few sizes that one chooses. A pure function of a plain value:
// thread-safe.
#include <cstdint>

#include "bitnet/core/model/model_config.hpp"

namespace bitnet::training {

/// Sizes of a decoder; `context` in tokens.
struct DecoderShape {
  std::int64_t vocab, hidden, intermediate, layers, heads, kv_heads, context;
};

/// A ternary decoder of the 2B-4T family with heads of hidden / heads and a tied head, for LanguageModel,
/// whose constructor checks it.
inline ModelConfig decoder_config(const DecoderShape& s) {
  ModelConfig c;
  c.architecture = "bitnet-b1.58";
  c.vocab_size = s.vocab;
  c.hidden_size = s.hidden;
  c.intermediate_size = s.intermediate;
  c.n_layers = s.layers;
  c.n_heads = s.heads;
  c.n_kv_heads = s.kv_heads;
  c.head_dim = s.heads > 0 ? s.hidden / s.heads : 0;
  c.max_position = s.context;
  return c;
}

}  // namespace bitnet::training
