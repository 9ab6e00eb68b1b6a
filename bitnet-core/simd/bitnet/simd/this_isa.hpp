#pragma once
// For sources that are compiled once per instruction set with -DBITNET_ISA=<name> (cmake/BitNetIsa.cmake):
// the vocabulary of that name, and BITNET_STR(BITNET_ISA), the name as a string.
#define BITNET_STR2(x) #x
#define BITNET_STR(x) BITNET_STR2(x)
// clang-format off
#define BITNET_SIMD_HEADER BITNET_STR(bitnet/simd/BITNET_ISA.hpp)
// clang-format on
#include BITNET_SIMD_HEADER
