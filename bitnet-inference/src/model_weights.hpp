#pragma once
// The prepared weights of a model, as the forward pass wants them.
#include <vector>

#include "bitnet/core/device/backend.hpp"

namespace bitnet::inference {

/// One transformer block. Norms are f32 buffers; absent sub-norms are null.
struct LayerWeights {
  BufferPtr attn_norm;      // [hidden]
  PreparedPtr q, k, v;      // [q_dim | kv_dim, hidden]
  BufferPtr attn_sub_norm;  // [q_dim]
  PreparedPtr o;            // [hidden, q_dim]
  BufferPtr ffn_norm;       // [hidden]
  PreparedPtr gate, up;     // [intermediate, hidden]
  BufferPtr ffn_sub_norm;   // [intermediate]
  PreparedPtr down;         // [hidden, intermediate]
};

struct ModelWeights {
  PreparedPtr embedding;  // [vocab, hidden]
  std::vector<LayerWeights> layers;
  BufferPtr output_norm;  // [hidden]
  PreparedPtr head;       // [vocab, hidden]; the embedding itself when tied
};

}  // namespace bitnet::inference
