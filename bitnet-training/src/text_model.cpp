// What all models of text have in common.
#include "bitnet/training/text_model.hpp"

namespace bitnet::training {

std::int64_t TextModel::parameter_count() const noexcept {
  std::int64_t n = 0;
  for (const Parameter* p : parameters()) n += p->rows() * p->cols();
  return n;
}

std::map<std::string, std::string> identity_of_shape(const ModelConfig& c) {
  return {{"model.vocab_size", std::to_string(c.vocab_size)},
          {"model.hidden_size", std::to_string(c.hidden_size)},
          {"model.intermediate_size", std::to_string(c.intermediate_size)},
          {"model.layers", std::to_string(c.n_layers)},
          {"model.heads", std::to_string(c.n_heads)},
          {"model.kv_heads", std::to_string(c.n_kv_heads)},
          {"model.head_dim", std::to_string(c.head_dim)},
          {"model.context", std::to_string(c.max_position)},
          {"model.rope_theta", std::to_string(c.rope_theta)},
          {"model.rms_norm_eps", std::to_string(c.rms_norm_eps)}};
}

}  // namespace bitnet::training
