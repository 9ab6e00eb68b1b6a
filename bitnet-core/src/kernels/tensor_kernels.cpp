// Chooses between the ISA objects made of tensor_table.cpp.
#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/self_test.hpp"
#include "kernels/self_test.hpp"
#include "kernels/tensor_table.hpp"

#define BITNET_ISA_ROW(name, supported)      \
  namespace bitnet::kernels::name {          \
  extern const TensorKernels kTensorKernels; \
  }
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW

namespace bitnet {
namespace {

constexpr const TensorKernels* kTables[] = {
#define BITNET_ISA_ROW(name, supported) &kernels::name::kTensorKernels,
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW
};

}  // namespace

const TensorKernels& tensor_kernels(Isa isa) noexcept { return *kTables[isa.index]; }

const TensorKernels& tested_tensor_kernels(Isa isa) {
  static PassedIsas passed;
  return passed.tested(isa, tensor_kernels(isa),
                       [&](const TensorKernels& k) { self_test(k, tested_f32_kernels(isa)); });
}

}  // namespace bitnet
