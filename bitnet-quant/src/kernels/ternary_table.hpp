#pragma once
// The boundary between ISA-neutral code and the ISA objects of ternary_table.cpp. Plain data only: no std
// types, no inline functions (a weak symbol compiled with -mavx512f could be picked for the whole program).
//
// Weights are in "T16" tiles: 16 output rows × all of K, as lines of 64 bytes. Dword r of a line belongs to
// row r of the tile; bit pair s of its byte j holds the code trit + 1 of k = 16·line + 4·s + j. Lines are
// consecutive in k, tiles follow one another, so a product with one row reads memory as one linear stream and
// needs no horizontal sum.
#include <cstddef>
#include <cstdint>

#include "bitnet/core/isa.hpp"

namespace bitnet::quant {

/// Largest K. Sums of codes·4^s with one byte each reach 2·64·128·K/4 = 4096·K, below 2^31 up to K = 524,287.
inline constexpr std::int64_t kMaxColumns = 500'000;
inline constexpr std::int64_t kTileRows = 16;
inline constexpr std::int64_t kLineBytes = 64;
inline constexpr std::int64_t kLineColumns = 16;

/// One product of int8 rows with tiles [tile_begin, tile_end).
struct TernaryProduct {
  const std::uint8_t* tiles;  // all tiles: [ceil(out/16)][lines][64]
  std::int64_t lines;         // ceil(K / 16)
  std::int64_t out;           // outputs a row; the last tile may be ragged
  std::int64_t tile_begin, tile_end;
  const std::int8_t* x;       // [rows, stride], the columns from K to 16·lines are zero
  std::int64_t stride, rows;  // stride ≥ 16·lines
  const std::int32_t* sums;   // [rows], Σ x
  std::int32_t* acc;          // [rows, out] if not null: Σ x·trit
  float* y;                   // [rows, out] else: float(acc) · (scales[o] · inv_scales[r])
  const float* scales;        // [out]
  const float* inv_scales;    // [rows]
};

struct TernaryKernels {
  const char* isa;
  void (*multiply)(const TernaryProduct& product) noexcept;
  /// q = clamp(round_half_even(x·a), −128, 127), NaN → 0; returns Σ q. Needs |x·a| < 2^22, which a ≤
  /// 127/max|x| gives.
  std::int32_t (*quantize)(const float* x, float a, std::int8_t* q, std::size_t n) noexcept;
};

/// The table of `isa`, which must be supported by this CPU.
const TernaryKernels& ternary_kernels(Isa isa) noexcept;

}  // namespace bitnet::quant
