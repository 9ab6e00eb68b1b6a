#pragma once
// Where a pass's results that the host reads (logits) lie: in the host's memory pool, where the backend has
// one. What the passes themselves use are the backend's buffers (workspace.hpp).
#include <memory_resource>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"

namespace bitnet::inference {

/// A container's memory from the backend's host pool with a tag, from the heap where it has none. The backend
/// must outlive it.
class PoolValues {
 public:
  PoolValues(const Backend& backend, MemoryTag tag) {
    if (auto* pool = dynamic_cast<HybridMemoryPool*>(backend.memory()))
      pool_ = std::make_unique<PmrResource>(*pool, tag);
  }
  std::pmr::memory_resource* resource() const noexcept {
    return pool_ == nullptr ? std::pmr::get_default_resource() : pool_.get();
  }

 private:
  std::unique_ptr<PmrResource> pool_;
};

}  // namespace bitnet::inference
