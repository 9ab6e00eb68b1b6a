// Blocks on huge pages, handed out from the front. Pages that nobody touched cost nothing.
#include "tile_memory.hpp"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "bitnet/core/memory/memory_handle.hpp"

namespace bitnet::quant {
namespace {

constexpr std::size_t kSharedBlock = std::size_t{32} << 20;  // a multiple of a huge page

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

/// A block of a pool and how much of it is in use.
class TileBlock {
 public:
  TileBlock(std::shared_ptr<HybridMemoryPool> pool, std::size_t bytes)
      : pool_(std::move(pool)),
        block_(*pool_, bytes, kMaxAlignment, "weights"),
        begin_(static_cast<std::uint8_t*>(block_.data())) {}

  const HybridMemoryPool* pool() const noexcept { return pool_.get(); }
  /// Null if it has no room left.
  std::uint8_t* take(std::size_t bytes) noexcept {
    const std::size_t end = used_ + round_up(bytes, 64);
    if (end > block_.size()) return nullptr;
    return begin_ + std::exchange(used_, end);
  }

 private:
  std::shared_ptr<HybridMemoryPool> pool_;  // outlives the block
  MemoryBlock block_;
  std::uint8_t* begin_;
  std::size_t used_ = 0;
};

}  // namespace

std::shared_ptr<std::uint8_t> allocate_tiles(const ExecutionContext& context, std::size_t bytes) {
  static std::mutex mutex;
  static std::vector<std::weak_ptr<TileBlock>> open;  // of each pool the last, while somebody uses it
  const std::shared_ptr<HybridMemoryPool>& pool = context.memory();
  if (bytes > kSharedBlock / 2) {
    const auto own = std::make_shared<TileBlock>(pool, round_up(bytes, 64));
    return {own, own->take(bytes)};
  }
  const std::lock_guard lock(mutex);
  std::erase_if(open, [](const auto& b) { return b.expired(); });
  const auto of_pool = [&](const auto& b) {
    const auto block = b.lock();
    return block != nullptr && block->pool() == pool.get();
  };
  const auto found = std::find_if(open.begin(), open.end(), of_pool);
  std::shared_ptr<TileBlock> block = found == open.end() ? nullptr : found->lock();
  std::uint8_t* p = block == nullptr ? nullptr : block->take(bytes);
  if (p == nullptr) {
    block = std::make_shared<TileBlock>(pool, kSharedBlock);
    p = block->take(bytes);
    if (found == open.end()) {
      open.push_back(block);
    } else {
      *found = block;
    }
  }
  return {block, p};
}

}  // namespace bitnet::quant
