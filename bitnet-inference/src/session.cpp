// One sequence over a model: its cache, its position, and evaluation in chunks. Many at once:
// batch_scheduler.cpp.
#include "bitnet/inference/session.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <new>
#include <utility>

#include "bitnet/core/error.hpp"
#include "bitnet/inference/adapter_set.hpp"
#include "forward.hpp"
#include "pool_values.hpp"

namespace bitnet::inference {
namespace {

constexpr std::int64_t kMaxContext = std::int64_t{1} << 22;
constexpr std::int64_t kDefaultContext = 4096;  // a cache for more than this is asked for, not assumed
constexpr std::int64_t kMaxChunk = 1 << 16;

std::int64_t check_chunk(std::int64_t rows) {
  if (rows < 1 || rows > kMaxChunk) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("chunk_rows {}: expected 1 … {}", rows, kMaxChunk));
  }
  return rows;
}

}  // namespace

std::int64_t resolve_context(const ModelConfig& config, std::int64_t requested) {
  if (requested < 0 || requested > kMaxContext) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("a context of {} tokens: expected 1 … {} (0: the model's own)", requested, kMaxContext));
  }
  if (requested == 0) return std::min(std::max<std::int64_t>(config.max_position, 1), kDefaultContext);
  return requested;
}

Session::Session(std::shared_ptr<const Model> model, const SessionOptions& options) try
    : model_(std::move(model)),
      n_ctx_(resolve_context(model_->config(), options.n_ctx)),
      forward_(std::make_unique<ForwardPass>(
          model_, n_ctx_, std::min(check_chunk(options.chunk_rows), n_ctx_), std::min(kMaxLogits, n_ctx_))),
      pool_(model_->backend(), model_->config(),
            (n_ctx_ + KvPool::kDefaultPageSize - 1) / KvPool::kDefaultPageSize, KvPool::kDefaultPageSize,
            model_->kv_type(options.kv_type)),
      cache_(pool_, n_ctx_),
      logits_memory_(std::make_unique<PoolValues>(model_->backend(), "logits")),
      logits_(static_cast<std::size_t>(model_->config().vocab_size), logits_memory_->resource()) {
  tokens_.reserve(static_cast<std::size_t>(n_ctx_));
  rows_.reserve(static_cast<std::size_t>(forward_->max_rows()));
} catch (const std::bad_alloc&) {
  throw_out_of_memory("a session");
}

Session::~Session() = default;

void Session::check(std::span<const TokenId> ids) const {
  if (ids.empty()) throw Error(ErrorCode::kInvalidArgument, "no tokens to evaluate");
  const std::size_t total = tokens_.size() + ids.size();
  if (total > static_cast<std::size_t>(n_ctx_)) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} tokens do not fit the context of {} tokens", total, n_ctx_));
  }
  for (const TokenId id : ids) {
    if (id < 0 || id >= model_->config().vocab_size) {
      throw Error(ErrorCode::kInvalidArgument, fmt::format("token id {} is outside the vocabulary of {}", id,
                                                           model_->config().vocab_size));
    }
  }
}

/// One pass, with logits after the last n_logits of its ids.
void Session::step(std::span<const TokenId> ids, std::size_t n_logits) {
  const auto past = static_cast<std::int64_t>(tokens_.size()), n = static_cast<std::int64_t>(ids.size());
  if (!cache_.reserve(past + n)) {
    throw Error(ErrorCode::kInternal, "the session's own KV pool is full");  // it has n_ctx tokens' pages
  }
  const SequenceSlice slice{0, n, past, cache_.pages()};
  rows_.clear();
  for (std::size_t row = ids.size() - n_logits; row < ids.size(); ++row)
    rows_.push_back(static_cast<std::int32_t>(row));
  const AdapterSet* const adapters = adapters_.get();
  forward_->run(pool_, {&slice, 1}, ids, rows_, {&adapters, 1});
  cache_.set_length(past + n);
  tokens_.insert(tokens_.end(), ids.begin(), ids.end());
}

