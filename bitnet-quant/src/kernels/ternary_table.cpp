// The ternary kernels of one instruction set: compiled once per row of cmake/BitNetIsa.cmake with
// -DBITNET_ISA=<name>. Everything but the table has internal linkage (cmake/check_isa_object.sh). The
// algorithms are in generic/, the registers in bitnet-core/simd.
#include "kernels/ternary_table.hpp"

#include "bitnet/simd/this_isa.hpp"

#include "kernels/generic/multiply.inl.hpp"
#include "kernels/generic/quantize.inl.hpp"

namespace bitnet::quant::kernels::BITNET_ISA {

extern const TernaryKernels kKernels;
constinit const TernaryKernels kKernels{
    .isa = BITNET_STR(BITNET_ISA),
    .fast_base3 = Base3::kScaled,
    .row_block = kRowBlock,
    .x_bytes = kRowBytes,
    .multiply = &multiply,
    .quantize = &quantize,
};

}  // namespace bitnet::quant::kernels::BITNET_ISA
