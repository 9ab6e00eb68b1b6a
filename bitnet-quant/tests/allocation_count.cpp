// Counts every allocation of the test executable (in a file of its own, so that nothing of it is inlined).
#include <atomic>
#include <cstdlib>
#include <new>

#include "quant_support.hpp"

namespace {
std::atomic<long> count{0};
}

void* operator new(std::size_t bytes) {
  ++count;
  if (void* p = std::malloc(bytes)) return p;
  throw std::bad_alloc();
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }

namespace bitnet::quant::test {
long allocations() { return count; }
}  // namespace bitnet::quant::test
