#pragma once
// Kernels of causal attention over tiles of keys. One call: some rows of
// queries of one KV head against one tile. Pages, threads and the order of
// tiles are bitnet-inference/src/cpu/attention.cpp; the definition of the
// result is docs/numerics.md. All is thread-safe: a kernel writes only to where its arguments say.
#include <cstddef>
#include <cstdint>

#include "bitnet/core/isa.hpp"

namespace bitnet {

/// Keys of a tile. Tiles begin at multiples of it, counted from the start of
/// the sequence.
inline constexpr std::int64_t kAttentionTile = 128;
/// Most rows of one call.
inline constexpr std::int64_t kAttentionRows = 128;
/// Keys of a block: the unit in which keys and values are given.
inline constexpr std::int64_t kAttentionBlock = 16;

/// What attention has found so far, or in one tile: out of `values / sum`,
/// relative to exp(−largest). `largest` and `sum` hold a multiple of 16 floats,
/// 16 more than rows at most.
struct AttentionState {
  float* largest = nullptr;  // [rows]
  float* sum = nullptr;      // [rows]
  float* values = nullptr;   // [rows, D16]
};

/// One tile. D is head_dim, D4 and D16 are D rounded up to 4 and 16. Blocks are
/// of 16 keys in ascending order; those of keys that no row sees need not
/// exist.
struct AttentionTile {
  std::int64_t rows = 0;  ///< 1 … kAttentionRows
  std::int64_t head_dim = 0;
  const std::int32_t* n_keys = nullptr;  // [rows] keys that each row sees: 1 … kAttentionTile, ascending
  /// Queries for float keys, scaled by 1/sqrt(D): chunks of 128 elements, each
  /// [rows, 128].
  const float* q = nullptr;
  std::int64_t q_chunk_stride = 0;  ///< floats from one chunk to the next
  /// Queries for int8 keys.
  const std::int8_t* q8 = nullptr;        // [rows, D4], zero beyond D
  const float* q8_scales = nullptr;       // [rows], 1/sqrt(D) included
  const std::int32_t* q8_sums = nullptr;  // [rows] Σ q8
  const void* const* keys = nullptr;      // blocks: f32 or f16 [D, 16]; int8 [D4/4, 16, 4]
  const void* const* values = nullptr;    // blocks: f32 or f16 [16, D16]; int8 [4, D16, 4]: key 4·i + j of
                                          // column d is element (i, d, j)
  const float* const* key_scales = nullptr;    // int8: [16] a block
  const float* const* value_scales = nullptr;  // int8: [16] a block
  /// Blocks of keys that the caller will want next, as many as in `keys`, or
  /// null: prefetched while these values are read, as these values are while
  /// the keys are. For few rows, which wait for memory.
  const void* const* next_keys = nullptr;
  float* scores = nullptr;          // scratch [rows, kAttentionTile]
  std::uint8_t* weights = nullptr;  // int8: scratch [rows, kAttentionTile]
  AttentionState state;
  bool merge = false;  ///< into what `state` holds; else it is overwritten by
                       ///< the tile's own result
};

/// Table of one ISA's kernels: noexcept, none allocates, pointers need no
/// alignment.
struct AttentionKernels {
  const char* isa;
  void (*tile_f32)(const AttentionTile& tile) noexcept;
  void (*tile_f16)(const AttentionTile& tile) noexcept;
  void (*tile_i8)(const AttentionTile& tile) noexcept;
  /// As if the tile that gave `part` had been merged into `into`. Overwrites
  /// nothing of `part`.
  void (*merge)(const AttentionState& part, const AttentionState& into, std::int64_t rows,
                std::int64_t head_dim) noexcept;
  /// y = x to binary16, half to even; what is too large becomes infinity.
  void (*f32_to_f16)(const float* x, std::uint16_t* y, std::size_t n) noexcept;
  /// y = round(x · (127 / m)), half to even, with m = max(max|x|, 1e-30);
  /// returns m · (1 / 127), both factors floats.
  float (*quantize)(const float* x, std::int8_t* y, std::size_t n) noexcept;
};

/// The table of `isa`, which must be supported by this CPU.
const AttentionKernels& attention_kernels(Isa isa) noexcept;

/// attention_kernels(isa), compared with plain loops by the first call of this
/// process, as tested_f32_kernels() does.
const AttentionKernels& tested_attention_kernels(Isa isa);

}  // namespace bitnet
