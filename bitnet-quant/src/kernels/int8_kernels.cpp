// Chooses between the ISA objects made of int8_table.cpp.
#include "kernels/int8_table.hpp"

#define BITNET_ISA_ROW(name, supported)    \
  namespace bitnet::quant::kernels::name { \
  extern const Int8Kernels kInt8Kernels;   \
  }
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW

namespace bitnet::quant {

const Int8Kernels& int8_kernels(Isa isa) noexcept {
  static constexpr const Int8Kernels* kTables[] = {
#define BITNET_ISA_ROW(name, supported) &kernels::name::kInt8Kernels,
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW
  };
  return *kTables[isa.index];
}

}  // namespace bitnet::quant
