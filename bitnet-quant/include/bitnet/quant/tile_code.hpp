#pragma once
// The two codes of a BitLinear's tiles. How they lie in bytes is described in src/kernels/ternary_table.hpp.
// No std types and no functions: the kernels of each instruction set include this. A plain value.
#include <cstdint>

namespace bitnet::quant {

/// How many trits share a byte. Products are the same integers with either.
enum class TileCode : std::uint8_t {
  kTwoBit,  ///< four, two bits each
  kBase3,   ///< five, as digits of base 3: 1.6 bits a weight, more arithmetic
};

}  // namespace bitnet::quant
