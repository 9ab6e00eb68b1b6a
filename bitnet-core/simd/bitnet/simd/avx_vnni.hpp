#pragma once
// Vocabulary of AVX-VNNI: AVX2's source; -mavxvnni turns its byte products into one instruction.
#include "bitnet/simd/avx2.hpp"
