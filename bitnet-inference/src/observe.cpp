// Sequences through a forward pass that shows the inputs of its linears.
#include "bitnet/inference/observe.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "bitnet/core/error.hpp"
#include "bitnet/inference/kv_cache.hpp"
#include "forward.hpp"

namespace bitnet::inference {
namespace {

void check(const Model& model, std::span<const std::vector<TokenId>> sequences,
           const ObserveOptions& options) {
  if (options.chunk_rows < 1 || options.chunk_rows > (1 << 16))
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("chunk_rows {}: expected 1 … {}", options.chunk_rows, 1 << 16));
  for (std::size_t i = 0; i < sequences.size(); ++i) {
    if (sequences[i].empty())
      throw Error(ErrorCode::kInvalidArgument, fmt::format("sequence {} has no tokens", i));
    for (const TokenId id : sequences[i])
      if (id < 0 || id >= model.config().vocab_size)
        throw Error(ErrorCode::kInvalidArgument,
                    fmt::format("sequence {}: token id {} is outside the vocabulary of {}", i, id,
                                model.config().vocab_size));
  }
}

}  // namespace

void observe_linear_inputs(const std::shared_ptr<const Model>& model,
                           std::span<const std::vector<TokenId>> sequences,
                           const std::function<bool(TensorId input)>& wanted, const LinearObserver& observer,
                           const ObserveOptions& options) {
  check(*model, sequences, options);
  Observation observation{wanted, observer, -1};
  for (const TensorId id : model_tensors(model->config()))
    if (is_linear(id.role) && input_role(id.role) == id.role && wanted(id))
      observation.last_layer = std::max(observation.last_layer, id.layer);
  if (observation.last_layer < 0 || sequences.empty()) return;
  std::size_t longest = 0, total = 0;
  for (const auto& s : sequences) {
    longest = std::max(longest, s.size());
    total += s.size();
  }
  const auto n_ctx = static_cast<std::int64_t>(longest), rows = std::min(options.chunk_rows, n_ctx);
  constexpr std::int64_t kPage = KvPool::kDefaultPageSize;
  ForwardPass forward(model, n_ctx, rows, 1);
  forward.observe(&observation);
  KvPool pool(model->backend(), model->config(), (n_ctx + kPage - 1) / kPage, kPage,
              model->kv_type(options.kv_type));
  std::vector<std::int32_t> all(static_cast<std::size_t>(rows));
  std::iota(all.begin(), all.end(), 0);
  std::int64_t done = 0;
  for (const std::vector<TokenId>& sequence : sequences) {
    KvCache cache(pool, n_ctx);
    const auto length = static_cast<std::int64_t>(sequence.size());
    for (std::int64_t past = 0; past < length; past += rows) {
      if (options.cancellation.cancelled())
        throw Error(ErrorCode::kCancelled, "the observation was cancelled");
      const std::int64_t n = std::min(rows, length - past);
      if (!cache.reserve(past + n)) throw Error(ErrorCode::kInternal, "the pool of one sequence is full");
      const SequenceSlice slice{0, n, past, cache.pages()};
      forward.run(pool, {&slice, 1},
                  std::span(sequence).subspan(static_cast<std::size_t>(past), static_cast<std::size_t>(n)),
                  std::span<const std::int32_t>(all).first(static_cast<std::size_t>(n)));
      done += n;
      if (options.progress) options.progress(done, static_cast<std::int64_t>(total));
    }
  }
}

}  // namespace bitnet::inference
