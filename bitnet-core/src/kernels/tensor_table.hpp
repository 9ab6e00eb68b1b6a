#pragma once
// The boundary between the tensor ops (src/ops) and the ISA objects of tensor_table.cpp: loops over runs of
// contiguous floats that F32Kernels lacks. Plain data only, as for all ISA tables. Every function is noexcept
// and allocates nothing; `n` counts elements; an output may be the same array as an input, not overlap it
// otherwise.
#include <cstddef>
#include <cstdint>

#include "bitnet/core/isa.hpp"

namespace bitnet {

/// Sizes of the tables below; the order is that of ops::Binary, ops::Comparison and ops::Unary.
inline constexpr std::size_t kBinaryOps = 6, kComparisons = 6, kUnaryOps = 14;

struct TensorKernels {
  const char* isa;

  /// out[i] = x[i] op y[i]; `one` of an operand: x[0] (y[0]) stands for every element.
  void (*binary[kBinaryOps])(const float* x, bool x_one, const float* y, bool y_one, float* out,
                             std::size_t n) noexcept;
  /// out[i] = x[i] op y[i] ? 1 : 0, in the same way.
  void (*compare[kComparisons])(const float* x, bool x_one, const float* y, bool y_one, std::int8_t* out,
                                std::size_t n) noexcept;
  void (*unary[kUnaryOps])(const float* x, float* out, std::size_t n) noexcept;
  /// out[i] = min(max(x[i], low), high); a NaN stays one.
  void (*clamp)(const float* x, float low, float high, float* out, std::size_t n) noexcept;

  // A NaN gives NaN. Of zeros +0 comes out.
  float (*max)(const float* x, std::size_t n) noexcept;  // −inf for n = 0
  float (*min)(const float* x, std::size_t n) noexcept;  // inf for n = 0
  /// Index of the first largest (smallest), a NaN being it; n > 0.
  std::size_t (*arg_max)(const float* x, std::size_t n) noexcept;
  std::size_t (*arg_min)(const float* x, std::size_t n) noexcept;
  // Sums over 16 lanes and the fold of F32Kernels. A NaN gives NaN.
  float (*sum_abs)(const float* x, std::size_t n) noexcept;                  // Σ |x|
  float (*sum_deviations)(const float* x, float m, std::size_t n) noexcept;  // Σ (x − m)²
  /// y[i] = (x[i] − mean) · factor · w[i] + b[i]; w and b may each be null (1 and 0).
  void (*normalize)(const float* x, float mean, float factor, const float* w, const float* b, float* y,
                    std::size_t n) noexcept;

  /// y[r] = Σ x[k]·w[r·stride + k] for r < rows, each one chain of multiply-adds in ascending k from 0, as
  /// F32Kernels::gemm's.
  void (*matvec)(const float* w, std::int64_t stride, std::int64_t rows, const float* x, std::int64_t n,
                 float* y) noexcept;

  // Conversions, half to even. Integers saturate, and NaN becomes 0.
  void (*f32_to_f16)(const float* x, std::uint16_t* y, std::size_t n) noexcept;
  void (*f32_to_bf16)(const float* x, std::uint16_t* y, std::size_t n) noexcept;
  void (*f32_to_i8)(const float* x, std::int8_t* y, std::size_t n) noexcept;
  void (*f32_to_i32)(const float* x, std::int32_t* y, std::size_t n) noexcept;
  void (*i8_to_f32)(const std::int8_t* x, float* y, std::size_t n) noexcept;
  void (*i32_to_f32)(const std::int32_t* x, float* y, std::size_t n) noexcept;
};

/// The table of `isa`, which must be supported by this CPU.
const TensorKernels& tensor_kernels(Isa isa) noexcept;
/// The same, compared with plain loops by the first call of this process, as tested_f32_kernels() is. Throws
/// Error(kDevice).
const TensorKernels& tested_tensor_kernels(Isa isa);

}  // namespace bitnet
