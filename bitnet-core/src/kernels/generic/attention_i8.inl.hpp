#pragma once
// One tile of attention with int8 keys and values: scores and values are exact
// integer sums, everything else is attention.inl.hpp's. The weights of a row,
// times the values' scales, are rounded to 0 … 255 of their largest in the
// tile. On matrix tiles the sums are attention_tiles.inl.hpp's. Included by
// attention_table.cpp only.
#include "kernels/generic/attention.inl.hpp"

namespace bitnet::kernels {
namespace {

using simd::ByteDot;

/// round(x), half to even, of |x| < 2^22, as int32.
BITNET_INLINE F32::Int round_to_int(F32::Reg x) {
  return reinterpret_cast<F32::Int>(x + F32::broadcast(0x1.8p23f)) - 0x4b400000;
}

/// body(first row, Count<rows>, Count<blocks>) for groups of rows.
template <class Body>
BITNET_INLINE void for_byte_rows(std::int64_t rows, Body body) {
  std::int64_t r = 0;
  for (; r + ByteDot::kRows <= rows; r += ByteDot::kRows) body(r, Count<ByteDot::kRows>{});
  if constexpr (ByteDot::kRows > 4)
    for (; r + 4 <= rows; r += 4) body(r, Count<4>{});
  if constexpr (ByteDot::kRows > 2)
    for (; r + 2 <= rows; r += 2) body(r, Count<2>{});
  for (; r < rows; ++r) body(r, Count<1>{});
}

/// Integer scores of R rows against B blocks of keys, left in the place of the
/// scores.
template <int R, int B>
void byte_score_blocks(const AttentionTile& t, std::int64_t row, std::int64_t block) {
  const std::int64_t fours = (t.head_dim + 3) / 4;
  ByteDot::Sums acc[R][B];
  const std::int8_t* keys[B];
  BITNET_UNROLL
  for (int b = 0; b < B; ++b) {
    keys[b] = static_cast<const std::int8_t*>(t.keys[block + b]);
    BITNET_UNROLL
    for (int r = 0; r < R; ++r) acc[r][b] = ByteDot::zero_sums();
  }
  const std::int8_t* const q = t.q8 + row * fours * 4;
  const void* const* const after = t.next_keys == nullptr ? t.keys : t.values;  // same keys, as many bytes
  for (std::int64_t k = 0; k < fours; ++k) {
    BITNET_UNROLL
    for (int b = 0; b < B; ++b)
      __builtin_prefetch(static_cast<const std::int8_t*>(after[block + b]) + k * 64);
    ByteDot::Line line[B];
    BITNET_UNROLL
    for (int b = 0; b < B; ++b) line[b] = ByteDot::load_keys(keys[b] + k * 64);
    BITNET_UNROLL
    for (int r = 0; r < R; ++r) {
      const ByteDot::Four four = ByteDot::load_query(q + (r * fours + k) * 4);
      BITNET_UNROLL
      for (int b = 0; b < B; ++b) ByteDot::add_keys(acc[r][b], line[b], four);
    }
  }
  auto* const to = reinterpret_cast<std::int32_t*>(t.scores) + row * kTile + block * kKeys;
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) {
    BITNET_UNROLL
    for (int b = 0; b < B; ++b) ByteDot::store_sums(to + r * kTile + b * kKeys, acc[r][b]);
  }
}

void byte_score_rows(const AttentionTile& t) {
  for_byte_rows(
      t.rows, [&](std::int64_t row, auto count) __attribute__((always_inline)) {
        constexpr int R = decltype(count)::value, B = ByteDot::kBlocks;
        const std::int64_t last = (t.n_keys[row + R - 1] + kKeys - 1) / kKeys;
        std::int64_t b = 0;
        for (; b + B <= last; b += B) byte_score_blocks<R, B>(t, row, b);
        for (; b < last; ++b) byte_score_blocks<R, 1>(t, row, b);
      });
}

BITNET_INLINE F32::Reg load_ints(const float* p) {
  return __builtin_convertvector(reinterpret_cast<F32::Int>(F32::load(p)), F32::Reg);
}

/// score = (float(Σ q8·k8) · (the query's scale)) · (the key's scale); returns
/// the largest. kOffset: the sums are of keys + 128.
template <bool kOffset>
BITNET_INLINE float scale_scores(const AttentionTile& t, std::int64_t row, float* scores, std::int64_t n) {
  const std::int32_t offset = kOffset ? 128 * t.q8_sums[row] : 0;
  const F32::Reg q_scale = F32::broadcast(t.q8_scales[row]);
  Block m = splat(-__builtin_inff());
  for (std::int64_t i = 0; i < n; i += 16) {
    Block v;
    BITNET_UNROLL
    for (int r = 0; r < kRegs; ++r) {
      const F32::Int sum = reinterpret_cast<F32::Int>(F32::load(scores + i + r * F32::kLanes)) - offset;
      v.r[r] = __builtin_convertvector(sum, F32::Reg) * q_scale *
               F32::load(t.key_scales[i / kKeys] + r * F32::kLanes);
    }
    store_block(scores + i, v);
    if (i + 16 > n) {
      pad_scores(scores, n);
      v = load_block(FromF32{scores + i}, 0);
    }
    m = larger(m, v);
  }
  return fold(m, kLarger);
}

/// Weights of a row as bytes, all kTile of them; returns what one unit stands
/// for.
BITNET_INLINE float byte_weights(const AttentionTile& t, float* scores, std::int64_t n, std::uint8_t* to) {
  Block most = splat(0.0f);
  for (std::int64_t i = 0; i < n; i += 16) {
    Block v = load_block(FromF32{scores + i}, 0);
    const Block scale =
        i + 16 <= n ? load_block(FromF32{t.value_scales[i / kKeys]}, 0)
                    : load_part(FromF32{t.value_scales[i / kKeys]}, 0, static_cast<std::size_t>(n - i), 0.0f);
    BITNET_UNROLL
    for (int r = 0; r < kRegs; ++r) v.r[r] = v.r[r] * scale.r[r];
    store_block(scores + i, v);
    most = larger(most, v);
  }
  const float largest = fold(most, kLarger);
  const F32::Reg units = F32::broadcast(largest > 0 ? 255.0f / largest : 0.0f);
  for (std::int64_t i = 0; i < kTile; i += F32::kLanes) {
    typedef std::uint8_t Bytes __attribute__((vector_size(F32::kLanes)));
    Bytes bytes = {};
    if (i < n) bytes = __builtin_convertvector(round_to_int(F32::load(scores + i) * units), Bytes);
    __builtin_memcpy(to + i, &bytes, sizeof bytes);
  }
  return largest * (1.0f / 255.0f);
}

/// B blocks of columns of R rows, over the keys that the last of them sees: the
/// others' weights are 0 there.
template <int R, int B>
void byte_value_columns(const AttentionTile& t, const Softmax& s, const float* units, std::int64_t row,
                        std::int64_t column) {
  ByteDot::Sums acc[R][B];
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) {
    BITNET_UNROLL
    for (int b = 0; b < B; ++b) acc[r][b] = ByteDot::zero_sums();
  }
  const std::int64_t stride = columns16(t.head_dim) * 64, fours = (t.n_keys[row + R - 1] + 3) / 4;
  const void* const* const after = t.next_keys == nullptr ? t.values : t.next_keys;
  for (std::int64_t k = 0; k < fours; ++k) {
    BITNET_UNROLL
    for (int b = 0; b < B; ++b)
      __builtin_prefetch(static_cast<const std::int8_t*>(after[k / 4]) + column * kKeys +
                         (k % 4 * B + b) * 64);
    const auto* const values = static_cast<const std::int8_t*>(t.values[k / 4]) + k % 4 * stride + column * 4;
    ByteDot::Line line[B];
    BITNET_UNROLL
    for (int b = 0; b < B; ++b) line[b] = ByteDot::load_values(values + b * 64);
    BITNET_UNROLL
    for (int r = 0; r < R; ++r) {
      const ByteDot::Four four = ByteDot::load_weights(t.weights + (row + r) * kTile + k * 4);
      BITNET_UNROLL
      for (int b = 0; b < B; ++b) ByteDot::add_values(acc[r][b], line[b], four);
    }
  }
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) {
    const F32::Reg unit = F32::broadcast(units[row + r]);
    BITNET_UNROLL
    for (int b = 0; b < B; ++b) {
      float sums[16];
      ByteDot::store_sums(reinterpret_cast<std::int32_t*>(sums), acc[r][b]);
      put_values(t, s, row + r, column + 16 * b, make_block([&](int i) __attribute__((always_inline)) {
                   return load_ints(sums + i * F32::kLanes) * unit;
                 }));
    }
  }
}

