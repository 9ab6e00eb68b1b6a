#pragma once
// One tile of attention with float keys and values, written once against
// simd::F32. The order of every sum is that of docs/numerics.md ("Attention"):
// a score and a value are chains of multiply-adds, in ascending element and in
// ascending key, so no blocking of rows, keys or columns shows in the result.
// Included by attention_table.cpp only; int8 is attention_i8.inl.hpp.
#include "bitnet/core/attention_kernels.hpp"
#include "kernels/generic/exp_reg.inl.hpp"

namespace bitnet::kernels {
namespace {

constexpr std::int64_t kTile = kAttentionTile, kKeys = kAttentionBlock;
constexpr std::int64_t kChunk = 128;  // elements of a query that lie together

BITNET_INLINE std::int64_t least(std::int64_t a, std::int64_t b) { return a < b ? a : b; }
BITNET_INLINE std::int64_t columns16(std::int64_t head_dim) { return (head_dim + 15) / 16; }

/// Blocks of 16 whose sums stay in registers next to those of `rows` rows.
constexpr int blocks_beside(int rows) {
  const int registers = F32::kGemmRows * F32::kGemmVectors / kRegs / rows;
  return registers >= 4 ? 4 : registers >= 2 ? 2 : 1;
}
constexpr int choose_rows() {
  for (const int rows : {8, 6, 4, 2})
    if (rows * kRegs * (kRegs == 1 ? 2 : 1) <= F32::kGemmRows * F32::kGemmVectors) return rows;
  return 1;
}
constexpr int kRows = choose_rows();

template <int N>
struct Count {
  static constexpr int value = N;
};

/// body(first row, Count<rows>) over groups of kRows rows, then of 4, 2 and 1.
template <class Body>
BITNET_INLINE void for_row_groups(std::int64_t rows, Body body) {
  std::int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) body(r, Count<kRows>{});
  if constexpr (kRows > 4)
    for (; r + 4 <= rows; r += 4) body(r, Count<4>{});
  if constexpr (kRows > 2)
    for (; r + 2 <= rows; r += 2) body(r, Count<2>{});
  for (; r < rows; ++r) body(r, Count<1>{});
}

/// Fetches nothing.
struct NoPrefetch {
  BITNET_INLINE void operator()(std::int64_t) const {}
};

/// acc[r][b] += a[r · 128 + k] · from[b][k · stride …] for k = 0 … n − 1, one
/// multiply-add each.
template <int R, int B, class Source, class Prefetch = NoPrefetch>
BITNET_INLINE void multiply_add(Block (&acc)[R][B], std::int64_t n, const float* a, const Source (&from)[B],
                                std::int64_t stride, Prefetch prefetch = {}) {
  for (std::int64_t k = 0; k < n; ++k) {
    prefetch(k);
    Block v[B];
    BITNET_UNROLL
    for (int b = 0; b < B; ++b) v[b] = load_block(from[b], static_cast<std::size_t>(k * stride));
    BITNET_UNROLL
    for (int r = 0; r < R; ++r) {
      const F32::Reg x = F32::broadcast(a[r * kChunk + k]);
      BITNET_UNROLL
      for (int b = 0; b < B; ++b) {
        BITNET_UNROLL
        for (int i = 0; i < kRegs; ++i) acc[r][b].r[i] = F32::fma(x, v[b].r[i], acc[r][b].r[i]);
      }
    }
  }
}

template <int R, int B>
BITNET_INLINE void clear(Block (&acc)[R][B]) {
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) {
    BITNET_UNROLL
    for (int b = 0; b < B; ++b) acc[r][b] = splat(0.0f);
  }
}

