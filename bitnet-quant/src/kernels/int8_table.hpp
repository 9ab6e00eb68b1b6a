#pragma once
// The boundary between ISA-neutral code and the ISA objects of int8_table.cpp: int8 × int8 products. Plain
// data only, as in ternary_table.hpp. Who packs the tiles and cuts the work is int8_linear.cpp.
//
// Weights are in tiles of 16 output rows × all of K, as lines of 64 bytes: byte j of dword r of line l is the
// weight of row r at k = 4·l + j, −127 … 127. Lines are consecutive in k, tiles follow one another, so a
// product with one row reads memory as one linear stream and needs no horizontal sum. Sixteen lines, their
// sign bits flipped, are a B tile of AMX (64 k × 16 columns).
#include <cstddef>
#include <cstdint>

#include "bitnet/core/isa.hpp"

namespace bitnet::quant {

/// Largest K: |Σ x·w| ≤ 128·127·K < 2^31 up to K = 132,104. Instruction sets that multiply u8 by s8 sum
/// (w + 128)·x, which may wrap on the way; subtracting 128·Σx modulo 2^32 leaves the exact sum.
inline constexpr std::int64_t kInt8MaxColumns = 131'072;
inline constexpr std::int64_t kInt8TileRows = 16;
inline constexpr std::int64_t kInt8LineBytes = 64;
inline constexpr std::int64_t kInt8LineColumns = 4;

/// One product of int8 rows with tiles [tile_begin, tile_end).
struct Int8Product {
  const std::int8_t* tiles;  // all tiles: [ceil(out/16)][lines][64]
  std::int64_t lines;        // ceil(K / 4)
  std::int64_t out;          // outputs a row; the last tile may be ragged
  std::int64_t tile_begin, tile_end;
  const std::int8_t* x;       // [rows, stride], the columns from K to 4·lines are zero
  std::int64_t stride, rows;  // stride ≥ 4·lines rounded up to 64
  const std::int32_t* sums;   // [rows], Σ x
  std::int32_t* acc;          // [rows, out] if not null: Σ x·w
  float* y;                   // [rows, out] else: float(acc) · (scales[o] · inv_scales[r])
  const float* scales;        // [out]
  const float* inv_scales;    // [rows]
};

struct Int8Kernels {
  const char* isa;
  void (*multiply)(const Int8Product& product) noexcept;
};

/// The table of `isa`, which must be supported by this CPU.
const Int8Kernels& int8_kernels(Isa isa) noexcept;

}  // namespace bitnet::quant
