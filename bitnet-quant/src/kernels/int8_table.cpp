// The int8 × int8 kernels of one instruction set: compiled once per row of cmake/BitNetIsa.cmake with
// -DBITNET_ISA=<name>. Everything but the table has internal linkage (cmake/check_isa_object.sh). The
// algorithm is generic/int8.inl.hpp, the registers are in bitnet-core/simd.
#include "kernels/int8_table.hpp"

#include "bitnet/simd/this_isa.hpp"

#include "kernels/generic/int8.inl.hpp"

namespace bitnet::quant::kernels::BITNET_ISA {

extern const Int8Kernels kInt8Kernels;
constinit const Int8Kernels kInt8Kernels{
    .isa = BITNET_STR(BITNET_ISA),
    .multiply = &multiply_int8,
};

}  // namespace bitnet::quant::kernels::BITNET_ISA