/// Scores of R rows against B blocks of keys from `block` on.
template <class Source, int R, int B>
void score_blocks(const AttentionTile& t, std::int64_t row, std::int64_t block) {
  constexpr std::int64_t kStepBytes = kKeys * sizeof(*Source::p);  // of one block, an element of all its keys
  Block acc[R][B];
  clear(acc);
  for (std::int64_t d = 0; d < t.head_dim; d += kChunk) {
    Source from[B];
    BITNET_UNROLL
    for (int b = 0; b < B; ++b) from[b].p = static_cast<decltype(Source::p)>(t.keys[block + b]) + d * kKeys;
    const std::int64_t n = least(kChunk, t.head_dim - d);
    const float* const q = t.q + d / kChunk * t.q_chunk_stride + row * kChunk;
    if (t.next_keys == nullptr) {
      multiply_add(acc, n, q, from, kKeys);
      continue;
    }
    // The values of the same keys have as many bytes: at every step, as many of
    // them as of the keys are read.
    multiply_add(
        acc, n, q, from, kKeys, [&](std::int64_t k) __attribute__((always_inline)) {
          BITNET_UNROLL
          for (int b = 0; b < B; ++b) {
            if (kStepBytes < 64 && B > 1 && (b & 1)) continue;
            const std::int64_t other = kStepBytes < 64 && B > 1 ? (k & 1) : 0;
            __builtin_prefetch(static_cast<const char*>(t.values[block + b + other]) +
                               (d + k) / (64 / kStepBytes) * 64);
          }
        });
  }
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) {
    BITNET_UNROLL
    for (int b = 0; b < B; ++b) store_block(t.scores + (row + r) * kTile + (block + b) * kKeys, acc[r][b]);
  }
}

/// Some blocks of keys for all rows before the next ones: those blocks stay in
/// L1 meanwhile.
template <class Source>
void score_rows(const AttentionTile& t) {
  constexpr int kStep = blocks_beside(kRows);
  const std::int64_t blocks = (t.n_keys[t.rows - 1] + kKeys - 1) / kKeys;
  const auto several = [&](std::int64_t block, std::int64_t end) __attribute__((always_inline)) {
    for_row_groups(
        t.rows, [&](std::int64_t row, auto count) __attribute__((always_inline)) {
          constexpr int R = decltype(count)::value, B = blocks_beside(R);
          const std::int64_t last = least(end, (t.n_keys[row + R - 1] + kKeys - 1) / kKeys);
          std::int64_t b = block;
          for (; b + B <= last; b += B) score_blocks<Source, R, B>(t, row, b);
          for (; b < last; ++b) score_blocks<Source, R, 1>(t, row, b);
        });
  };
  const std::int64_t step = t.rows < kRows ? blocks : kStep;
  for (std::int64_t b = 0; b < blocks; b += step) several(b, least(blocks, b + step));
}

/// The tile's own largest and sum, and the factors of a merge, of up to
/// kAttentionRows rows.
struct Softmax {
  float largest[kAttentionRows], sum[kAttentionRows];
  float old_factor[kAttentionRows], new_factor[kAttentionRows];
};

/// Pads a row's scores to whole blocks with −inf: exp gives 0, the neutral
/// element.
BITNET_INLINE std::int64_t pad_scores(float* scores, std::int64_t n) {
  const std::int64_t padded = (n + 15) / 16 * 16;
  for (std::int64_t i = n; i < padded; ++i) scores[i] = -__builtin_inff();
  return padded;
}

BITNET_INLINE Block larger(Block a, const Block& v) {
  BITNET_UNROLL
  for (int i = 0; i < kRegs; ++i) a.r[i] = select(v.r[i] > a.r[i], v.r[i], a.r[i]);
  return a;
}

/// scores = exp(scores − m) over `padded` elements; the sum over 16 lanes.
BITNET_INLINE float exponentials(float* scores, std::int64_t padded, float m) {
  const F32::Reg vm = F32::broadcast(m);
  Block sum = splat(0.0f);
  for (std::int64_t i = 0; i < padded; i += 16) {
    Block v = load_block(FromF32{scores + i}, 0);
    BITNET_UNROLL
    for (int r = 0; r < kRegs; ++r) {
      v.r[r] = exp_reg(v.r[r] - vm);
      sum.r[r] = sum.r[r] + v.r[r];
    }
    store_block(scores + i, v);
  }
  return fold(sum, kPlus);
}

