#pragma once
// Memory for prepared weights, on huge pages where Linux gives them: a product with one row reads all weights
// of a model in order, and with pages of 4 KB a tenth of the bandwidth goes to translating addresses.
#include <cstddef>
#include <cstdint>
#include <memory>

#include "bitnet/core/execution.hpp"

namespace bitnet::quant {

/// Uninitialised bytes of the context's memory pool, aligned to 64. Matrices share blocks, which go back with
/// the last of them: of 2 MiB, later of an eighth of what is prepared, up to 32 MiB. A matrix that would take
/// more than half of such a block, or one that the pool has no room for, has one of its own size. Throws what
/// HybridMemoryPool::allocate throws. Thread-safe.
std::shared_ptr<std::uint8_t> allocate_tiles(const ExecutionContext& context, std::size_t bytes);

}  // namespace bitnet::quant
