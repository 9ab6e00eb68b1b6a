// The transformer, as the papers have it: LLaMA's block (Touvron et al. 2023) with the sub-norms and relu² of
// BitNet b1.58 2B4T (Ma et al. 2025, section 2). A linear() is a BitLinear or a dense matrix, which the
// weights know. No dispatch, threads or file formats here: those are the backend's and model_io's.
#include "forward.hpp"

#include <fmt/format.h>

#include <array>
#include <utility>

#include "bitnet/core/error.hpp"
#include "model_weights.hpp"

namespace bitnet::inference {

ForwardPass::ForwardPass(std::shared_ptr<const Model> model, std::int64_t n_ctx, std::int64_t max_rows,
                         std::int64_t max_logit_rows)
    : model_(std::move(model)),
      backend_(model_->backend()),
      workspace_(backend_, model_->config(), n_ctx, max_rows, max_logit_rows),
      max_logit_rows_(max_logit_rows) {
  positions_.reserve(static_cast<std::size_t>(max_rows));
}

void ForwardPass::run(const KvPool& pool, std::span<const SequenceSlice> sequences,
                      std::span<const TokenId> ids) {
  const ModelWeights& weights = model_->weights();
  n_rows_ = static_cast<std::int64_t>(ids.size());
  workspace_.set_rows(n_rows_);
  positions_.clear();
  for (const SequenceSlice& s : sequences)
    for (std::int64_t i = 0; i < s.n_rows; ++i) positions_.push_back(static_cast<std::int32_t>(s.past + i));

  const Matrix x = workspace_.residual();
  backend_.embed(*weights.embedding, ids, x);
  for (std::size_t i = 0; i < weights.layers.size(); ++i) {
    attention_block(weights.layers[i], pool.layer(static_cast<std::int64_t>(i)), sequences);
    feed_forward_block(weights.layers[i]);
  }
  backend_.rms_norm(x, *weights.output_norm, model_->config().rms_norm_eps, workspace_.normed());
}

// x += Wo · sub_norm(attention(rope(Wq·h), rope(Wk·h), Wv·h)), h = norm(x)
void ForwardPass::attention_block(const LayerWeights& layer, const KvLayer& cache,
                                  std::span<const SequenceSlice> sequences) {
  const ModelConfig& c = model_->config();
  const Matrix x = workspace_.residual(), h = workspace_.normed();
  const Matrix q = workspace_.q(), k = workspace_.k(), v = workspace_.v(), mixed = workspace_.attention();

  const std::array<const PreparedWeights*, 3> qkv{layer.q.get(), layer.k.get(), layer.v.get()};
  backend_.norm_linear(qkv, x, *layer.attn_norm, c.rms_norm_eps, h, std::array<Matrix, 3>{q, k, v});
  backend_.rope(q, positions_, workspace_.rope_table(), c.head_dim);
  backend_.rope(k, positions_, workspace_.rope_table(), c.head_dim);
  backend_.attention({q, k, v, mixed, cache, sequences, c.n_heads, c.n_kv_heads, c.head_dim});
  const std::array<const PreparedWeights*, 1> o{layer.o.get()};
  if (layer.attn_sub_norm) {
    backend_.norm_linear(o, mixed, *layer.attn_sub_norm, c.rms_norm_eps, mixed, std::array<Matrix, 1>{h});
  } else {
    backend_.linear(o, mixed, std::array<Matrix, 1>{h});
  }
  backend_.add(x, h);
}

// x += Wdown · sub_norm(f(Wgate·h) ⊙ Wup·h), h = norm(x)
void ForwardPass::feed_forward_block(const LayerWeights& layer) {
  const ModelConfig& c = model_->config();
  const Matrix x = workspace_.residual(), h = workspace_.normed();
  const Matrix gate = workspace_.gate(), up = workspace_.up();

  const std::array<const PreparedWeights*, 2> gate_up{layer.gate.get(), layer.up.get()};
  backend_.norm_linear(gate_up, x, *layer.ffn_norm, c.rms_norm_eps, h, std::array<Matrix, 2>{gate, up});
  backend_.gated_linear(c.activation, gate, up, layer.ffn_sub_norm.get(), c.rms_norm_eps, *layer.down, h);
  backend_.add(x, h);
}

void ForwardPass::logits(std::span<const std::int32_t> rows, std::span<float> to) {
  if (static_cast<std::int64_t>(rows.size()) > max_logit_rows_) {
    throw Error(ErrorCode::kInternal,
                fmt::format("logits of {} rows, workspace for {}", rows.size(), max_logit_rows_));
  }
  const Matrix out = workspace_.logits(static_cast<std::int64_t>(rows.size()));
  backend_.logits(*model_->weights().head, workspace_.normed(), rows, out);
  backend_.download(*out.buffer, out.offset,
                    std::as_writable_bytes(to.first(static_cast<std::size_t>(out.rows * out.cols))));
}

}  // namespace bitnet::inference
