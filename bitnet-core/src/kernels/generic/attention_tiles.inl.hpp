#pragma once
// The two products of int8 attention with many rows on matrix tiles (AMX), written once against a tile
// vocabulary T: simd::Tiles is the processor's, a test has one that emulates it. Scores: queries and blocks
// of keys are tiles as they lie; where head_dim is no multiple of 64, the last elements of both are copied
// beside zeros, once a call. Values: 64 keys of 16 columns are a tile; the cache has them four keys a line
// and 16 keys together, so the lines of two blocks of columns are copied into a panel, once for all rows. All
// else is attention_i8.inl.hpp's. Included by attention_table.cpp and that test only.
#include "bitnet/simd/tile_shape.hpp"
#include "kernels/generic/attention_i8.inl.hpp"

namespace bitnet::kernels {
namespace {

constexpr std::int64_t kLine = 64;                            // bytes of a row of a tile
constexpr std::int64_t kTileRows = simd::kTileBlockRows;      // of a row block
constexpr std::int64_t kTileBytes = kTileRows * kLine;        // of 16 lines
constexpr std::int64_t kKeysInTile = 64;                      // of weights and values
constexpr std::int64_t kTileHalves = kTile / kKeysInTile;     // of a tile of attention
constexpr std::int64_t kMaxBlocks = kTile / kAttentionBlock;  // of keys
static_assert(kKeys == kTileRows && kKeysInTile == 4 * kTileRows);

/// 64 bytes of the rows of one or two row blocks, and 16 lines of one or two column blocks.
struct TileStep {
  const void* rows;
  std::int64_t stride;   // bytes from row to row
  const void* lines[2];  // [16, 64]
};

/// Sums 2·i + j += row block i · column block j, of I and J.
template <class T, class Multiply, int I, int J>
BITNET_INLINE void multiply_step(const TileStep& s) {
  T::template load<6>(s.lines[0], kLine);
  T::template load<4>(s.rows, s.stride);
  Multiply::template run<T, 0, 4, 6>();
  if constexpr (J == 2) {
    T::template load<7>(s.lines[1], kLine);
    Multiply::template run<T, 1, 4, 7>();
  }
  if constexpr (I == 2) {
    T::template load<5>(static_cast<const std::uint8_t*>(s.rows) + kTileRows * s.stride, s.stride);
    Multiply::template run<T, 2, 5, 6>();
    if constexpr (J == 2) Multiply::template run<T, 3, 5, 7>();
  }
}

struct QueriesByKeys {
  template <class T, int C, int A, int B>
  static BITNET_INLINE void run() {
    T::template multiply_signed<C, A, B>();
  }
};
struct WeightsByValues {
  template <class T, int C, int A, int B>
  static BITNET_INLINE void run() {
    T::template multiply_unsigned<C, A, B>();
  }
};

template <class T, int I, int J>
BITNET_INLINE void zero_tiles() {
  T::template zero<0>();
  if constexpr (J == 2) T::template zero<1>();
  if constexpr (I == 2) T::template zero<2>();
  if constexpr (I == 2 && J == 2) T::template zero<3>();
}

/// Sums as int32 [16·I, stride], the second column block after the first.
template <class T, int I, int J>
BITNET_INLINE void store_tiles(void* to, std::int64_t stride) {
  auto* const p = static_cast<std::int32_t*>(to);
  T::template store<0>(p, stride * 4);
  if constexpr (J == 2) T::template store<1>(p + 16, stride * 4);
  if constexpr (I == 2) T::template store<2>(p + kTileRows * stride, stride * 4);
  if constexpr (I == 2 && J == 2) T::template store<3>(p + kTileRows * stride + 16, stride * 4);
}

/// body(Count<row blocks>, Count<column blocks>)
template <class Body>
BITNET_INLINE void with_blocks(bool two_rows, bool two_columns, Body body) {
  if (two_rows)
    two_columns ? body(Count<2>{}, Count<2>{}) : body(Count<2>{}, Count<1>{});
  else
    two_columns ? body(Count<1>{}, Count<2>{}) : body(Count<1>{}, Count<1>{});
}

/// The last head_dim mod 64 elements of all queries and keys, zeros after them.
struct ScoreTails {
  alignas(64) std::int8_t queries[kAttentionRows][kLine];
  alignas(64) std::int8_t keys[kMaxBlocks][kTileBytes];
};

/// `whole` elements are not of the tail.
BITNET_INLINE void copy_tails(const AttentionTile& t, std::int64_t stride, std::int64_t whole,
                              ScoreTails& tails) {
  const auto bytes = static_cast<std::size_t>(stride - whole);
  for (std::int64_t r = 0; r < t.rows; ++r) {
    __builtin_memset(tails.queries[r], 0, kLine);
    __builtin_memcpy(tails.queries[r], t.q8 + r * stride + whole, bytes);
  }
  const std::int64_t blocks = (t.n_keys[t.rows - 1] + kKeys - 1) / kKeys;
  for (std::int64_t b = 0; b < blocks; ++b) {
    __builtin_memset(tails.keys[b], 0, kTileBytes);
    __builtin_memcpy(tails.keys[b], static_cast<const std::int8_t*>(t.keys[b]) + whole * kKeys,
                     bytes * kKeys);
  }
}

/// |Σ q8·k8| ≤ 127 · 127 · D, as elsewhere.
template <class T, int I, int J>
void tile_score_blocks(const AttentionTile& t, const ScoreTails& tails, std::int64_t row,
                       std::int64_t block) {
  const std::int64_t stride = (t.head_dim + 3) / 4 * 4, whole = stride / kLine * kLine;
  const auto* const first = static_cast<const std::int8_t*>(t.keys[block]);
  const auto* const second = static_cast<const std::int8_t*>(t.keys[block + J - 1]);
  zero_tiles<T, I, J>();
  for (std::int64_t d = 0; d < whole; d += kLine)
    multiply_step<T, QueriesByKeys, I, J>(
        {t.q8 + row * stride + d, stride, {first + d * kKeys, second + d * kKeys}});
  if (whole != stride)
    multiply_step<T, QueriesByKeys, I, J>(
        {tails.queries[row], kLine, {tails.keys[block], tails.keys[block + J - 1]}});
  store_tiles<T, I, J>(t.scores + row * kTile + block * kKeys, kTile);
}

template <class T>
void tile_scores(simd::TileShape<T>& shape, const AttentionTile& t) {
  const std::int64_t stride = (t.head_dim + 3) / 4 * 4, whole = stride / kLine * kLine;
  ScoreTails tails;
  if (whole != stride) copy_tails(t, stride, whole, tails);
  for (std::int64_t row = 0; row < t.rows; row += 2 * kTileRows) {
    const bool two_rows = shape.set(t.rows - row);
    const std::int64_t end = least(t.rows, row + 2 * kTileRows);
    const std::int64_t blocks = (t.n_keys[end - 1] + kKeys - 1) / kKeys;
    for (std::int64_t b = 0; b < blocks; b += 2)
      with_blocks(
          two_rows, b + 1 < blocks, [&](auto i, auto j) __attribute__((always_inline)) {
            tile_score_blocks<T, decltype(i)::value, decltype(j)::value>(t, tails, row, b);
          });
  }
}

/// Values of one or two blocks of columns: 64 keys of a block are 16 lines.
struct ValuePanel {
  alignas(64) std::int8_t lines[kTileHalves][2][kTileBytes];
};

/// Lines of keys that no row sees, up to a whole tile, become 0; other halves stay as they are.
BITNET_INLINE void copy_values(const AttentionTile& t, std::int64_t column, std::int64_t blocks,
                               ValuePanel& panel) {
  const std::int64_t stride = columns16(t.head_dim) * kLine, fours = (t.n_keys[t.rows - 1] + 3) / 4;
  const std::int64_t padded = (fours + kTileRows - 1) / kTileRows * kTileRows;
  for (std::int64_t k = 0; k < padded; ++k) {
    for (std::int64_t j = 0; j < blocks; ++j) {
      std::int8_t* const to = panel.lines[k / kTileRows][j] + k % kTileRows * kLine;
      if (k < fours)
        __builtin_memcpy(
            to, static_cast<const std::int8_t*>(t.values[k / 4]) + k % 4 * stride + (column + 16 * j) * 4,
            kLine);
      else
        __builtin_memset(to, 0, kLine);
    }
  }
}

/// One or two row blocks over one or two blocks of columns. Sums are below 128 · 255 · 127 < 2^23.
template <class T, int I, int J>
void tile_value_blocks(const AttentionTile& t, const Softmax& s, const float* units, const ValuePanel& panel,
                       std::int64_t row, std::int64_t column) {
  alignas(64) float sums[I * kTileRows][J * 16];
  const std::int64_t rows = least(t.rows - row, I * kTileRows);
  zero_tiles<T, I, J>();
  for (std::int64_t h = 0; h * kKeysInTile < t.n_keys[row + rows - 1]; ++h)
    multiply_step<T, WeightsByValues, I, J>(
        {t.weights + row * kTile + h * kKeysInTile, kTile, {panel.lines[h][0], panel.lines[h][1]}});
  store_tiles<T, I, J>(sums, J * 16);
  for (std::int64_t r = 0; r < rows; ++r) {
    const F32::Reg unit = F32::broadcast(units[row + r]);
    for (std::int64_t j = 0; j < J; ++j) {
      const float* const from = sums[r] + 16 * j;
      put_values(t, s, row + r, column + 16 * j, make_block([&](int i) __attribute__((always_inline)) {
                   return load_ints(from + i * F32::kLanes) * unit;
                 }));
    }
  }
}

template <class T>
void tile_values(simd::TileShape<T>& shape, const AttentionTile& t, const Softmax& s, const float* units) {
  const std::int64_t columns = columns16(t.head_dim) * 16;
  ValuePanel panel;
  for (std::int64_t c = 0; c < columns; c += 32) {
    const bool two_columns = c + 16 < columns;
    copy_values(t, c, two_columns ? 2 : 1, panel);
    for (std::int64_t row = 0; row < t.rows; row += 2 * kTileRows)
      with_blocks(
          shape.set(t.rows - row), two_columns, [&](auto i, auto j) __attribute__((always_inline)) {
            tile_value_blocks<T, decltype(i)::value, decltype(j)::value>(t, s, units, panel, row, c);
          });
  }
}

/// AttentionKernels::tile_i8 on tiles, of any rows.
template <class T>
void tile_i8_tiled(const AttentionTile& t) noexcept {
  Softmax s;
  float units[kAttentionRows];
  simd::TileShape<T> shape;
  tile_scores(shape, t);
  weigh_rows<false>(t, s, units);
  put_sums(t, s);
  tile_values(shape, t, s, units);
}

}  // namespace
}  // namespace bitnet::kernels
