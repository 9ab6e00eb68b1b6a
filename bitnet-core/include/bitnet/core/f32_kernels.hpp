#pragma once
// Float arithmetic of the project with one fixed order: results do not depend on thread count and are
// bit-equal on every ISA that has FMA (docs/numerics.md). One row or one block a call; callers cut work with
// ExecutionContext.
#include <cstddef>
#include <cstdint>

#include "bitnet/core/isa.hpp"

namespace bitnet {

/// Table of one ISA's kernels, all noexcept, none allocates unless said. `n` counts elements. Pointers need
/// no alignment. Reductions run over 16 virtual lanes (lane = index mod 16), then pairwise over the lanes.
struct F32Kernels {
  const char* isa;

  /// C[m,n] = (accumulate ? C : 0) + A·B, one fused multiply-add a term in ascending k.
  /// a(i,k) = a[i·a_row + k·a_col], b(k,j) = b[k·b_row + j·b_col], c(i,j) = c[i·ldc + j]: any transpose is a
  /// pair of strides. Single-threaded; `scratch` holds gemm_scratch floats (packing panels), 64-byte aligned.
  void (*gemm)(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t a_row,
               std::int64_t a_col, const float* b, std::int64_t b_row, std::int64_t b_col, float* c,
               std::int64_t ldc, bool accumulate, float* scratch) noexcept;
  std::size_t gemm_scratch;

  float (*dot)(const float* x, const float* y, std::size_t n) noexcept;
  float (*dot_f16)(const std::uint16_t* x, const float* y, std::size_t n) noexcept;   // x widened exactly
  float (*dot_bf16)(const std::uint16_t* x, const float* y, std::size_t n) noexcept;  // x widened exactly
  /// y[r·y_stride + c] = dot(w + c·w_stride, x[r], n) to the bit, for r < rows and c < cols: many times
  /// faster than one at a time. A few rows (≤ 16) at a call keep x in L1; w is read once.
  void (*dots)(const float* const* x, std::int64_t rows, const float* w, std::int64_t w_stride,
               std::int64_t cols, std::size_t n, float* y, std::int64_t y_stride) noexcept;
  void (*dots_f16)(const float* const* x, std::int64_t rows, const std::uint16_t* w, std::int64_t w_stride,
                   std::int64_t cols, std::size_t n, float* y, std::int64_t y_stride) noexcept;
  void (*dots_bf16)(const float* const* x, std::int64_t rows, const std::uint16_t* w, std::int64_t w_stride,
                    std::int64_t cols, std::size_t n, float* y, std::int64_t y_stride) noexcept;
  void (*axpy)(float a, const float* x, float* y, std::size_t n) noexcept;  // y = fma(a, x, y)
  /// axpy(a[t], x + t·stride, y, n) for t = 0 … rows − 1, to the bit: a weighted sum of rows.
  void (*axpy_rows)(const float* a, const float* x, std::int64_t stride, std::int64_t rows, float* y,
                    std::size_t n) noexcept;
  float (*sum)(const float* x, std::size_t n) noexcept;
  float (*sum_squares)(const float* x, std::size_t n) noexcept;
  float (*max)(const float* x, std::size_t n) noexcept;  // −inf for n = 0; passes over NaNs; of zeros +0
  float (*max_abs)(const float* x, std::size_t n) noexcept;  // 0 for n = 0, NaN if there is one in x
  /// y = x · (1 / sqrt(sum_squares(x)/n + eps)) · w
  void (*rms_norm)(const float* x, const float* w, float eps, float* y, std::size_t n) noexcept;
  /// x = exp(x − m), returns their sum; own exp, relative error ≤ 2 ulp, exp(−inf) = 0.
  float (*exp_sum)(float* x, float m, std::size_t n) noexcept;
  void (*scale)(float a, float* x, std::size_t n) noexcept;
  void (*add)(const float* x, float* y, std::size_t n) noexcept;  // y += x
  void (*mul)(const float* x, float* y, std::size_t n) noexcept;  // y *= x
  void (*relu2_gate)(const float* gate, const float* up, float* out, std::size_t n) noexcept;
  void (*silu_gate)(const float* gate, const float* up, float* out, std::size_t n) noexcept;
  /// Rotates pairs (x[i], x[i+half]) by cos[i], sin[i].
  void (*rope)(float* x, const float* cos, const float* sin, std::size_t half) noexcept;
  void (*f16_to_f32)(const std::uint16_t* x, float* y, std::size_t n) noexcept;
  void (*bf16_to_f32)(const std::uint16_t* x, float* y, std::size_t n) noexcept;
};

/// The table of `isa`, which must be supported by this CPU.
const F32Kernels& f32_kernels(Isa isa) noexcept;

/// f32_kernels(isa), compared with plain loops by the first call of this process (some 100 µs); later calls
/// cost a load and allocate nothing. Thread-safe. Throws Error(kDevice), each time, naming the kernel that
/// computes wrongly and how to go on without this instruction set.
const F32Kernels& tested_f32_kernels(Isa isa);

class ExecutionContext;

/// gemm() of the tested kernels over all threads of `context`, cut into blocks whose results do not depend on
/// the cut.
void gemm(const ExecutionContext& context, std::int64_t m, std::int64_t n, std::int64_t k, const float* a,
          std::int64_t a_row, std::int64_t a_col, const float* b, std::int64_t b_row, std::int64_t b_col,
          float* c, std::int64_t ldc, bool accumulate);

}  // namespace bitnet
