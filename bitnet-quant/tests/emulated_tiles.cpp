// The ternary tile algorithm (kernels/generic/ternary_tiles.inl.hpp) on emulated tiles: the same source that
// runs on the processor's. Compiled for a vocabulary BITNET_ISA, whose decoders it uses; the test is
// emulated_tiles_test.cpp.
#include "bitnet/testing/emulated_tiles.hpp"
#include "bitnet/simd/this_isa.hpp"
#include "kernels/ternary_table.hpp"

#include "kernels/generic/ternary_tiles.inl.hpp"

namespace bitnet::quant::emulated::BITNET_ISA {
namespace {

using testing::EmulatedTiles;

void multiply(const TernaryProduct& p) noexcept {
  if (p.code == TileCode::kTwoBit)
    kernels::multiply_ternary_tiles<EmulatedTiles, kernels::TwoBit>(p);
  else
    kernels::multiply_ternary_tiles<EmulatedTiles, kernels::Base3>(p);
  EmulatedTiles::need_released();
}

}  // namespace

extern const TernaryKernels kKernels;
const TernaryKernels kKernels{.isa = BITNET_STR(BITNET_ISA),
                              .fast_base3 = true,
                              .row_block = 32,
                              .x_bytes = 1 << 20,
                              .multiply = &multiply,
                              .quantize = nullptr};

}  // namespace bitnet::quant::emulated::BITNET_ISA
