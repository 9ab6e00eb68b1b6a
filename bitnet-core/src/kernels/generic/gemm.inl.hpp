#pragma once
// Packed sgemm, written once against simd::F32. Panels of A (kMr rows) and B (kNr columns) are copied so that
// the inner loop reads both linearly; blocks of k continue the sums in C, so every output is one chain of
// multiply-adds in ascending k whatever the blocking. Included by f32_table.cpp only.
namespace bitnet::kernels {
namespace {

using simd::F32;
using simd::Quad;
using simd::QuadMem;

constexpr std::int64_t kMr = F32::kGemmRows;
constexpr std::int64_t kNr = std::int64_t{F32::kGemmVectors} * F32::kLanes;
// The longer the blocks of k, the less often C is loaded and stored, and widths of 384 are one; a panel of B,
// kKc × kNr floats, then fills L1 (48 KB), and streams where that is smaller. The blocks of A and B share L2.
constexpr std::int64_t kKc = 384;
constexpr std::int64_t kMc = 160 / kMr * kMr;
constexpr std::int64_t kNc = 512 / kNr * kNr;
constexpr std::int64_t kGemmScratch = (kMc + kNc) * kKc;

/// C[R, V·lanes] (+)= Apanel[kc, kMr] · Bpanel[kc, kNr]
template <int R, int V>
void micro_kernel(std::int64_t kc, const float* a, const float* b, float* c, std::int64_t ldc, bool load_c) {
  F32::Reg acc[R][V];
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) {
    BITNET_UNROLL
    for (int v = 0; v < V; ++v)
      acc[r][v] = load_c ? F32::load(c + r * ldc + v * F32::kLanes) : F32::broadcast(0.0f);
  }
  for (std::int64_t k = 0; k < kc; ++k) {
    F32::Reg bv[V];
    BITNET_UNROLL
    for (int v = 0; v < V; ++v) bv[v] = F32::load(b + v * F32::kLanes);
    BITNET_UNROLL
    for (int r = 0; r < R; ++r) {
      const F32::Reg av = F32::broadcast(a[r]);
      BITNET_UNROLL
      for (int v = 0; v < V; ++v) acc[r][v] = F32::fma(av, bv[v], acc[r][v]);
    }
    a += kMr;
    b += kNr;
  }
  BITNET_UNROLL
  for (int r = 0; r < R; ++r) {
    BITNET_UNROLL
    for (int v = 0; v < V; ++v) F32::store(c + r * ldc + v * F32::kLanes, acc[r][v]);
  }
}

using MicroKernel = void (*)(std::int64_t, const float*, const float*, float*, std::int64_t, bool);

/// micro_kernel<rows, vectors>, both counted from 1.
MicroKernel micro_kernel_for(std::int64_t rows, std::int64_t vectors) {
  static constexpr MicroKernel kTable[8][3] = {
#define BITNET_ROW(R)                                                   \
  {&micro_kernel<(R <= kMr ? R : 1), 1>,                                \
   &micro_kernel<(R <= kMr ? R : 1), (2 <= F32::kGemmVectors ? 2 : 1)>, \
   &micro_kernel<(R <= kMr ? R : 1), (3 <= F32::kGemmVectors ? 3 : 1)>}
      BITNET_ROW(1), BITNET_ROW(2), BITNET_ROW(3), BITNET_ROW(4), BITNET_ROW(5),
      BITNET_ROW(6), BITNET_ROW(7), BITNET_ROW(8)
#undef BITNET_ROW
  };
  static_assert(F32::kGemmRows <= 8 && F32::kGemmVectors <= 3);
  return kTable[rows - 1][vectors - 1];
}

/// One output tile of `rows` × `cols`, cols any up to kNr: a ragged last vector goes through a copy of C.
void tile(std::int64_t kc, const float* a, const float* b, float* c, std::int64_t ldc, std::int64_t rows,
          std::int64_t cols, bool load_c) {
  const std::int64_t vectors = (cols + F32::kLanes - 1) / F32::kLanes;
  const MicroKernel kernel = micro_kernel_for(rows, vectors);
  if (cols == vectors * F32::kLanes) {
    kernel(kc, a, b, c, ldc, load_c);
    return;
  }
  float copy[kMr * kNr] = {};
  if (load_c)
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t j = 0; j < cols; ++j) copy[r * kNr + j] = c[r * ldc + j];
  kernel(kc, a, b, copy, kNr, load_c);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t j = 0; j < cols; ++j) c[r * ldc + j] = copy[r * kNr + j];
}

