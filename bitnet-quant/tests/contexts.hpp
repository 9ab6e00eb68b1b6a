#pragma once
// Contexts of one, two and three threads, made once, for tests that want the same bits of each.
#include <cstddef>

#include "bitnet/core/execution.hpp"

namespace bitnet::quant::test {

/// That of `threads` threads (1, 2 or 3).
inline const ExecutionContext& context(std::size_t threads = 2) {
  const auto make = [](std::size_t n) {
    ExecutionContext::Options options;
    options.threads = n;
    return ExecutionContext(options);
  };
  static const ExecutionContext one = make(1), two = make(2), three = make(3);
  return threads == 1 ? one : threads == 2 ? two : three;
}

}  // namespace bitnet::quant::test
