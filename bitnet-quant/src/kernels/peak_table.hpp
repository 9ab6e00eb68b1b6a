#pragma once
// The boundary between peak.cpp and the ISA objects of peak_table.cpp: loops that do nothing but arithmetic
// in registers. Plain data only, as for all ISA tables.
#include <cstddef>
#include <cstdint>

#include "bitnet/core/isa.hpp"

namespace bitnet::quant {

/// One arithmetic loop. A round is `operations` multiplications and additions (a multiply-add is two).
struct PeakLoop {
  double operations;
  /// run(n) = n · first modulo 2^32 (f32: while n ≤ 100), which depends on every round.
  std::int32_t first;
  std::int32_t (*run)(std::size_t rounds) noexcept;
};

struct PeakKernels {
  const char* isa;
  PeakLoop int8;  ///< u8 codes ≤ 2 × int8, exact; 16-bit sums are widened as the ternary kernels widen them
  PeakLoop f32;   ///< multiply-add in f32
};

/// The table of `isa`, which must be supported by this CPU.
const PeakKernels& peak_kernels(Isa isa) noexcept;

}  // namespace bitnet::quant
