#pragma once
// The boundary between ISA-neutral code and the ISA objects of ternary_table.cpp. Plain data only: no std
// types, no inline functions (a weak symbol compiled with -mavx512f could be picked for the whole program).
// Packing into tiles and back is tile_packing.hpp.
//
// Weights are in "T16" tiles: 16 output rows × all of K, as lines of 64 bytes. Dword r of a line belongs to
// row r of the tile. Lines are consecutive in k, tiles follow one another, so a product with one row reads
// memory as one linear stream and needs no horizontal sum. A byte holds several codes, code = trit + 1:
// - kTwoBit: bit pair s of byte j of line l is the code of k = 16·l + 4·s + j.
// - kBase3: digit i of byte j of line l is the code d(i) of k = 20·l + 4·i + j. With t = d0 + 3·d1 + 9·d2 +
//   27·d3 the byte is t + 64·d4 if t < 64, else 192 + 3·(t − 64) + d4 ("6 + 2": a table of 64 entries that
//   ignores the top two bits decodes all but the bytes above 191, which have a second one).
#include <cstddef>
#include <cstdint>

#include "bitnet/core/isa.hpp"
#include "bitnet/quant/tile_code.hpp"

namespace bitnet::quant {

/// Largest K. Sums of codes·4^s with one byte each reach 2·64·128·K/4 = 4096·K (kTwoBit; a fifth of K and
/// 3277·K with kBase3), below 2^31 up to K = 524,287.
inline constexpr std::int64_t kMaxColumns = 500'000;
inline constexpr std::int64_t kTileRows = 16;
inline constexpr std::int64_t kLineBytes = 64;

/// One product of int8 rows with tiles [tile_begin, tile_end).
struct TernaryProduct {
  TileCode code;
  const std::uint8_t* tiles;  // all tiles: [ceil(out/16)][lines][64]
  std::int64_t lines;         // ceil(K / columns of a line: 16 or 20)
  std::int64_t out;           // outputs a row; the last tile may be ragged
  std::int64_t tile_begin, tile_end;
  const std::int8_t* x;       // [rows, stride], the columns from K to those of all lines are zero
  std::int64_t stride, rows;  // stride ≥ columns of all lines rounded up to 64
  const std::int32_t* sums;   // [rows], Σ x
  std::int32_t* acc;          // [rows, out] if not null: Σ x·trit
  float* y;                   // [rows, out] else: float(acc) · (scales[o] · inv_scales[r])
  const float* scales;        // [out]
  const float* inv_scales;    // [rows]
};

struct TernaryKernels {
  const char* isa;
  /// True if the kernels decode kBase3 while one row streams from memory, about as fast as memory gives it.
  bool fast_base3;
  /// Rows of x that a call should get: a multiple of row_block, of about x_bytes, which stay in the L2 cache
  /// while tiles pass over them. Of very long rows a call gets some 32 all the same.
  std::int64_t row_block, x_bytes;
  void (*multiply)(const TernaryProduct& product) noexcept;
  /// q = clamp(round_half_even(x·a), −128, 127), NaN → 0; returns Σ q. Needs |x·a| < 2^22, which a ≤
  /// 127/max|x| gives.
  std::int32_t (*quantize)(const float* x, float a, std::int8_t* q, std::size_t n) noexcept;
};

/// The table of `isa`, which must be supported by this CPU.
const TernaryKernels& ternary_kernels(Isa isa) noexcept;

}  // namespace bitnet::quant
