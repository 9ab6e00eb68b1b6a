// The float kernels of one instruction set: compiled once per row of cmake/BitNetIsa.cmake with
// -DBITNET_ISA=<name>. Everything but the table has internal linkage (cmake/check_isa_object.sh). The
// algorithms are in generic/, the registers in bitnet-core/simd; the choice between tables is in
// f32_kernels.cpp.
#include "bitnet/core/f32_kernels.hpp"

#include "bitnet/simd/this_isa.hpp"

#include "kernels/generic/dots.inl.hpp"
#include "kernels/generic/exp.inl.hpp"
#include "kernels/generic/gemm.inl.hpp"
#include "kernels/generic/rows.inl.hpp"

namespace bitnet::kernels::BITNET_ISA {

extern const F32Kernels kKernels;
constinit const F32Kernels kKernels{
    .isa = BITNET_STR(BITNET_ISA),
    .gemm = &gemm,
    .gemm_scratch = kGemmScratch,
    .dot = &dot,
    .dot_f16 = &dot_f16,
    .dot_bf16 = &dot_bf16,
    .dots = &dots,
    .dots_f16 = &dots_f16,
    .dots_bf16 = &dots_bf16,
    .axpy = &axpy,
    .axpy_rows = &axpy_rows,
    .sum = &sum,
    .sum_squares = &sum_squares,
    .max = &max,
    .max_abs = &max_abs,
    .rms_norm = &rms_norm,
    .exp_sum = &exp_sum,
    .scale = &scale,
    .add = &add,
    .mul = &mul,
    .relu2_gate = &relu2_gate,
    .silu_gate = &silu_gate,
    .rope = &rope,
    .f16_to_f32 = &f16_to_f32,
    .bf16_to_f32 = &bf16_to_f32,
};

}  // namespace bitnet::kernels::BITNET_ISA
