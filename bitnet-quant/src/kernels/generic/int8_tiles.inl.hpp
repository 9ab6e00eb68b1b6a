#pragma once
// int8 × int8 products on matrix tiles (tiles.inl.hpp). A line of weights is a step of a panel already; only
// its sign bits are flipped, which adds 128 and makes the bytes unsigned, as the tiles' product wants them.
// Included by int8_table.cpp and a test only.
#include "kernels/generic/tiles.inl.hpp"

namespace bitnet::quant::kernels {
namespace {

static_assert(kBlockOutputs == kInt8TileRows && kStepBytes == kInt8LineBytes && kInt8LineColumns == 4);

/// How far ahead of its use a line is fetched, in bytes: from two streams (two tiles).
constexpr std::int64_t kTilePrefetch = 4096;

template <class T>
void multiply_int8_tiles(const Int8Product& p) {
  multiply_tiles<T, 128, 1>(p, [&](std::int64_t tile, std::int64_t line, std::int64_t lines, std::uint8_t* to,
                                   std::int64_t step_bytes) {
    const std::int8_t* from = p.tiles + (tile * p.lines + line) * kInt8LineBytes;
    for (std::int64_t l = 0; l < lines; ++l, from += kInt8LineBytes, to += step_bytes) {
      typedef std::uint8_t Line __attribute__((vector_size(kInt8LineBytes)));
      __builtin_prefetch(from + kTilePrefetch);
      Line bytes;
      __builtin_memcpy(&bytes, from, sizeof bytes);
      bytes ^= 0x80;
      __builtin_memcpy(to, &bytes, sizeof bytes);
    }
  });
}

}  // namespace
}  // namespace bitnet::quant::kernels
