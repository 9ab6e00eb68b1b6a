// Chooses between the ISA objects made of attention_table.cpp. The algorithms
// are in generic/attention*.inl.hpp.
#include "bitnet/core/attention_kernels.hpp"

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

}  // namespace bitnet
