// Chooses between the ISA objects made of attention_table.cpp. The algorithms
// are in generic/attention*.inl.hpp.
#include "bitnet/core/attention_kernels.hpp"

#include "bitnet/core/self_test.hpp"
#include "kernels/self_test.hpp"

#define BITNET_ISA_ROW(name, supported)            \
  namespace bitnet::kernels::name {                \
  extern const AttentionKernels kAttentionKernels; \
  }
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW

namespace bitnet {
namespace {

constexpr const AttentionKernels* kTables[] = {
#define BITNET_ISA_ROW(name, supported) &kernels::name::kAttentionKernels,
#include "bitnet/simd/isa.def"
#undef BITNET_ISA_ROW
};

}  // namespace

const AttentionKernels& attention_kernels(Isa isa) noexcept { return *kTables[isa.index]; }

const AttentionKernels& tested_attention_kernels(Isa isa) {
  static PassedIsas passed;
  return passed.tested(isa, attention_kernels(isa),
                       [&](const AttentionKernels& k) { self_test(k, tested_f32_kernels(isa)); });
}

}  // namespace bitnet
