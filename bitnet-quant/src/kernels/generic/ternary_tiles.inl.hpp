#pragma once
// Ternary products on matrix tiles (tiles.inl.hpp): panels are the codes trit + 1, decoded as panel.inl.hpp
// does. Included by ternary_table.cpp and a test only.
#include "kernels/generic/panel.inl.hpp"
#include "kernels/generic/tiles.inl.hpp"

namespace bitnet::quant::kernels {
namespace {

static_assert(kBlockOutputs == kTileRows && kStepBytes == kLineBytes);

template <class T, class C>
void multiply_ternary_tiles(const TernaryProduct& p) {
  multiply_tiles<T, 1, C::kFields>(p, [&](std::int64_t tile, std::int64_t line, std::int64_t lines,
                                          std::uint8_t* to, std::int64_t step_bytes) {
    decode_tile<I8, C>(p.tiles + (tile * p.lines + line) * kLineBytes, lines, to, step_bytes);
  });
}

}  // namespace
}  // namespace bitnet::quant::kernels
