#pragma once
// Where the CPU keeps keys and values inside a page of the KV cache, and the
// way in and out: quantising new rows, and giving a tile's blocks of 16 keys to
// the attention kernels. The kernels are bitnet-core/attention_kernels.hpp, the
// pages' ownership is kv_cache.hpp.
#include <cstddef>
#include <cstdint>
#include <span>

#include "bitnet/core/attention_kernels.hpp"
#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/f32_kernels.hpp"

namespace bitnet::inference::cpu {

inline constexpr std::size_t kTileBlocks = kAttentionTile / kAttentionBlock;

/// A tile of one KV head's keys and values, as AttentionTile wants them.
struct TileBlocks {
  const void* keys[kTileBlocks];
  const void* values[kTileBlocks];
  const float* key_scales[kTileBlocks];
  const float* value_scales[kTileBlocks];
};

/// One layer of the cache. A page holds each KV head's tokens together: for
/// int8 the tokens' scales [page_size] f32, then the elements. When page_size
/// and head_dim are multiples of 16 ("blocked"), those are the blocks that the
/// kernels read: keys [page_size/16, D, 16], values [page_size, D], int8 keys
/// [page_size/16, D/4, 16, 4], int8 values [page_size/4, D, 4]. Otherwise they
/// are [page_size, D], and tiles are gathered.
class KvLayout {
 public:
  KvLayout(const AttentionArgs& args, const F32Kernels& floats, const AttentionKernels& kernels);

  DType type() const noexcept { return type_; }
  bool blocked() const noexcept { return blocked_; }
  /// Floats (or as many bytes × 4) that gather() needs at `panel`.
  static std::size_t panel_floats(std::int64_t head_dim) noexcept;

  /// Stores the new rows of `s` for KV head `head`; `row` is scratch of
  /// head_dim floats. Different heads may be stored at once.
  void store(const AttentionArgs& args, const SequenceSlice& s, std::int64_t head, float* row) const noexcept;
  /// Keys [tile · kAttentionTile, + n_keys) of a sequence. `widen`: f16 as f32
  /// in `panel`, worth it for many rows. Returns whether the blocks are f32
  /// there, though the cache is f16.
  bool gather(const SequenceSlice& s, std::int64_t head, std::int64_t tile, std::int64_t n_keys, bool widen,
              float* panel, TileBlocks& blocks) const noexcept;

 private:
  struct Place {
    std::byte* head;    // of the page
    std::int64_t slot;  // in the page
  };
  Place place(Buffer* buffer, const SequenceSlice& s, std::int64_t head, std::int64_t token) const noexcept;
  void store_key(const float* x, Place to, float* row) const noexcept;
  void store_value(const float* x, Place to, float* row) const noexcept;
  const void* narrow(const float* x, Place to, float* row) const noexcept;
  void copy_floats(Place from, std::int64_t at, bool key, float* block) const noexcept;
  void copy_bytes(Place from, std::int64_t at, bool key, std::int8_t* block) const noexcept;
  void gather_block(const SequenceSlice& s, std::int64_t head, std::int64_t first, std::int64_t n,
                    float* panel, std::size_t block, TileBlocks& blocks) const noexcept;

  const F32Kernels& floats_;
  const AttentionKernels& kernels_;
  Buffer *keys_, *values_;
  DType type_;
  std::int64_t page_size_, n_kv_heads_, dim_;
  std::size_t head_bytes_;
  std::size_t scale_bytes_;  // before a head's elements
  bool blocked_;
};

}  // namespace bitnet::inference::cpu
