#pragma once
// What a memory resource tells of itself: bytes in use and held, counts by size class, live blocks, samples
// over time, and what trimming gave back. Plain values; who fills them is hybrid_memory_pool.hpp.
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace bitnet {

inline constexpr std::size_t kNoMemoryLimit = std::numeric_limits<std::size_t>::max();

/// How much a pool writes down. Each level keeps what those before it keep.
enum class TrackingLevel : std::uint8_t {
  kNone,      ///< what limits need: bytes held; counts by size class
  kBasic,     ///< bytes asked for in total, the peak of bytes in use (to 64 KiB a thread)
  kStandard,  ///< use by tag, every live block with its tag and time, the peak exactly, samples over time
  kDetailed,  ///< the stack trace of every live block
};

/// "none", "basic", "standard", "detailed".
std::string_view to_string(TrackingLevel level) noexcept;
/// The reverse; Error(kInvalidArgument) lists the names.
TrackingLevel parse_tracking_level(std::string_view name);

/// Blocks of one size; the last class of a pool's list, with block_bytes 0, counts its large blocks.
struct SizeClassStats {
  std::size_t block_bytes = 0;
  std::uint64_t allocations = 0;  ///< since the pool was made
  std::uint64_t live = 0;
};

/// From kStandard on.
struct TagStats {
  std::string tag;
  std::uint64_t allocations = 0;
  std::size_t used = 0, peak = 0;  ///< bytes asked for
};

/// From kStandard on, at most 1024, from the pool's making on; farther apart the longer it lives.
struct MemorySample {
  double seconds = 0;  ///< since the pool was made
  std::size_t used = 0, held = 0;
  std::uint64_t allocations = 0;
};

/// From kStandard on.
struct LiveBlock {
  const void* address = nullptr;
  std::size_t bytes = 0;  ///< asked for
  std::string tag;
  double seconds = 0;              ///< when, since the pool was made
  std::vector<std::string> stack;  ///< at kDetailed; innermost call first; names where exported
};

struct MemoryStats {
  std::string name;
  std::size_t used = 0;  ///< bytes of live blocks, each as large as its class or its pages
  std::size_t held = 0;  ///< bytes that blocks and caches occupy: what the limit counts; used ≤ held
  std::size_t limit = kNoMemoryLimit;
  std::size_t peak_used = 0;          ///< from kBasic on
  std::size_t peak_held = 0;          ///< free large blocks that waited for a request of their size included
  std::size_t bookkeeping = 0;        ///< bytes of the pool's own tables and thread caches, not of tracking
  std::size_t small_bookkeeping = 0;  ///< of those, what serves small blocks
  std::uint64_t allocations = 0, frees = 0;  ///< since the pool was made
  std::uint64_t refusals = 0;                ///< allocations that failed for want of memory
  std::uint64_t damaged = 0;                 ///< free blocks that were found written to
  /// Of all allocations so far, from kBasic on: what was asked for, and the blocks given. The rest of each
  /// block, internal fragmentation, is 1 − asked / given.
  std::uint64_t small_asked = 0, small_given = 0, large_asked = 0, large_given = 0;
  /// Free bytes beside blocks, and the largest free piece of them: external fragmentation is 1 − largest /
  /// free.
  std::size_t free_bytes = 0, largest_free = 0;
  std::vector<SizeClassStats> size_classes;  ///< those that were ever used
};

/// What MemoryResource::trim() did.
struct TrimReport {
  std::size_t offered = 0;   ///< bytes of free blocks that the system was told it may take
  std::size_t returned = 0;  ///< bytes by which the resident memory shrank, from /proc/self/smaps
};

}  // namespace bitnet
