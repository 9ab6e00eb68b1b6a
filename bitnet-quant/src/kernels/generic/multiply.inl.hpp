#pragma once
// The product of TernaryKernels: chooses between registers.inl.hpp, panel.inl.hpp and ternary_tiles.inl.hpp
// by the number of rows. Included by ternary_table.cpp only.
#include "kernels/generic/panel.inl.hpp"
#include "kernels/generic/ternary_tiles.inl.hpp"

namespace bitnet::quant::kernels {
namespace {

#if defined(BITNET_SIMD_TILES)
constexpr std::int64_t kRowBlock = 2 * kBlockRows, kRowBytes = 1 << 20;
#else
constexpr std::int64_t kRowBlock = kMaxRows, kRowBytes = 512 << 10;
#endif

template <class C>
void multiply_code(const TernaryProduct& p) {
#if defined(BITNET_SIMD_TILES)
  constexpr std::int64_t kTilesFrom = 8;  // rows: with fewer most of a tile's product would be thrown away
  if (p.rows >= kTilesFrom) return multiply_ternary_tiles<simd::Tiles, C>(p);
#endif
  // Where one instruction multiplies and adds, decoding is hidden behind it, and a panel only costs its
  // stores.
  if constexpr (C::kDirect) {
    if (I8::kWideSums || p.rows <= kMaxRows) return multiply_in_registers<C>(p);
  }
  multiply_panels<C>(p);
}

void multiply(const TernaryProduct& p) noexcept {
  if (p.code == TileCode::kTwoBit)
    multiply_code<TwoBit>(p);
  else
    multiply_code<Base3>(p);
}

}  // namespace
}  // namespace bitnet::quant::kernels
