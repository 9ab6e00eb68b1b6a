#pragma once
// What the tests of the float kernels share: random rows, a hash of results, and the classes of ISAs that
// must agree.
#include <bit>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "bitnet/core/f32_kernels.hpp"
#include "bitnet/core/rng.hpp"
#include "bitnet/testing/isa_class.hpp"

namespace bitnet::test {

/// Uniform in [−1, 1).
inline std::vector<float> random_floats(std::size_t n, std::uint64_t seed) {
  Rng rng(seed);
  std::vector<float> v(n);
  for (float& x : v) x = static_cast<float>(2 * rng.uniform() - 1);
  return v;
}

/// FNV-1a over the bits of floats.
class Hash {
 public:
  void add(float f) { value_ = (value_ ^ std::bit_cast<std::uint32_t>(f)) * 0x100000001b3u; }
  void add(std::span<const float> s) {
    for (const float f : s) add(f);
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325u;
};

inline std::vector<const F32Kernels*> supported_tables() {
  std::vector<const F32Kernels*> tables;
  for (const Isa isa : compiled_isas())
    if (is_supported(isa)) tables.push_back(&f32_kernels(isa));
  return tables;
}

/// Neighbouring tables of the same class (fused or not).
inline std::vector<std::pair<const F32Kernels*, const F32Kernels*>> pairs_of_one_class() {
  std::vector<std::pair<const F32Kernels*, const F32Kernels*>> pairs;
  for (const bool fused : {false, true}) {
    const F32Kernels* previous = nullptr;
    for (const F32Kernels* table : supported_tables()) {
      if (testing::is_fused(*table) != fused) continue;
      if (previous != nullptr) pairs.emplace_back(previous, table);
      previous = table;
    }
  }
  return pairs;
}

}  // namespace bitnet::test