void softmax_rows(const AttentionTile& t, Softmax& s) {
  for (std::int64_t r = 0; r < t.rows; ++r) {
    float* const scores = t.scores + r * kTile;
    const std::int64_t padded = pad_scores(scores, t.n_keys[r]);
    Block m = splat(-__builtin_inff());
    for (std::int64_t i = 0; i < padded; i += 16) m = larger(m, load_block(FromF32{scores + i}, 0));
    s.largest[r] = fold(m, kLarger);
    s.sum[r] = exponentials(scores, padded, s.largest[r]);
  }
}

/// Merges largest and sum of a part into `into`, and leaves the factors for the
/// values.
BITNET_INLINE void merge_sums(const float* largest, const float* sum, const AttentionState& into,
                              std::int64_t rows, float* old_factor, float* new_factor) {
  for (std::int64_t r = 0; r < rows; r += F32::kLanes) {
    const F32::Reg m0 = F32::load(into.largest + r), m1 = F32::load(largest + r);
    const F32::Reg m = select(m1 > m0, m1, m0);
    const F32::Reg f0 = exp_reg(m0 - m), f1 = exp_reg(m1 - m);
    F32::store(old_factor + r, f0);
    F32::store(new_factor + r, f1);
    F32::store(into.largest + r, m);
    F32::store(into.sum + r, F32::fma(F32::load(sum + r), f1, F32::load(into.sum + r) * f0));
  }
}

BITNET_INLINE void merge_block(const Block& part, float* into, float old_factor, float new_factor) {
  const F32::Reg f0 = F32::broadcast(old_factor), f1 = F32::broadcast(new_factor);
  Block v = load_block(FromF32{into}, 0);
  BITNET_UNROLL
  for (int i = 0; i < kRegs; ++i) v.r[i] = F32::fma(part.r[i], f1, v.r[i] * f0);
  store_block(into, v);
}

/// Puts largest and sum of the tile where its state is, merged or as they are.
BITNET_INLINE void put_sums(const AttentionTile& t, Softmax& s) {
  for (std::int64_t r = t.rows; r < (t.rows + 15) / 16 * 16; ++r) s.largest[r] = s.sum[r] = 0;
  if (t.merge) {
    merge_sums(s.largest, s.sum, t.state, t.rows, s.old_factor, s.new_factor);
    return;
  }
  for (std::int64_t r = 0; r < t.rows; r += 16) {
    store_block(t.state.largest + r, load_block(FromF32{s.largest + r}, 0));
    store_block(t.state.sum + r, load_block(FromF32{s.sum + r}, 0));
  }
}

BITNET_INLINE void put_values(const AttentionTile& t, const Softmax& s, std::int64_t row, std::int64_t column,
                              const Block& v) {
  float* const to = t.state.values + row * columns16(t.head_dim) * 16 + column;
  if (t.merge)
    merge_block(v, to, s.old_factor[row], s.new_factor[row]);
  else
    store_block(to, v);
}

/// acc += weights of keys begin … end times B blocks of columns.
template <class Source, int R, int B>
BITNET_INLINE void add_keys(const AttentionTile& t, Block (&acc)[R][B], std::int64_t row, std::int64_t column,
                            std::int64_t begin, std::int64_t end) {
  const std::int64_t stride = columns16(t.head_dim) * 16;
  while (begin < end) {
    const std::int64_t in_block = begin % kKeys, n = least(end - begin, kKeys - in_block);
    const auto* const values = static_cast<decltype(Source::p)>(t.values[begin / kKeys]);
    Source from[B];
    BITNET_UNROLL
    for (int b = 0; b < B; ++b) from[b].p = values + in_block * stride + column + 16 * b;
    const float* const p = t.scores + row * kTile + begin;
    if (t.next_keys == nullptr) {
      multiply_add(acc, n, p, from, stride);
    } else {
      constexpr std::int64_t kStepBytes = B * 16 * sizeof(*Source::p);
      const char* const next = static_cast<const char*>(t.next_keys[begin / kKeys]) +
                               column * kKeys * std::int64_t{sizeof(*Source::p)};
      multiply_add(
          acc, n, p, from, stride, [&](std::int64_t k) __attribute__((always_inline)) {
            BITNET_UNROLL
            for (std::int64_t i = 0; i < kStepBytes; i += 64)
              __builtin_prefetch(next + (in_block + k) * kStepBytes + i);
          });
    }
    begin += n;
  }
}

