// Links BitNet::benchmarks: its first shape makes weights of that shape.
#include <bitnet/benchmarks/workloads.hpp>

#include <cstdio>

int main() {
  const auto& shape = bitnet::benchmarks::linear_shapes().front();
  const auto weights = bitnet::benchmarks::random_weights(shape, 1);
  std::printf("%zu trits\n", weights.trits.size());
  return static_cast<std::int64_t>(weights.trits.size()) == shape.out * shape.in ? 0 : 1;
}
