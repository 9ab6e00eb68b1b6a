// Pages of keys and values: the pool that owns the memory, and each sequence's list of pages.
#include "bitnet/inference/kv_cache.hpp"

#include <fmt/format.h>

#include <limits>
#include <utility>

#include "bitnet/core/error.hpp"
#include "layer_placement.hpp"

namespace bitnet::inference {
std::size_t KvPool::page_bytes(const ModelConfig& c, std::int64_t page_size, DType type) {
  std::size_t bytes = 0;
  if (__builtin_mul_overflow(kv_page_bytes(type, page_size, c.n_kv_heads, c.head_dim),
                             static_cast<std::size_t>(2 * c.n_layers), &bytes)) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("KV pages of {} tokens over {} layers", page_size, c.n_layers));
  }
  return bytes;
}

KvPool::KvPool(Backend& backend, const ModelConfig& c, std::int64_t n_pages, std::int64_t page_size,
               DType type)
    : backend_(&backend), n_pages_(n_pages), page_size_(page_size), type_(type) {
  const std::size_t page = kv_page_bytes(type, page_size, c.n_kv_heads, c.head_dim);
  std::size_t layer_bytes = 0, total = 0;
  if (n_pages <= 0 || n_pages > std::numeric_limits<std::int32_t>::max() ||
      __builtin_mul_overflow(page, static_cast<std::size_t>(n_pages), &layer_bytes) ||
      __builtin_mul_overflow(layer_bytes, static_cast<std::size_t>(2 * c.n_layers), &total)) {
    throw Error(ErrorCode::kInvalidArgument, fmt::format("a KV pool of {} pages of {} bytes", n_pages, page));
  }
  // The buffers one by one would each find the memory that the others have not touched yet.
  if (const std::size_t available = backend.available_memory(); total > available) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("a KV cache of {} tokens (n_ctx) takes {} bytes: only {} are available",
                            n_pages * page_size, total, available));
  }
  with_context(fmt::format("KV cache of {} tokens", n_pages * page_size), [&] {
    backend.prepare_steps(c, type, page_size);
    for (std::int64_t i = 0; i < c.n_layers; ++i) {
      const Placed placed(backend, {TensorRole::kAttnK, i});
      keys_.push_back(backend.allocate(layer_bytes, "kv pages"));
      values_.push_back(backend.allocate(layer_bytes, "kv pages"));
    }
  });
  bytes_ = total;
  layer_page_bytes_ = page;
  touched_.resize(static_cast<std::size_t>(n_pages));
  free_.reserve(static_cast<std::size_t>(n_pages));
  for (std::int64_t p = n_pages; p-- > 0;) free_.push_back(static_cast<std::int32_t>(p));
}

std::size_t KvPool::discard_free_pages() {
  std::vector<bool> is_free(static_cast<std::size_t>(n_pages_));
  for (const std::int32_t p : free_) is_free[static_cast<std::size_t>(p)] = true;
  std::size_t given = 0;
  // Neighbours at once: a page of the cache may be smaller than one of the system.
  for (std::size_t begin = 0, end = 0; begin < is_free.size(); begin = end + 1) {
    bool touched = false;
    for (end = begin; end < is_free.size() && is_free[end]; ++end) {
      touched = touched || touched_[end];
      touched_[end] = false;
    }
    if (!touched) continue;
    for (const auto* layers : {&keys_, &values_})
      for (const BufferPtr& buffer : *layers)
        given += backend_->discard(*buffer, begin * layer_page_bytes_, (end - begin) * layer_page_bytes_);
  }
  return given;
}

KvLayer KvPool::layer(std::int64_t index) const noexcept {
  const auto i = static_cast<std::size_t>(index);
  return {keys_[i].get(), values_[i].get(), n_pages_, page_size_, type_};
}

KvCache::KvCache(KvPool& pool, std::int64_t max_tokens) : pool_(&pool), max_tokens_(max_tokens) {
  pages_.reserve(static_cast<std::size_t>(pool.pages_for(max_tokens)));
}

KvCache::~KvCache() { truncate(0); }

KvCache::KvCache(KvCache&& other) noexcept
    : pool_(other.pool_),
      max_tokens_(other.max_tokens_),
      length_(std::exchange(other.length_, 0)),
      pages_(std::exchange(other.pages_, {})) {}

KvCache& KvCache::operator=(KvCache&& other) noexcept {
  if (this != &other) {
    truncate(0);
    pool_ = other.pool_;
    max_tokens_ = other.max_tokens_;
    length_ = std::exchange(other.length_, 0);
    pages_ = std::exchange(other.pages_, {});
  }
  return *this;
}

bool KvCache::reserve(std::int64_t n_tokens) {
  if (n_tokens > max_tokens_) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} tokens in a KV cache for {}", n_tokens, max_tokens_));
  }
  const std::int64_t missing = pool_->pages_for(n_tokens) - static_cast<std::int64_t>(pages_.size());
  if (missing > pool_->free_pages()) return false;
  for (std::int64_t i = 0; i < missing; ++i) {
    pages_.push_back(pool_->free_.back());
    pool_->touched_[static_cast<std::size_t>(pages_.back())] = true;
    pool_->free_.pop_back();
  }
  return true;
}

void KvCache::set_length(std::int64_t n_tokens) {
  if (n_tokens < 0 || pool_->pages_for(n_tokens) > static_cast<std::int64_t>(pages_.size())) {
    throw Error(ErrorCode::kInternal,
                fmt::format("KV length {} with {} pages of {}", n_tokens, pages_.size(), pool_->page_size()));
  }
  length_ = n_tokens;
}

void KvCache::truncate(std::int64_t n_tokens) {
  const auto keep = static_cast<std::size_t>(pool_->pages_for(n_tokens));
  while (pages_.size() > keep) {
    pool_->free_.push_back(pages_.back());  // never allocates: free_ was reserved for all pages
    pages_.pop_back();
  }
  if (length_ > n_tokens) length_ = n_tokens;
}

}  // namespace bitnet::inference
