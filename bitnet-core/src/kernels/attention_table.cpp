// The attention kernels of one instruction set: compiled once per row of
// cmake/BitNetIsa.cmake with -DBITNET_ISA=<name>. Everything but the table has
// internal linkage (cmake/check_isa_object.sh). The choice between tables is in
// attention_kernels.cpp.
#include "bitnet/core/attention_kernels.hpp"

#include "bitnet/simd/this_isa.hpp"

#include "kernels/generic/attention.inl.hpp"
#include "kernels/generic/attention_i8.inl.hpp"
#if defined(BITNET_SIMD_TILES)
#include "kernels/generic/attention_tiles.inl.hpp"
#endif

namespace bitnet::kernels {
namespace {

void tile_i8(const AttentionTile& t) noexcept {
#if defined(BITNET_SIMD_TILES)
  // Rows that fill a block of a tile. With fewer, as in decoding, memory is what is waited for, and the other
  // way fetches ahead.
  constexpr std::int64_t kTilesFrom = 16;
  if (t.rows >= kTilesFrom) return tile_i8_tiled<simd::Tiles>(t);
#endif
  tile_i8_by_rows(t);
}

}  // namespace
}  // namespace bitnet::kernels

namespace bitnet::kernels::BITNET_ISA {

extern const AttentionKernels kAttentionKernels;
constinit const AttentionKernels kAttentionKernels{
    .isa = BITNET_STR(BITNET_ISA),
    .tile_f32 = &tile_f32,
    .tile_f16 = &tile_f16,
    .tile_i8 = &tile_i8,
    .merge = &merge,
    .f32_to_f16 = &f32_to_f16,
    .quantize = &quantize,
};

}  // namespace bitnet::kernels::BITNET_ISA
