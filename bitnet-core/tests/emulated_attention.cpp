// int8 attention (kernels/generic/attention_tiles.inl.hpp) on emulated tiles: the same source that runs on
// the processor's, which differ in the few lines of simd/amx_int8.hpp only. Compiled for a vocabulary
// BITNET_ISA, whose floats it uses; the test is attention_tiles_test.cpp.
#include "bitnet/core/attention_kernels.hpp"
#include "bitnet/simd/this_isa.hpp"
#include "bitnet/testing/emulated_tiles.hpp"

#include "kernels/generic/attention_tiles.inl.hpp"

namespace bitnet::emulated::BITNET_ISA {
namespace {

using testing::EmulatedTiles;

void tile_i8(const AttentionTile& t) noexcept {
  kernels::tile_i8_tiled<EmulatedTiles>(t);
  EmulatedTiles::need_released();
}

}  // namespace

extern const AttentionKernels kOnTiles, kByRows;
const AttentionKernels kOnTiles{.isa = BITNET_STR(BITNET_ISA),
                                .tile_f32 = &kernels::tile_f32,
                                .tile_f16 = &kernels::tile_f16,
                                .tile_i8 = &tile_i8,
                                .merge = &kernels::merge,
                                .f32_to_f16 = &kernels::f32_to_f16,
                                .quantize = &kernels::quantize};
const AttentionKernels kByRows{.isa = BITNET_STR(BITNET_ISA),
                               .tile_f32 = &kernels::tile_f32,
                               .tile_f16 = &kernels::tile_f16,
                               .tile_i8 = &kernels::tile_i8_by_rows,
                               .merge = &kernels::merge,
                               .f32_to_f16 = &kernels::f32_to_f16,
                               .quantize = &kernels::quantize};

}  // namespace bitnet::emulated::BITNET_ISA
