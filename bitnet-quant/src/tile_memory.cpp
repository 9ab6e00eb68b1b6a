// Blocks on huge pages, handed out from the front; a matrix lies in the first that has room for it.
#include "tile_memory.hpp"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/memory/memory_handle.hpp"

namespace bitnet::quant {
namespace {

constexpr std::size_t kHugePage = std::size_t{2} << 20;
constexpr std::size_t kMostShared = 16 * kHugePage;

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

/// Of the next shared block: huge pages, an eighth of what the pool's blocks have already, so that no more
/// than that is unused.
constexpr std::size_t shared_bytes(std::size_t so_far) {
  return std::clamp(so_far / 8 / kHugePage * kHugePage, kHugePage, kMostShared);
}

/// A block of a pool and how much of it is in use.
class TileBlock {
 public:
  TileBlock(std::shared_ptr<HybridMemoryPool> pool, MemoryBlock block)
      : pool_(std::move(pool)), block_(std::move(block)), begin_(static_cast<std::uint8_t*>(block_.data())) {}

  const HybridMemoryPool* pool() const noexcept { return pool_.get(); }
  std::size_t size() const noexcept { return block_.size(); }
  /// Null if it has no room left, or its pool took everything back.
  std::uint8_t* take(std::size_t bytes) noexcept {
    const std::size_t end = used_ + round_up(bytes, 64);
    if (end > block_.size() || !block_.is_live()) return nullptr;
    return begin_ + std::exchange(used_, end);
  }

 private:
  std::shared_ptr<HybridMemoryPool> pool_;  // outlives the block
  MemoryBlock block_;
  std::uint8_t* begin_;
  std::size_t used_ = 0;
};

/// A block with room for `bytes`: one to share, or where the matrix is large or memory short, its own.
MemoryBlock make_block(HybridMemoryPool& pool, std::size_t bytes, std::size_t so_far) {
  std::size_t shared = shared_bytes(so_far);
  if (bytes > shared / 2) shared = bytes < kHugePage ? 2 * kHugePage : 0;  // else less than half would do
  const std::size_t capacity = pool.capacity();
  if (shared > 0 && shared <= capacity - std::min(capacity, pool.held())) {
    MemoryBlock block = MemoryBlock::try_make(pool, shared, kMaxAlignment, "weights");
    if (block) return block;
  }
  return {pool, round_up(bytes, 64), kMaxAlignment, "weights"};
}

}  // namespace

std::shared_ptr<std::uint8_t> allocate_tiles(const ExecutionContext& context, std::size_t bytes) {
  static std::mutex mutex;
  // Of all pools, while somebody uses them. Never destroyed: weights may be static themselves.
  static auto& blocks = *new std::vector<std::weak_ptr<TileBlock>>;
  const std::shared_ptr<HybridMemoryPool>& pool = context.memory();
  const std::lock_guard lock(mutex);
  std::erase_if(blocks, [](const auto& b) { return b.expired(); });
  std::size_t so_far = 0;
  for (const auto& weak : blocks) {
    const auto block = weak.lock();
    if (block == nullptr || block->pool() != pool.get()) continue;
    if (std::uint8_t* p = block->take(bytes); p != nullptr) return {block, p};
    so_far += block->size();
  }
  const auto block = std::make_shared<TileBlock>(pool, make_block(*pool, bytes, so_far));
  blocks.push_back(block);
  return {block, block->take(bytes)};
}

}  // namespace bitnet::quant
