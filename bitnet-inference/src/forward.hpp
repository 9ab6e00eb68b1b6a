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
#include "bitnet/inference/observe.hpp"
#include "workspace.hpp"

namespace bitnet::inference {

class AdapterSet;
struct LayerWeights;

/// Who wants to see the inputs of linears, and which; layers behind `last_layer` are not run.
struct Observation {
  std::function<bool(TensorId input)> wanted;
  LinearObserver see;
  std::int64_t last_layer;
};

/// Not thread-safe. Allocates in the constructor only.
class ForwardPass {
 public:
  /// For passes of at most `max_rows` rows at positions below `n_ctx`, and at most `max_logit_rows` rows of
  /// logits a call. Throws Error(kOutOfMemory).
  ForwardPass(std::shared_ptr<const Model> model, std::int64_t n_ctx, std::int64_t max_rows,
              std::int64_t max_logit_rows);

  /// Evaluates ids (one a row, in the order of `sequences`), storing keys and values in the pool's pages.
  /// `asked`: the rows that logits() will be asked for, ascending, perhaps none: the last layer computes
  /// nothing but keys and values for the others. `adapters`: of each sequence, null for none; empty: none
  /// has any. Throws Error(kDevice), Error(kInvalidArgument) on more rows than max_rows, on an `asked` that
  /// is not ascending or outside the rows, or on adapters that were not reserved.
  void run(const KvPool& pool, std::span<const SequenceSlice> sequences, std::span<const TokenId> ids,
           std::span<const std::int32_t> asked, std::span<const AdapterSet* const> adapters = {});
  /// Takes the memory that passes with these adapters need; not in a pass. Throws Error(kOutOfMemory).
  void reserve(const AdapterSet& adapters);
  /// Logits after rows asked[first] … asked[first + n − 1] of the last run(); n ≤ max_logit_rows. With
  /// `needed` above 0 all but so many of the largest of each row may come as −∞: on a device that spares
  /// their way to the host.
  void logits(std::int64_t first, std::int64_t n, std::span<float> to,
              std::int64_t needed = 0);  // to: [n, vocab]

  /// Later passes show what they are asked to, by the single ops, which have the same bits as the fused ones;
  /// null: none. Not owned.
  void observe(const Observation* observation) noexcept { observation_ = observation; }

  std::int64_t max_rows() const noexcept { return workspace_.max_rows(); }
  std::int64_t max_logit_rows() const noexcept { return max_logit_rows_; }
  std::size_t workspace_bytes() const noexcept { return workspace_.bytes(); }

 private:
  void largest_logits(Matrix logits, std::int64_t needed, std::span<float> to);
  /// Rows that lie together: n rows from `row` on of the residual stream are rows `at` … of the matrices of a
  /// block, which hold the block's rows only.
  struct Run {
    std::int64_t row, at, n;
  };
  /// Rows of a block's matrices that go through the same adapters.
  struct Adapted {
    std::int64_t first, n;
    const AdapterSet* adapters;
  };
  /// The rows that a block computes.
  struct Rows {
    std::span<const Run> runs;
    std::span<const SequenceSlice> slices;    // for attention: AttentionArgs::queries
    std::span<const std::int32_t> positions;  // [n]
    std::int64_t n = 0;
    std::span<const Adapted> adapted;
  };
  /// A linear of a layer, for its adapters.
  struct LinearOf {
    const PreparedWeights* weights;
    TensorRole role;
  };

  void plan(std::span<const SequenceSlice> sequences, std::span<const std::int32_t> asked,
            std::span<const AdapterSet* const> adapters);
  void extend(std::vector<Adapted>& to, std::int64_t first, std::int64_t n, const AdapterSet* adapters) const;
  void ask(const SequenceSlice& sequence, std::int64_t row, const AdapterSet* adapters);
  void attention_block(std::size_t index, const KvLayer& cache, std::span<const SequenceSlice> sequences,
                       const Rows& rows);
  void feed_forward_block(std::size_t index, const Rows& rows);
  void norm_linear(std::span<const LinearOf> linears, std::size_t layer, const Buffer& norm, const Rows& rows,
                   std::span<const Matrix> outs);
  void linear(std::span<const LinearOf> linears, std::size_t layer, const Rows& rows, Matrix x,
              std::span<const Matrix> outs);
  bool observed(TensorRole input, std::size_t layer) const;
  void show(TensorRole input, std::size_t layer, Matrix x);
  void adapt(TensorRole role, std::size_t layer, const Rows& rows, Matrix x, Matrix out);
  void add(const Rows& rows);

  std::shared_ptr<const Model> model_;
  Backend& backend_;
  Workspace workspace_;
  std::int64_t max_logit_rows_;
  std::vector<std::int32_t> positions_;  // [rows]
  std::vector<std::int32_t> numbers_;    // 0 … max_rows − 1
  // Of the asked rows.
  std::vector<Run> runs_;
  std::vector<SequenceSlice> queries_;
  std::vector<std::int32_t> asked_positions_;
  // Of passes with adapters.
  std::vector<Adapted> adapted_, asked_adapted_;
  std::int64_t adapter_rank_ = 0;  // that `low_` and `update_` have room for
  BufferPtr low_, update_;         // [max_rows, rank], [max_rows, largest out]
  std::vector<TopValue> top_;      // [rows of logits, needed]
  const Observation* observation_ = nullptr;
  std::vector<float> shown_;
};

}  // namespace bitnet::inference
