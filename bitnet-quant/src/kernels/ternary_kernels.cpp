// Chooses between the ISA objects made of ternary_table.cpp.
#include "kernels/ternary_table.hpp"

#define BITNET_ISA_ROW(name, supported)    \
  namespace bitnet::quant::kernels::name { \
  extern const TernaryKernels kKernels;    \
  }
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW

namespace bitnet::quant {

const TernaryKernels& ternary_kernels(Isa isa) noexcept {
  static constexpr const TernaryKernels* kTables[] = {
#define BITNET_ISA_ROW(name, supported) &kernels::name::kKernels,
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW
  };
  return *kTables[isa.index];
}

}  // namespace bitnet::quant