/// to[k, w] = from[w·width_stride + k] for W columns and kc rows, in 4 × 4 blocks.
template <int W>
void pack_transposed(const float* from, std::int64_t width_stride, std::int64_t kc, float* to) {
  static_assert(W % 4 == 0);
  for (int w = 0; w < W; w += 4) {
    const float* p = from + w * width_stride;
    const float* q = p + 2 * width_stride;
    std::int64_t k = 0;
    for (; k + 4 <= kc; k += 4) {
      const Quad r0 = *reinterpret_cast<const QuadMem*>(p + k);
      const Quad r1 = *reinterpret_cast<const QuadMem*>(p + width_stride + k);
      const Quad r2 = *reinterpret_cast<const QuadMem*>(q + k);
      const Quad r3 = *reinterpret_cast<const QuadMem*>(q + width_stride + k);
      const Quad a = __builtin_shufflevector(r0, r1, 0, 4, 1, 5),
                 b = __builtin_shufflevector(r0, r1, 2, 6, 3, 7);
      const Quad c = __builtin_shufflevector(r2, r3, 0, 4, 1, 5),
                 d = __builtin_shufflevector(r2, r3, 2, 6, 3, 7);
      float* out = to + k * W + w;
      *reinterpret_cast<QuadMem*>(out) = __builtin_shufflevector(a, c, 0, 1, 4, 5);
      *reinterpret_cast<QuadMem*>(out + W) = __builtin_shufflevector(a, c, 2, 3, 6, 7);
      *reinterpret_cast<QuadMem*>(out + 2 * W) = __builtin_shufflevector(b, d, 0, 1, 4, 5);
      *reinterpret_cast<QuadMem*>(out + 3 * W) = __builtin_shufflevector(b, d, 2, 3, 6, 7);
    }
    for (; k < kc; ++k)
      for (int i = 0; i < 4; ++i) to[k * W + w + i] = p[i * width_stride + k];
  }
}

std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

/// pack() where columns are neighbours, eight values of k at a time: rows that are pages apart are read to
/// the end of their cache lines before those are evicted.
template <int W>
void pack_neighbours(const float* from, std::int64_t k_stride, std::int64_t width, std::int64_t kc,
                     float* to) {
  for (std::int64_t k0 = 0; k0 < kc; k0 += 8)
    for (std::int64_t w0 = 0; w0 < width; w0 += W)
      for (std::int64_t k = k0; k < smaller(kc, k0 + 8); ++k) {
        const float* const p = from + k * k_stride + w0;
        float* const panel = to + w0 * kc + k * W;
        if (width - w0 >= W)
          __builtin_memcpy(panel, p, W * sizeof(float));
        else
          for (std::int64_t w = 0; w < W; ++w) panel[w] = w < width - w0 ? p[w] : 0.0f;
      }
}

/// Copies [width, kc] (element (w, k) at w·width_stride + k·k_stride) into panels [kc, W]; a last panel that
/// is not full is padded with zeros, whose products reach no output.
template <int W>
void pack(const float* from, std::int64_t width_stride, std::int64_t k_stride, std::int64_t width,
          std::int64_t kc, float* to) {
  if (width_stride == 1) {
    pack_neighbours<W>(from, k_stride, width, kc, to);
    return;
  }
  for (std::int64_t w0 = 0; w0 < width; w0 += W, to += kc * W) {
    const float* p = from + w0 * width_stride;
    const std::int64_t valid = smaller(W, width - w0);
    if (valid == W && k_stride == 1) {
      pack_transposed<W>(p, width_stride, kc, to);
    } else {
      for (std::int64_t k = 0; k < kc; ++k)
        for (std::int64_t w = 0; w < W; ++w)
          to[k * W + w] = w < valid ? p[w * width_stride + k * k_stride] : 0.0f;
    }
  }
}

void gemm(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t a_row,
          std::int64_t a_col, const float* b, std::int64_t b_row, std::int64_t b_col, float* c,
          std::int64_t ldc, bool accumulate, float* scratch) noexcept {
  if (k <= 0 && !accumulate)
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t j = 0; j < n; ++j) c[i * ldc + j] = 0.0f;
  float* const a_panels = scratch;
  float* const b_panels = scratch + kMc * kKc;
  for (std::int64_t j0 = 0; j0 < n; j0 += kNc) {
    const std::int64_t nc = smaller(kNc, n - j0);
    for (std::int64_t k0 = 0; k0 < k; k0 += kKc) {
      const std::int64_t kc = smaller(kKc, k - k0);
      pack<kNr>(b + j0 * b_col + k0 * b_row, b_col, b_row, nc, kc, b_panels);
      for (std::int64_t i0 = 0; i0 < m; i0 += kMc) {
        const std::int64_t mc = smaller(kMc, m - i0);
        pack<kMr>(a + i0 * a_row + k0 * a_col, a_row, a_col, mc, kc, a_panels);
        for (std::int64_t j = 0; j < nc; j += kNr)
          for (std::int64_t i = 0; i < mc; i += kMr)
            tile(kc, a_panels + i * kc, b_panels + j * kc, c + (i0 + i) * ldc + j0 + j, ldc,
                 smaller(kMr, mc - i), smaller(kNr, nc - j), accumulate || k0 > 0);
      }
    }
  }
}

}  // namespace
}  // namespace bitnet::kernels
