#pragma once
// Vocabulary of SSE4.1. Its floats are the baseline's.
#include <immintrin.h>

#include "bitnet/simd/scalar.hpp"
