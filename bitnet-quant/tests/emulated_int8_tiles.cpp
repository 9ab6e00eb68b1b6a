// The int8 tile algorithm (kernels/generic/int8_tiles.inl.hpp) on emulated tiles, as emulated_tiles.cpp does
// for ternary weights.
#include "bitnet/simd/this_isa.hpp"
#include "bitnet/testing/emulated_tiles.hpp"
#include "kernels/int8_table.hpp"

#include "kernels/generic/int8_tiles.inl.hpp"

namespace bitnet::quant::emulated::BITNET_ISA {
namespace {

using testing::EmulatedTiles;

void multiply(const Int8Product& p) noexcept {
  kernels::multiply_int8_tiles<EmulatedTiles>(p);
  EmulatedTiles::need_released();
}

}  // namespace

extern const Int8Kernels kInt8Kernels;
const Int8Kernels kInt8Kernels{.isa = BITNET_STR(BITNET_ISA), .multiply = &multiply};

}  // namespace bitnet::quant::emulated::BITNET_ISA
