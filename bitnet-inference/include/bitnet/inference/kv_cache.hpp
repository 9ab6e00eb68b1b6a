#pragma once
// The paged KV cache: one pool of pages per model in use, and each sequence's list of pages.
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/model/model_config.hpp"

namespace bitnet::inference {

/// Pages of `page_size` tokens; a page covers that span in every layer. Elements are f16, i8 (with an f32
/// scale per head and token) or f32. Not thread-safe.
class KvPool {
 public:
  static constexpr std::int64_t kDefaultPageSize = 16;  ///< tokens; wastes 8 on average a sequence

  /// Prepares the backend for steps on it. Throws Error(kInvalidArgument) on sizes ≤ 0 or that overflow and
  /// on other types, Error(kOutOfMemory | kDevice).
  KvPool(Backend& backend, const ModelConfig& config, std::int64_t n_pages,
         std::int64_t page_size = kDefaultPageSize, DType type = DType::kF16);

  std::int64_t page_size() const noexcept { return page_size_; }
  std::int64_t n_pages() const noexcept { return n_pages_; }
  std::int64_t free_pages() const noexcept { return static_cast<std::int64_t>(free_.size()); }
  DType type() const noexcept { return type_; }
  std::size_t bytes() const noexcept { return bytes_; }
  KvLayer layer(std::int64_t index) const noexcept;
  /// Gives the memory of free pages that were in use back to the system; they stay free. Returns bytes.
  std::size_t discard_free_pages();
  /// Pages that `n_tokens` need.
  std::int64_t pages_for(std::int64_t n_tokens) const noexcept {
    return (n_tokens + page_size_ - 1) / page_size_;
  }
  /// Bytes of one page over all layers. Throws Error(kInvalidArgument) on overflow.
  static std::size_t page_bytes(const ModelConfig& config, std::int64_t page_size = kDefaultPageSize,
                                DType type = DType::kF16);

 private:
  friend class KvCache;
  Backend* backend_;
  std::int64_t n_pages_, page_size_;
  DType type_;
  std::size_t bytes_ = 0, layer_page_bytes_ = 0;
  std::vector<BufferPtr> keys_, values_;  // one a layer: n_pages of kv_page_bytes()
  std::vector<std::int32_t> free_;        // a stack; lowest page on top at first
  std::vector<bool> touched_;             // [n_pages], handed out since the last discard_free_pages()
};

/// One sequence's pages; returns them to the pool at the end of its life. Movable. Must not outlive its pool.
class KvCache {
 public:
  /// `max_tokens`: capacity of the page list, so that reserve() never allocates.
  KvCache(KvPool& pool, std::int64_t max_tokens);
  ~KvCache();
  KvCache(KvCache&& other) noexcept;
  KvCache& operator=(KvCache&& other) noexcept;

  /// Makes room for tokens [0, n_tokens); false (and nothing changed) when the pool has too few pages.
  /// Throws Error(kInvalidArgument) for more than max_tokens.
  bool reserve(std::int64_t n_tokens);
  /// Tokens whose keys and values are stored.
  std::int64_t length() const noexcept { return length_; }
  /// After a step that stored tokens up to n_tokens (within what is reserved).
  void set_length(std::int64_t n_tokens);
  /// Forgets tokens from `n_tokens` on and returns the pages that are not needed any more.
  void truncate(std::int64_t n_tokens);
  std::span<const std::int32_t> pages() const noexcept { return pages_; }

 private:
  KvPool* pool_;
  std::int64_t max_tokens_, length_ = 0;
  std::vector<std::int32_t> pages_;
};

}  // namespace bitnet::inference
