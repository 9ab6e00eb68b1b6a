#pragma once
// Products with a Hessian, whose doubles are rounded to f32 a strip at a time. Private to bitnet-quant.
#include <cstdint>
#include <span>
#include <vector>

#include "bitnet/quant/hessian.hpp"

namespace bitnet::quant::post_training {

/// Rows [first, first + n) of H as f32.
std::vector<float> rows_of(const Hessian& hessian, std::int64_t first, std::int64_t n);

/// M · H for M [out, in], sums in f32; a strip of H of 1 KiB · in at a time.
std::vector<float> times_hessian(const ExecutionContext& context, std::span<const float> m, std::int64_t out,
                                 const Hessian& hessian, CancelFlag cancelled = nullptr);

}  // namespace bitnet::quant::post_training
