#pragma once
// A matrix of rows times a vector, each output one chain of multiply-adds in ascending k, like gemm's: a lane
// holds a row, for which 4 × 4 squares of the matrix are transposed in registers. Included by
// tensor_table.cpp only.
#include "kernels/generic/block.inl.hpp"

namespace bitnet::kernels {
namespace {

/// shuffle<a, b, c, d>(x, y): in every quad, elements a … d of x's quad (0 … 3) followed by y's (4 … 7). A
/// template over Reg, so that the branches of other widths are not compiled.
template <int A, int B, int C, int D, class Reg>
BITNET_INLINE auto shuffle(Reg x, Reg y) {
  constexpr int kLanes = sizeof(Reg) / sizeof(float);
#define BITNET_LANE(q, i) ((i) < 4 ? 4 * (q) + (i) : kLanes + 4 * (q) + (i)-4)
#define BITNET_QUAD(q) BITNET_LANE(q, A), BITNET_LANE(q, B), BITNET_LANE(q, C), BITNET_LANE(q, D)
  if constexpr (kLanes == 4)
    return __builtin_shufflevector(x, y, BITNET_QUAD(0));
  else if constexpr (kLanes == 8)
    return __builtin_shufflevector(x, y, BITNET_QUAD(0), BITNET_QUAD(1));
  else
    return __builtin_shufflevector(x, y, BITNET_QUAD(0), BITNET_QUAD(1), BITNET_QUAD(2), BITNET_QUAD(3));
#undef BITNET_QUAD
#undef BITNET_LANE
}

/// sum + the products of columns 0 … 3 of kLanes rows at p with x[0 … 4), one after the other.
BITNET_INLINE F32::Reg add_four(F32::Reg sum, const float* p, std::int64_t stride, const float* x) {
  const std::int64_t four = 4 * stride;  // quad q of r0 is of row 4·q, of r1 of the next, …
  const F32::Reg r0 = F32::load_quads(p, four), r1 = F32::load_quads(p + stride, four),
                 r2 = F32::load_quads(p + 2 * stride, four), r3 = F32::load_quads(p + 3 * stride, four);
  const F32::Reg a = shuffle<0, 4, 1, 5>(r0, r1), b = shuffle<2, 6, 3, 7>(r0, r1),
                 c = shuffle<0, 4, 1, 5>(r2, r3), d = shuffle<2, 6, 3, 7>(r2, r3);
  sum = F32::fma(F32::broadcast(x[0]), shuffle<0, 1, 4, 5>(a, c), sum);
  sum = F32::fma(F32::broadcast(x[1]), shuffle<2, 3, 6, 7>(a, c), sum);
  sum = F32::fma(F32::broadcast(x[2]), shuffle<0, 1, 4, 5>(b, d), sum);
  return F32::fma(F32::broadcast(x[3]), shuffle<2, 3, 6, 7>(b, d), sum);
}

/// G · kLanes rows.
template <int G>
void matvec_rows(const float* w, std::int64_t stride, const float* x, std::int64_t n, float* y) {
  const std::int64_t group = F32::kLanes * stride;
  F32::Reg sum[G];
  BITNET_UNROLL
  for (int g = 0; g < G; ++g) sum[g] = F32::broadcast(0.0f);
  std::int64_t k = 0;
  for (; k + 4 <= n; k += 4) {
    BITNET_UNROLL
    for (int g = 0; g < G; ++g) sum[g] = add_four(sum[g], w + g * group + k, stride, x + k);
  }
  for (; k < n; ++k) {
    BITNET_UNROLL
    for (int g = 0; g < G; ++g) {
      float column[F32::kLanes];
      for (int r = 0; r < F32::kLanes; ++r) column[r] = w[g * group + r * stride + k];
      sum[g] = F32::fma(F32::broadcast(x[k]), F32::load(column), sum[g]);
    }
  }
  BITNET_UNROLL
  for (int g = 0; g < G; ++g) F32::store(y + g * F32::kLanes, sum[g]);
}

constexpr int kFew = 8;

/// The first kFew of `rows` rows, fewer than lanes: one float each. Where there are fewer still, the last one
/// is computed in the place of the others.
void matvec_few(const float* w, std::int64_t stride, std::int64_t rows, const float* x, std::int64_t n,
                float* y) {
  const float* row[kFew];
  float sum[kFew] = {};
  BITNET_UNROLL
  for (int r = 0; r < kFew; ++r) row[r] = w + (r < rows ? r : rows - 1) * stride;
  for (std::int64_t k = 0; k < n; ++k) {
    BITNET_UNROLL
    for (int r = 0; r < kFew; ++r) sum[r] = F32::fma1(x[k], row[r][k], sum[r]);
  }
  for (int r = 0; r < kFew && r < rows; ++r) y[r] = sum[r];
}

void matvec(const float* w, std::int64_t stride, std::int64_t rows, const float* x, std::int64_t n,
            float* y) noexcept {
  constexpr int kGroups = F32::kLanes == 16 ? 2 : 4;
  constexpr std::int64_t kLanes = F32::kLanes, kBlock = kGroups * kLanes;
  std::int64_t r = 0;
  if (rows < kLanes) {
    for (; r < rows; r += kFew) matvec_few(w + r * stride, stride, rows - r, x, n, y + r);
    return;
  }
  for (; r + kBlock <= rows; r += kBlock) matvec_rows<kGroups>(w + r * stride, stride, x, n, y + r);
  for (; r + kLanes <= rows; r += kLanes) matvec_rows<1>(w + r * stride, stride, x, n, y + r);
  if (r == rows) return;
  r = rows - kLanes;  // some rows of the group before once more
  matvec_rows<1>(w + r * stride, stride, x, n, y + r);
}

}  // namespace
}  // namespace bitnet::kernels