/// B blocks of columns of R rows. The rows share the keys that the first sees;
/// each continues alone.
template <class Source, int R, int B>
void value_columns(const AttentionTile& t, const Softmax& s, std::int64_t row, std::int64_t column) {
  Block acc[R][B];
  clear(acc);
  const std::int64_t shared = t.n_keys[row];
  add_keys<Source, R, B>(t, acc, row, column, 0, shared);
  if (t.n_keys[row + R - 1] == shared) {
    BITNET_UNROLL
    for (int r = 0; r < R; ++r) {
      BITNET_UNROLL
      for (int b = 0; b < B; ++b) put_values(t, s, row + r, column + 16 * b, acc[r][b]);
    }
    return;
  }
  float copy[R][B][16];
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) {
    BITNET_UNROLL
    for (int b = 0; b < B; ++b) store_block(copy[r][b], acc[r][b]);
  }
  for (int r = 0; r < R; ++r) {
    for (int b = 0; b < B; ++b) {
      Block one[1][1] = {{load_block(FromF32{copy[r][b]}, 0)}};
      add_keys<Source, 1, 1>(t, one, row + r, column + 16 * b, shared, t.n_keys[row + r]);
      put_values(t, s, row + r, column + 16 * b, one[0][0]);
    }
  }
}

/// Some columns for all rows before the next ones: those of the tile's values
/// stay in L1 meanwhile.
template <class Source>
void value_rows(const AttentionTile& t, const Softmax& s) {
  const std::int64_t columns = columns16(t.head_dim) * 16;
  const std::int64_t step = t.rows < kRows ? columns : 16 * blocks_beside(kRows);
  for (std::int64_t c0 = 0; c0 < columns; c0 += step) {
    for_row_groups(
        t.rows, [&](std::int64_t row, auto count) __attribute__((always_inline)) {
          constexpr int R = decltype(count)::value, B = blocks_beside(R);
          std::int64_t c = c0;
          const std::int64_t end = least(columns, c0 + step);
          for (; c + 16 * B <= end; c += 16 * B) value_columns<Source, R, B>(t, s, row, c);
          for (; c < end; c += 16) value_columns<Source, R, 1>(t, s, row, c);
        });
  }
}

template <class Source>
void float_tile(const AttentionTile& t) {
  Softmax s;
  score_rows<Source>(t);
  softmax_rows(t, s);
  put_sums(t, s);
  value_rows<Source>(t, s);
}

void tile_f32(const AttentionTile& t) noexcept { float_tile<FromF32>(t); }
void tile_f16(const AttentionTile& t) noexcept { float_tile<FromF16>(t); }

void merge(const AttentionState& part, const AttentionState& into, std::int64_t rows,
           std::int64_t head_dim) noexcept {
  Softmax s;
  merge_sums(part.largest, part.sum, into, rows, s.old_factor, s.new_factor);
  const std::int64_t columns = columns16(head_dim) * 16;
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = r * columns; c < (r + 1) * columns; c += 16)
      merge_block(load_block(FromF32{part.values + c}, 0), into.values + c, s.old_factor[r], s.new_factor[r]);
}

void f32_to_f16(const float* x, std::uint16_t* y, std::size_t n) noexcept {
  std::size_t i = 0;
  for (; i + F32::kLanes <= n; i += F32::kLanes) F32::store_f16(y + i, F32::load(x + i));
  if (i == n) return;
  float copy[F32::kLanes] = {};
  std::uint16_t half[F32::kLanes];
  for (std::size_t j = i; j < n; ++j) copy[j - i] = x[j];
  F32::store_f16(half, F32::load(copy));
  for (std::size_t j = i; j < n; ++j) y[j] = half[j - i];
}

}  // namespace
}  // namespace bitnet::kernels
