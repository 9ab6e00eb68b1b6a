// The bytes of a KV page on the CPU; see kv_layout.hpp.
#include "cpu/kv_layout.hpp"

#include <algorithm>
#include <cstring>

#include "bitnet/core/dtype.hpp"
#include "cpu/memory.hpp"

namespace bitnet::inference::cpu {
namespace {

constexpr std::int64_t kBlock = kAttentionBlock;

constexpr std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

/// Element (token, d) of int8 keys in blocks of 16 tokens × 4 elements, and of values in 4 tokens × a column.
/// `dim` is rounded up by the caller.
std::int64_t byte_key_index(std::int64_t slot, std::int64_t d, std::int64_t dim) {
  return slot / kBlock * dim * kBlock + (d / 4 * kBlock + slot % kBlock) * 4 + d % 4;
}
std::int64_t byte_value_index(std::int64_t slot, std::int64_t d, std::int64_t dim) {
  return (slot / 4 * dim + d) * 4 + slot % 4;
}

/// to[d · 16] = from[d]: a row becomes a lane of a block.
template <class T>
void scatter(const T* from, std::int64_t n, T* to) {
  for (std::int64_t d = 0; d < n; ++d) to[d * kBlock] = from[d];
}

}  // namespace

KvLayout::KvLayout(const AttentionArgs& a, const F32Kernels& floats, const AttentionKernels& kernels)
    : floats_(floats),
      kernels_(kernels),
      keys_(a.cache.keys),
      values_(a.cache.values),
      type_(a.cache.type),
      page_size_(a.cache.page_size),
      n_kv_heads_(a.n_kv_heads),
      dim_(a.head_dim),
      head_bytes_(kv_page_bytes(type_, page_size_, 1, dim_)),
      scale_bytes_(type_ == DType::kI8 ? static_cast<std::size_t>(page_size_) * sizeof(float) : 0),
      blocked_(page_size_ % kBlock == 0 && dim_ % kBlock == 0) {}

std::size_t KvLayout::panel_floats(std::int64_t head_dim) noexcept {
  // Keys, values, and for int8 the scales of both.
  return static_cast<std::size_t>(2 * kAttentionTile * (round_up(head_dim, 16) + 1));
}

KvLayout::Place KvLayout::place(Buffer* buffer, const SequenceSlice& s, std::int64_t head,
                                std::int64_t token) const noexcept {
  const std::int64_t page = s.pages[static_cast<std::size_t>(token / page_size_)];
  return {static_cast<HostBuffer*>(buffer)->data() +
              static_cast<std::size_t>(page * n_kv_heads_ + head) * head_bytes_,
          token % page_size_};
}

/// The row in the cache's type: `x` itself or in `row`. Stores the scale of int8.
const void* KvLayout::narrow(const float* x, Place to, float* row) const noexcept {
  const auto n = static_cast<std::size_t>(dim_);
  if (type_ == DType::kF32) return x;
  if (type_ == DType::kF16) {
    kernels_.f32_to_f16(x, reinterpret_cast<std::uint16_t*>(row), n);
  } else {
    reinterpret_cast<float*>(to.head)[to.slot] = kernels_.quantize(x, reinterpret_cast<std::int8_t*>(row), n);
  }
  return row;
}

void KvLayout::store_key(const float* x, Place to, float* row) const noexcept {
  const void* const from = narrow(x, to, row);
  std::byte* const elements = to.head + scale_bytes_;
  const std::size_t size = bits_of(type_) / 8;
  const std::int64_t at = to.slot / kBlock * dim_ * kBlock + to.slot % kBlock;
  if (!blocked_) {
    std::memcpy(elements + static_cast<std::size_t>(to.slot * dim_) * size, from,
                static_cast<std::size_t>(dim_) * size);
  } else if (type_ == DType::kF32) {
    scatter(static_cast<const float*>(from), dim_, reinterpret_cast<float*>(elements) + at);
  } else if (type_ == DType::kF16) {
    scatter(static_cast<const std::uint16_t*>(from), dim_, reinterpret_cast<std::uint16_t*>(elements) + at);
  } else {
    for (std::int64_t d = 0; d < dim_; d += 4)
      std::memcpy(elements + byte_key_index(to.slot, d, dim_), static_cast<const std::int8_t*>(from) + d, 4);
  }
}

void KvLayout::store_value(const float* x, Place to, float* row) const noexcept {
  const void* const from = narrow(x, to, row);
  std::byte* const elements = to.head + scale_bytes_;
  if (type_ == DType::kI8 && blocked_) {
    auto* const bytes = reinterpret_cast<std::int8_t*>(elements) + byte_value_index(to.slot, 0, dim_);
    for (std::int64_t d = 0; d < dim_; ++d) bytes[d * 4] = static_cast<const std::int8_t*>(from)[d];
    return;
  }
  const std::size_t bytes = static_cast<std::size_t>(dim_) * bits_of(type_) / 8;
  std::memcpy(elements + static_cast<std::size_t>(to.slot) * bytes, from, bytes);
}

void KvLayout::store(const AttentionArgs& a, const SequenceSlice& s, std::int64_t head,
                     float* row) const noexcept {
  const auto at = [&](const Matrix& m, std::int64_t r) {
    return reinterpret_cast<const float*>(static_cast<HostBuffer*>(m.buffer)->data() + m.offset) +
           ((s.first_row + r) * n_kv_heads_ + head) * dim_;
  };
  for (std::int64_t i = 0; i < s.n_rows; ++i) {
    store_key(at(a.k, i), place(keys_, s, head, s.past + i), row);
    store_value(at(a.v, i), place(values_, s, head, s.past + i), row);
  }
}

/// Token `from` of a page that is not blocked becomes key or value `at` of a block of floats.
void KvLayout::copy_floats(Place from, std::int64_t at, bool key, float* block) const noexcept {
  const auto* const f32 = reinterpret_cast<const float*>(from.head) + from.slot * dim_;
  const auto* const f16 = reinterpret_cast<const std::uint16_t*>(from.head) + from.slot * dim_;
  for (std::int64_t d = 0; d < dim_; ++d) {
    const float x = type_ == DType::kF32 ? f32[d] : f16_to_f32(f16[d]);
    block[key ? d * kBlock + at : at * round_up(dim_, 16) + d] = x;
  }
}

void KvLayout::copy_bytes(Place from, std::int64_t at, bool key, std::int8_t* block) const noexcept {
  const auto* const x = reinterpret_cast<const std::int8_t*>(from.head + scale_bytes_) + from.slot * dim_;
  for (std::int64_t d = 0; d < dim_; ++d) {
    block[key ? byte_key_index(at, d, round_up(dim_, 4)) : byte_value_index(at, d, round_up(dim_, 16))] =
        x[d];
  }
}

/// Makes a block of n ≤ 16 keys from pages that are not blocked; what is beyond n or head_dim is 0.
void KvLayout::gather_block(const SequenceSlice& s, std::int64_t head, std::int64_t first, std::int64_t n,
                            float* panel, std::size_t block, TileBlocks& blocks) const noexcept {
  const std::int64_t size = kBlock * round_up(dim_, 16);
  float* const keys = panel + static_cast<std::int64_t>(2 * block) * (size + kBlock);
  float *const values = keys + size, *const scales = values + size;
  std::fill_n(keys, 2 * (size + kBlock), 0.0f);
  for (std::int64_t i = 0; i < n; ++i) {
    const Place k = place(keys_, s, head, first + i), v = place(values_, s, head, first + i);
    if (type_ == DType::kI8) {
      copy_bytes(k, i, true, reinterpret_cast<std::int8_t*>(keys));
      copy_bytes(v, i, false, reinterpret_cast<std::int8_t*>(values));
      scales[i] = reinterpret_cast<const float*>(k.head)[k.slot];
      scales[kBlock + i] = reinterpret_cast<const float*>(v.head)[v.slot];
    } else {
      copy_floats(k, i, true, keys);
      copy_floats(v, i, false, values);
    }
  }
  blocks.keys[block] = keys;
  blocks.values[block] = values;
  blocks.key_scales[block] = scales;
  blocks.value_scales[block] = scales + kBlock;
}

bool KvLayout::gather(const SequenceSlice& s, std::int64_t head, std::int64_t tile, std::int64_t n_keys,
                      bool widen, float* panel, TileBlocks& blocks) const noexcept {
  const std::int64_t first = tile * kAttentionTile, size = kBlock * dim_;
  const std::size_t block_bytes = static_cast<std::size_t>(size) * bits_of(type_) / 8;
  widen = widen && type_ == DType::kF16;
  std::size_t b = 0;
  for (std::int64_t i = 0; i < n_keys; i += kBlock, ++b) {
    if (!blocked_) {
      gather_block(s, head, first + i, std::min(kBlock, n_keys - i), panel, b, blocks);
      continue;
    }
    const Place k = place(keys_, s, head, first + i), v = place(values_, s, head, first + i);
    const std::size_t offset = scale_bytes_ + static_cast<std::size_t>(k.slot / kBlock) * block_bytes;
    blocks.keys[b] = k.head + offset;
    blocks.values[b] = v.head + offset;
    blocks.key_scales[b] = reinterpret_cast<const float*>(k.head) + k.slot;
    blocks.value_scales[b] = reinterpret_cast<const float*>(v.head) + v.slot;
    if (!widen) continue;
    for (const void** const of : {&blocks.keys[b], &blocks.values[b]}) {
      floats_.f16_to_f32(static_cast<const std::uint16_t*>(*of), panel, static_cast<std::size_t>(size));
      *of = panel;
      panel += size;
    }
  }
  return widen || (!blocked_ && type_ == DType::kF16);
}

}  // namespace bitnet::inference::cpu
