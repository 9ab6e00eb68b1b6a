// Collects the per-ISA tables of train_kernels.cpp in the order of simd/isa.def.
#include "kernels/dispatch.hpp"

namespace bitnet::training {

#define BITNET_ISA_ROW(name, supported) \
  namespace name {                      \
  extern const TrainKernels kKernels;   \
  }
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW

const TrainKernels& train_kernels(Isa isa) noexcept {
#define BITNET_ISA_ROW(name, supported) &name::kKernels,
  static constexpr const TrainKernels* kTables[] = {
#include "bitnet/simd/isa.def"
  };
#undef BITNET_ISA_ROW
  return *kTables[isa.index];
}

}  // namespace bitnet::training