std::span<const float> Session::evaluate(std::span<const TokenId> ids, std::int64_t n_logits,
                                         std::int64_t needed) {
  check(ids);
  const std::int64_t most = std::min(static_cast<std::int64_t>(ids.size()), kMaxLogits);
  if (n_logits < 1 || n_logits > most) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("logits after the last {} of {} tokens: expected 1 … {}", n_logits, ids.size(), most));
  }
  const auto vocab = static_cast<std::size_t>(model_->config().vocab_size);
  const auto wanted = static_cast<std::size_t>(n_logits) * vocab;
  if (logits_.size() < wanted) logits_.resize(wanted);
  const auto chunk = static_cast<std::size_t>(forward_->max_rows());
  const std::size_t first = ids.size() - static_cast<std::size_t>(n_logits);
  std::span<float> to(logits_);
  for (std::size_t i = 0; i < ids.size();) {
    const std::size_t n = std::min(chunk, ids.size() - i);
    const std::size_t asked = i + n - std::min(std::max(i, first), i + n);
    step(ids.subspan(i, n), asked);
    if (asked > 0) forward_->logits(0, static_cast<std::int64_t>(asked), to, needed);
    to = to.subspan(asked * vocab);
    i += n;
  }
  return std::span<const float>(logits_).first(wanted);
}

void Session::evaluate_all(
    std::span<const TokenId> ids, std::int64_t first_position,
    const std::function<void(std::int64_t position, std::span<const float> logits)>& row) {
  check(ids);
  const auto vocab = static_cast<std::size_t>(model_->config().vocab_size);
  const std::int64_t group = forward_->max_logit_rows();
  logits_.resize(static_cast<std::size_t>(group) * vocab);
  const auto chunk = static_cast<std::size_t>(forward_->max_rows());
  for (std::size_t i = 0; i < ids.size();) {
    const std::size_t n = std::min(chunk, ids.size() - i);
    const auto past = static_cast<std::int64_t>(tokens_.size());
    const std::int64_t end = past + static_cast<std::int64_t>(n);
    const std::int64_t first = std::min(std::max(past, first_position), end);
    step(ids.subspan(i, n), static_cast<std::size_t>(end - first));
    for (std::int64_t p = first; p < end;) {
      const std::int64_t rows = std::min(group, end - p);
      forward_->logits(p - first, rows, logits_);
      for (std::int64_t r = 0; r < rows; ++r, ++p)
        row(p, std::span<const float>(logits_).subspan(static_cast<std::size_t>(r) * vocab, vocab));
    }
    i += n;
  }
}

void Session::truncate(std::int64_t n) {
  if (n < 0) throw Error(ErrorCode::kInvalidArgument, fmt::format("truncate to {} tokens", n));
  if (n >= static_cast<std::int64_t>(tokens_.size())) return;
  tokens_.resize(static_cast<std::size_t>(n));
  cache_.truncate(n);
}

std::int64_t Session::keep_prefix(std::span<const TokenId> ids) {
  const std::size_t most = std::min(tokens_.size(), ids.empty() ? 0 : ids.size() - 1);
  std::size_t n = 0;
  while (n < most && tokens_[n] == ids[n]) ++n;
  truncate(static_cast<std::int64_t>(n));
  return static_cast<std::int64_t>(n);
}

void Session::set_adapters(std::shared_ptr<const AdapterSet> adapters) {
  if (adapters == adapters_) return;
  if (adapters != nullptr && &adapters->model() != model_.get())
    throw Error(ErrorCode::kInvalidArgument, "a session with the adapters of another model");
  if (adapters != nullptr) forward_->reserve(*adapters);
  truncate(0);
  adapters_ = std::move(adapters);
}

std::size_t Session::cache_bytes() const noexcept { return pool_.bytes(); }
std::size_t Session::workspace_bytes() const noexcept { return forward_->workspace_bytes(); }

}  // namespace bitnet::inference
