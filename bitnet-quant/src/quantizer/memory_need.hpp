#pragma once
// What quantising takes of memory, derived from what the methods allocate. Private to bitnet-quant.
#include <cstddef>
#include <cstdint>

#include "bitnet/quant/quant_config.hpp"

namespace bitnet::quant {

/// Bytes of one linear beside its Hessian and its factor.
struct LinearNeed {
  std::uint64_t peak = 0;    ///< while it is worked on, the result with it
  std::uint64_t result = 0;  ///< until its layer is given out
};

/// A linear [out, in]. `calibrated`: there is a Hessian, with which errors of outputs are measured, too.
LinearNeed need_of(const LinearPlan& plan, std::int64_t out, std::int64_t in, bool calibrated,
                   std::size_t threads);

/// Of gptq's factor while it is made: H as doubles, the factor as f32, a panel of 64 columns of doubles, and
/// Eigen's copies of blocks for products, which it makes as large as caches.
constexpr std::uint64_t making_factor_bytes(std::int64_t in) {
  return static_cast<std::uint64_t>(12 * in * in + 512 * in + (4 << 20));
}
/// And afterwards.
constexpr std::uint64_t factor_bytes(std::int64_t in) { return 4 * static_cast<std::uint64_t>(in * in); }

}  // namespace bitnet::quant
