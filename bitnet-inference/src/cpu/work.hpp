#pragma once
// How the CPU backend cuts work over threads: into parts with scratch of their own, and not at all when the
// work is smaller than a hand-over to another thread.
#include <algorithm>
#include <cstddef>

#include "bitnet/core/execution.hpp"

namespace bitnet::inference::cpu {

/// Elements that one part should touch at least: some 5 µs, several times a hand-over between threads
/// (docs/decisions/0011-spinning-threads.md).
inline constexpr std::size_t kElementsPerPart = 64 * 1024;

/// Parts for `items` of `elements` each: between 1 and threads, and no more than items.
inline std::size_t count_parts(const ExecutionContext& context, std::size_t items, std::size_t elements) {
  const std::size_t by_work = items * std::max<std::size_t>(elements, 1) / kElementsPerPart;
  return std::clamp<std::size_t>(by_work, 1, std::max<std::size_t>(1, std::min(context.threads(), items)));
}

/// Calls body(part, begin, end) for each of n_parts near-equal ranges that cover [0, items).
template <class Body>
void for_parts(const ExecutionContext& context, std::size_t items, std::size_t n_parts, Body&& body) {
  context.parallel_for(n_parts, 1, [&](std::size_t first, std::size_t last) {
    for (std::size_t p = first; p < last; ++p) body(p, p * items / n_parts, (p + 1) * items / n_parts);
  });
}

}  // namespace bitnet::inference::cpu
