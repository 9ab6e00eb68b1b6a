#pragma once
// The two classes of instruction sets whose float results are bit-equal within the class (docs/numerics.md),
// told apart by what they compute, not by a list of names.
#include "bitnet/core/f32_kernels.hpp"

namespace bitnet::testing {

/// True if the table's multiply-add rounds once: (1 + 2^-12)² − (1 + 2^-11) is 2^-24 then, 0 otherwise.
inline bool is_fused(const F32Kernels& k) {
  const float x = 1 + 0x1p-12f;
  float y = -(1 + 0x1p-11f);
  k.axpy(x, &x, &y, 1);
  return y != 0;
}

}  // namespace bitnet::testing
