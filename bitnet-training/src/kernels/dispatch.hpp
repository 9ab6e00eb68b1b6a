#pragma once
// The table of training kernels for an ISA.
#include "bitnet/core/isa.hpp"
#include "kernels/train_kernels.hpp"

namespace bitnet::training {

/// `isa` must be supported by this CPU.
const TrainKernels& train_kernels(Isa isa) noexcept;

}  // namespace bitnet::training
