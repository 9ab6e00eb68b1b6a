#pragma once
// The float, attention and tensor kernels of an instruction set against plain loops, once before a process
// uses them. Integers and conversions are compared exactly, floats bit for bit with the order of
// docs/numerics.md, with or without fused multiply-adds, whichever the table's axpy has; exponentials within
// their bounds.
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "bitnet/core/attention_kernels.hpp"
#include "bitnet/core/f32_kernels.hpp"

namespace bitnet {

struct TensorKernels;

/// Every kernel, with ragged sizes; some 100 µs. Throws Error(kDevice) naming the kernel, what it gave where,
/// what is right, and how to go on without it.
void self_test(const F32Kernels& kernels);
/// The same. `floats` of the same instruction set has passed: exponentials are taken from it.
void self_test(const AttentionKernels& kernels, const F32Kernels& floats);
/// The same. `floats` of the same instruction set says whether multiply-adds are fused.
void self_test(const TensorKernels& kernels, const F32Kernels& floats);

namespace kernel_test {

/// The multiply-add of one class: rounded once or twice.
struct MultiplyAdd {
  bool fused;
  float operator()(float a, float b, float c) const;
};
/// That of a table; throws like self_test() if axpy is neither.
MultiplyAdd multiply_add_of(const F32Kernels& kernels);

/// step(lane[i mod 16], i) for i < n, then the lanes' fold with +: the definition of every sum.
template <class Step>
float sixteen_lanes(std::size_t n, Step&& step) {
  float lane[16] = {};
  for (std::size_t i = 0; i < n; ++i) lane[i % 16] = step(lane[i % 16], i);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

/// Uniform in [−1, 1).
std::vector<float> random_floats(std::size_t n, std::uint64_t seed);

/// Throw if any element differs, in bits (NaNs are equal).
void compare(const char* isa, const char* kernel, std::span<const float> got,
             std::span<const float> expected);
void compare(const char* isa, const char* kernel, std::span<const std::int32_t> got,
             std::span<const std::int32_t> expected);
inline void compare(const char* isa, const char* kernel, float got, float expected) {
  compare(isa, kernel, {&got, 1}, {&expected, 1});
}

}  // namespace kernel_test
}  // namespace bitnet