void byte_value_rows(const AttentionTile& t, const Softmax& s, const float* units) {
  const std::int64_t columns = columns16(t.head_dim) * 16;
  for_byte_rows(
      t.rows, [&](std::int64_t row, auto count) __attribute__((always_inline)) {
        constexpr int R = decltype(count)::value, B = ByteDot::kBlocks;
        std::int64_t c = 0;
        for (; c + 16 * B <= columns; c += 16 * B) byte_value_columns<R, B>(t, s, units, row, c);
        for (; c < columns; c += 16) byte_value_columns<R, 1>(t, s, units, row, c);
      });
}

/// Softmax of all rows from integer scores, and their weights as bytes.
template <bool kOffset>
BITNET_INLINE void weigh_rows(const AttentionTile& t, Softmax& s, float* units) {
  for (std::int64_t r = 0; r < t.rows; ++r) {
    float* const scores = t.scores + r * kTile;
    const std::int64_t n = t.n_keys[r];
    s.largest[r] = scale_scores<kOffset>(t, r, scores, n);
    s.sum[r] = exponentials(scores, (n + 15) / 16 * 16, s.largest[r]);
    units[r] = byte_weights(t, scores, n, t.weights + r * kTile);
  }
}

void tile_i8_by_rows(const AttentionTile& t) noexcept {
  Softmax s;
  float units[kAttentionRows];
  byte_score_rows(t);
  weigh_rows<ByteDot::kKeysOffset>(t, s, units);
  put_sums(t, s);
  byte_value_rows(t, s, units);
}

float quantize(const float* x, std::int8_t* y, std::size_t n) noexcept {
  float largest = 1e-30f;
  for (std::size_t i = 0; i < n; ++i) {
    const float a = x[i] < 0 ? -x[i] : x[i];
    largest = a > largest ? a : largest;
  }
  const F32::Reg factor = F32::broadcast(127.0f / largest);
  typedef std::int8_t Bytes __attribute__((vector_size(F32::kLanes)));
  for (std::size_t i = 0; i < n; i += F32::kLanes) {
    float copy[F32::kLanes] = {};
    const std::size_t count = n - i < F32::kLanes ? n - i : F32::kLanes;
    __builtin_memcpy(copy, x + i, count * sizeof(float));
    const Bytes bytes = __builtin_convertvector(round_to_int(F32::load(copy) * factor), Bytes);
    __builtin_memcpy(y + i, &bytes, count);
  }
  return largest * (1.0f / 127.0f);
}

}  // namespace
}  // namespace bitnet::kernels
