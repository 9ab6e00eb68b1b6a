// The tensor ops' kernels of one instruction set: compiled once per row of cmake/BitNetIsa.cmake with
// -DBITNET_ISA=<name>. Everything but the table has internal linkage (cmake/check_isa_object.sh). The
// algorithms are in generic/elementwise.inl.hpp, generic/tensor_rows.inl.hpp and generic/matvec.inl.hpp; the
// choice between tables is in tensor_kernels.cpp.
#include "kernels/tensor_table.hpp"

#define BITNET_STR2(x) #x
#define BITNET_STR(x) BITNET_STR2(x)
// clang-format off
#define BITNET_SIMD_HEADER BITNET_STR(bitnet/simd/BITNET_ISA.hpp)
// clang-format on
#include BITNET_SIMD_HEADER

#include "kernels/generic/elementwise.inl.hpp"
#include "kernels/generic/matvec.inl.hpp"
#include "kernels/generic/tensor_rows.inl.hpp"

namespace bitnet::kernels::BITNET_ISA {

extern const TensorKernels kTensorKernels;
constinit const TensorKernels kTensorKernels{
    .isa = BITNET_STR(BITNET_ISA),
    .binary = {&binary<Add>, &binary<Sub>, &binary<Mul>, &binary<Div>, &binary<Maximum>, &binary<Minimum>},
    .compare = {&compare<Equal>, &compare<NotEqual>, &compare<Less>, &compare<LessEqual>, &compare<Greater>,
                &compare<GreaterEqual>},
    .unary = {&unary<Neg>, &unary<Abs>, &unary<Square>, &square_root, &unary<Reciprocal>, &unary<Exp>,
              &unary<Log>, &unary<Tanh>, &unary<Sigmoid>, &unary<Relu>, &unary<Silu>, &unary<Floor>,
              &unary<Ceil>, &unary<Round>},
    .clamp = &clamp,
    .max = &row_max,
    .min = &row_min,
    .arg_max = &arg_max,
    .arg_min = &arg_min,
    .sum_abs = &sum_abs,
    .sum_deviations = &sum_deviations,
    .normalize = &normalize,
    .matvec = &matvec,
    .f32_to_f16 = &f32_to_f16,
    .f32_to_bf16 = &f32_to_bf16,
    .f32_to_i8 = &f32_to_i8,
    .f32_to_i32 = &f32_to_i32,
    .i8_to_f32 = &i8_to_f32,
    .i32_to_f32 = &i32_to_f32,
};

}  // namespace bitnet::kernels::BITNET_ISA
