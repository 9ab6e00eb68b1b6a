#pragma once
// Block sizes of the ternary file layouts, shared by packing.cpp (writes them) and unpacking.cpp (reads
// them). What the bytes mean: docs/formats/ternary-layouts.md. Private to bitnet-quant.
#include <array>
#include <cstddef>
#include <cstring>

namespace bitnet::quant::file_layout {

inline constexpr std::size_t kI2SBlock = 128, kI2STail = 32;  // the tail: the scale and 28 bytes of padding
inline constexpr std::size_t kTqBlock = 256, kTq1Bytes = 54, kTq2Bytes = 66;  // the last two: an f16 scale

/// A run of a TQ1_0 block's bytes: byte m holds elements first + m + count·n, n < digits.
struct Tq1Run {
  std::size_t first_byte, count, first, digits;
};
inline constexpr std::array<Tq1Run, 3> kTq1Runs{{{0, 32, 0, 5}, {32, 16, 160, 5}, {48, 4, 240, 4}}};

}  // namespace bitnet::quant::file_layout
