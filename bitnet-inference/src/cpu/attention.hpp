#pragma once
// Causal attention over the paged KV cache, on the CPU.
#include <cstdint>
#include <memory_resource>
#include <vector>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/execution.hpp"

namespace bitnet::inference::cpu {

/// Some query rows of one KV head of one sequence (of AttentionArgs::queried()):
/// row j is head j % group of token j / group.
struct AttentionItem {
  std::int32_t sequence, kv_head;
  std::int64_t begin, end;  // rows j
};

/// Memory that attention works in, kept between calls: its size depends on
/// threads, head_dim and the number of items, never on the length of the
/// context.
struct AttentionScratch {
  explicit AttentionScratch(std::pmr::memory_resource* memory) : floats(memory) {}
  /// n floats that begin a cache line.
  float* aligned(std::size_t n);
  std::pmr::vector<float> floats;
  std::vector<AttentionItem> items;
};

/// Backend::attention on host memory. A row's result depends on nothing but its
/// own sequence (docs/numerics.md, "Attention").
void attention(const ExecutionContext& context, const AttentionArgs& args, AttentionScratch& scratch);

}  // namespace bitnet::inference::cpu
