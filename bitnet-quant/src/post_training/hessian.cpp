// XᵀX in f32 over blocks of rows, added up in double.
#include "bitnet/quant/hessian.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bitnet/core/error.hpp"
#include "bitnet/core/f32_kernels.hpp"

namespace bitnet::quant {
namespace {

constexpr std::int64_t kStrip = 256;  // columns of the product at a time: in · 1 KiB of floats

}  // namespace

Hessian::Hessian(std::int64_t in) : in_(in) {
  if (in < 1 || in > (std::int64_t{1} << 20))
    throw Error(ErrorCode::kInvalidArgument, fmt::format("a Hessian of {} inputs: expected 1 … 2^20", in));
  try {
    values_.resize(static_cast<std::size_t>(in * in));
  } catch (const std::bad_alloc&) {
    throw_out_of_memory(fmt::format("a Hessian of {} inputs", in));
  }
}

void Hessian::add(const ExecutionContext& context, std::span<const float> x) {
  if (x.size() % static_cast<std::size_t>(in_) != 0)
    throw Error(ErrorCode::kInvalidArgument, fmt::format("{} activations for {} inputs", x.size(), in_));
  const auto bad = std::find_if(x.begin(), x.end(), [](float v) { return !std::isfinite(v); });
  if (bad != x.end())
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("calibration: the activation in row {}, column {} is {}, not finite",
                            n_rows_ + (bad - x.begin()) / in_, (bad - x.begin()) % in_, *bad));
  const auto rows = static_cast<std::int64_t>(x.size()) / in_;
  std::vector<float> strip(static_cast<std::size_t>(in_ * std::min(kStrip, in_)));
  for (std::int64_t r = 0; r < rows; r += kBlockRows) {
    const std::int64_t n = std::min(kBlockRows, rows - r);
    const float* const block = x.data() + r * in_;
    for (std::int64_t c = 0; c < in_; c += kStrip) {
      const std::int64_t width = std::min(kStrip, in_ - c);
      gemm(context, in_, width, n, block, 1, in_, block + c, in_, 1, strip.data(), width, false);
      context.parallel_for(static_cast<std::size_t>(in_), 16, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i)
          for (std::int64_t j = 0; j < width; ++j)
            values_[i * static_cast<std::size_t>(in_) + static_cast<std::size_t>(c + j)] +=
                static_cast<double>(strip[i * static_cast<std::size_t>(width) + static_cast<std::size_t>(j)]);
      });
    }
  }
  n_rows_ += rows;
}

}  // namespace bitnet::quant
