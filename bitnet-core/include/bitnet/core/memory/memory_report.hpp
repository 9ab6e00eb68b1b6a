#pragma once
// What a pool has counted, for people: a text for a terminal, a page with charts. The numbers themselves are
// in memory_stats.hpp. Thread-safe: while other threads allocate, figures of one text are not all of the same
// moment.
#include <cstddef>
#include <string>

namespace bitnet {

class HybridMemoryPool;
class MemoryResource;

/// Totals, fragmentation, a histogram of sizes, tags, use and rate over time, as lines of at most 100
/// columns. Parts that the tracking level of a HybridMemoryPool does not keep, or that other resources lack,
/// are left out or say so.
std::string memory_text(const MemoryResource& resource);

/// What is live in a pool whose users have all gone: "nothing is left …", or bytes and blocks by tag, and at
/// kDetailed the largest blocks with their stacks.
std::string leak_text(const HybridMemoryPool& pool);

/// One HTML file: the same as tables, bytes in use and held over time, allocations a second, bytes by tag and
/// by size, and the `most_blocks` largest live blocks with their stacks. Parts that the pool's tracking level
/// does not keep say so.
std::string memory_page(const HybridMemoryPool& pool, std::size_t most_blocks = 50);

}  // namespace bitnet
