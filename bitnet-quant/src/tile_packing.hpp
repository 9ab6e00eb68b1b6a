#pragma once
// Trits into T16 tiles and back, tile by tile, for either code. The layouts are described in
// kernels/ternary_table.hpp; file formats' packings are packing.cpp's.
#include <cstdint>

#include "bitnet/quant/tile_code.hpp"

namespace bitnet::quant {

/// Columns that share a line of 64 bytes.
constexpr std::int64_t line_columns(TileCode code) { return code == TileCode::kTwoBit ? 16 : 20; }
/// Lines of a tile of `in` columns.
constexpr std::int64_t tile_lines(TileCode code, std::int64_t in) {
  return (in + line_columns(code) - 1) / line_columns(code);
}

/// Writes one tile to `to` [tile_lines(code, in), 64]: `trits` [rows, in], 1 ≤ rows ≤ 16; rows and columns
/// beyond are filled with codes that meet no activation and no output. Returns false if any value is no trit.
bool pack_tile(TileCode code, const std::int8_t* trits, std::int64_t rows, std::int64_t in, std::uint8_t* to);

/// The first `rows` rows of a tile as trits [rows, in].
void unpack_tile(TileCode code, const std::uint8_t* tile, std::int64_t rows, std::int64_t in,
                 std::int8_t* trits);

}  // namespace bitnet::quant
