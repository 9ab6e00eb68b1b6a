#pragma once
// Memory for prepared weights, on huge pages where Linux gives them: a product with one row reads all weights
// of a model in order, and with pages of 4 KB a tenth of the bandwidth goes to translating addresses.
#include <cstddef>
#include <cstdint>
#include <memory>

#include "bitnet/core/execution.hpp"

namespace bitnet::quant {

/// Uninitialised bytes of the context's memory pool, aligned to 64. Weights that are prepared one after
/// another lie one after another: several matrices share a block of 32 MB, which goes back with the last of
/// them. Throws what HybridMemoryPool::allocate throws. Thread-safe.
std::shared_ptr<std::uint8_t> allocate_tiles(const ExecutionContext& context, std::size_t bytes);

}  // namespace bitnet::quant
