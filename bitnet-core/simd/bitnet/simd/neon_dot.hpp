#pragma once
// Vocabulary of NEON with the dot-product instructions: NEON's source; +dotprod turns its byte products into
// one instruction.
#include "bitnet/simd/neon.hpp"
