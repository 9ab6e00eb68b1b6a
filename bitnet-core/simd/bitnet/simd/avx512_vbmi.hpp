#pragma once
// Vocabulary of AVX-512 with VNNI and VBMI: AVX512-VNNI's source; -mavx512vbmi adds the byte look-ups that
// decode five trits a byte (Base3Lookup).
#include "bitnet/simd/avx512_vnni.hpp"
