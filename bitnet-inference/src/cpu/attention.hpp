#pragma once
// Causal attention over the paged KV cache, on the CPU.
#include <vector>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/execution.hpp"
#include "bitnet/core/f32_kernels.hpp"

namespace bitnet::inference::cpu {

/// Backend::attention on host memory. Each (row, head) reduces over its keys in ascending order with the
/// 16-lane kernels, so its result depends on nothing but its own sequence. `scores` is scratch that grows to
/// threads × keys and then stays.
void attention(const ExecutionContext& context, const F32Kernels& kernels, const AttentionArgs& args,
               std::vector<float>& scores);

}  // namespace bitnet::inference::cpu
