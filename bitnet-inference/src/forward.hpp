#pragma once
// One forward pass of the transformer over a ragged batch, and the workspace that it runs in. What the pass
// computes is in forward.cpp; who is in the batch is the caller's business (session.cpp,
// batch_scheduler.cpp).
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "bitnet/inference/kv_cache.hpp"
#include "bitnet/inference/model.hpp"
#include "workspace.hpp"

namespace bitnet::inference {

struct LayerWeights;

/// Not thread-safe. Allocates in the constructor only.
class ForwardPass {
 public:
  /// For passes of at most `max_rows` rows at positions below `n_ctx`, and at most `max_logit_rows` rows of
  /// logits a call. Throws Error(kOutOfMemory).
  ForwardPass(std::shared_ptr<const Model> model, std::int64_t n_ctx, std::int64_t max_rows,
              std::int64_t max_logit_rows);

  /// Evaluates ids (one a row, in the order of `sequences`), storing keys and values in the pool's pages.
  /// Throws Error(kDevice), Error(kInvalidArgument) on more rows than max_rows.
  void run(const KvPool& pool, std::span<const SequenceSlice> sequences, std::span<const TokenId> ids);
  /// Logits of rows of the last run(), to[i] for rows[i]; rows.size() ≤ max_logit_rows.
  void logits(std::span<const std::int32_t> rows, std::span<float> to);  // to: [rows, vocab]

  std::int64_t max_rows() const noexcept { return workspace_.max_rows(); }
  std::int64_t max_logit_rows() const noexcept { return max_logit_rows_; }
  std::size_t workspace_bytes() const noexcept { return workspace_.bytes(); }

 private:
  void attention_block(const LayerWeights& layer, const KvLayer& cache,
                       std::span<const SequenceSlice> sequences);
  void feed_forward_block(const LayerWeights& layer);

  std::shared_ptr<const Model> model_;
  Backend& backend_;
  Workspace workspace_;
  std::int64_t max_logit_rows_;
  std::vector<std::int32_t> positions_;  // [rows]
  std::int64_t n_rows_ = 0;              // of the last run
};

}  // namespace bitnet::inference
