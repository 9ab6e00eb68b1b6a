// Two parts of a parallel_for() write one variable: ThreadSanitizer must report it in spite of the
// suppressions.
#include <cstdio>

#include "bitnet/core/execution.hpp"

int main() {
  const bitnet::ExecutionContext context({.threads = 4, .isa = {}});
  long sum = 0;
  for (int round = 0; round < 300; ++round) {
    context.parallel_for(1000, 10, [&](std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) sum += static_cast<long>(i);
    });
  }
  std::printf("%ld\n", sum);
  return 0;
}
