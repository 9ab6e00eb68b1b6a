#pragma once
// What the products of tune.cpp have to give, written as docs/numerics.md defines them: plain loops on the
// host, which share nothing with the kernels. Pure functions.
#include <cstdint>
#include <span>
#include <vector>

#include "bitnet/core/execution.hpp"

namespace bitnet::gpu {

/// A matrix [out, in] of one of the three kinds, and rows to multiply with it.
struct TuneProblem {
  std::int64_t out = 0, in = 0, rows = 0;
  std::vector<std::int8_t> trits;     // [out, in], of a ternary linear
  float scale = 1;                    // of all its rows
  std::vector<std::uint16_t> halves;  // [out, in] of f16, of a dense linear
  std::vector<float> floats;          // [out, in], of a head that is rounded to int8
  std::vector<float> x;               // [rows, in]
};

/// y = x · wᵀ, [rows, out], of whichever matrix the problem has.
std::vector<float> reference_product(const ExecutionContext& context, const TuneProblem& problem);

}  // namespace bitnet::gpu
