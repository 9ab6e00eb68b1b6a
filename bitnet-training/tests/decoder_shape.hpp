#pragma once
// Configurations of decoders whose steps are tested, by what their tests choose.
#include <cstdint>

#include "bitnet/core/model/model_config.hpp"

namespace bitnet::training {

struct DecoderShape {
  std::int64_t vocab, hidden, intermediate, layers, heads, kv_heads, context;
};

/// Of the 2B-4T family, with heads of hidden/heads.
inline ModelConfig decoder_config(const DecoderShape& s) {
  ModelConfig c;
  c.architecture = "bitnet-b1.58";
  c.vocab_size = s.vocab;
  c.hidden_size = s.hidden;
  c.intermediate_size = s.intermediate;
  c.n_layers = s.layers;
  c.n_heads = s.heads;
  c.n_kv_heads = s.kv_heads;
  c.head_dim = s.hidden / s.heads;
  c.max_position = s.context;
  return c;
}

}  // namespace bitnet::training
