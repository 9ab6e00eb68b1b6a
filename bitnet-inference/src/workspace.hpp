#pragma once
// The matrices of a forward pass in the backend's memory, allocated once, and the RoPE table.
#include <cstddef>
#include <cstdint>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/model/model_config.hpp"

namespace bitnet::inference {

/// Every accessor returns a view of the current number of rows (set_rows).
class Workspace {
 public:
  /// Throws Error(kInvalidArgument) on sizes ≤ 0 or that overflow, Error(kOutOfMemory).
  Workspace(Backend& backend, const ModelConfig& config, std::int64_t n_ctx, std::int64_t max_rows,
            std::int64_t max_logit_rows);

  /// Throws Error(kInvalidArgument) outside 1 … max_rows.
  void set_rows(std::int64_t n_rows);
  std::int64_t max_rows() const noexcept { return max_rows_; }
  std::size_t bytes() const noexcept;

  Matrix residual() const noexcept { return view(residual_, hidden_); }
  Matrix normed() const noexcept { return view(normed_, hidden_); }
  Matrix q() const noexcept { return view(q_, q_dim_); }
  Matrix k() const noexcept { return view(k_, kv_dim_); }
  Matrix v() const noexcept { return view(v_, kv_dim_); }
  Matrix attention() const noexcept { return view(attention_, q_dim_); }
  Matrix gate() const noexcept { return view(gate_, intermediate_); }
  Matrix up() const noexcept { return view(up_, intermediate_); }
  Matrix logits(std::int64_t n_rows) const noexcept { return {logits_.get(), 0, n_rows, vocab_}; }
  /// f32 [n_ctx, head_dim/2 cosines then head_dim/2 sines], computed in double and rounded once.
  const Buffer& rope_table() const noexcept { return *rope_; }

 private:
  Matrix view(const BufferPtr& buffer, std::int64_t cols) const noexcept {
    return {buffer.get(), 0, n_rows_, cols};
  }

  std::int64_t max_rows_, n_rows_ = 0;
  std::int64_t hidden_, q_dim_, kv_dim_, intermediate_, vocab_;
  BufferPtr residual_, normed_, q_, k_, v_, attention_, gate_, up_, logits_, rope_;
};

}  // namespace bitnet::inference
