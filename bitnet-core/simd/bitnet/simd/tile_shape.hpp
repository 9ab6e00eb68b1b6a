#pragma once
// The shape of the matrix-tile registers while an algorithm runs, for any tile vocabulary T: simd::Tiles
// (amx_int8.hpp) is the processor's, tests have one that emulates it. Included by the tile algorithms only.
#include "bitnet/simd/common.hpp"

namespace bitnet::simd {
namespace {

/// Rows of a tile of the left factor or of sums; lines of 64 bytes of a tile of the right one.
constexpr std::int64_t kTileBlockRows = 16;

/// Configures the tiles; released at the end. Changed only between whole and ragged row blocks.
template <class T>
class TileShape {
 public:
  ~TileShape() {
    if (rows0_ != 0) T::release();
  }
  /// `rows` ≥ 1 rows in two blocks of at most 16; what is beyond 32 comes later. Returns whether there is a
  /// second block.
  bool set(std::int64_t rows) {
    const std::int64_t rows0 = least(rows), rows1 = rows <= kTileBlockRows ? 0 : least(rows - kTileBlockRows);
    const std::int64_t filled1 = rows1 == 0 ? kTileBlockRows : rows1;  // not used, but no tile may be empty
    if (rows0 != rows0_ || filled1 != rows1_)
      T::configure(static_cast<int>(rows0), static_cast<int>(filled1));
    rows0_ = rows0;
    rows1_ = filled1;
    return rows1 != 0;
  }

 private:
  static std::int64_t least(std::int64_t rows) { return rows < kTileBlockRows ? rows : kTileBlockRows; }
  std::int64_t rows0_ = 0, rows1_ = 0;
};

}  // namespace
}  // namespace bitnet::simd
