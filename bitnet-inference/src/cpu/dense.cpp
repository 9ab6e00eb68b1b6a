// Float weights (f32, f16, bf16) of dense linears, and of embeddings and heads that are kept as given or as
// f16. Ternary ones are quant::BitLinear, int8 ones int8_weights.cpp.
#include "cpu/dense.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "bitnet/core/attention_kernels.hpp"
#include "bitnet/core/error.hpp"
#include "cpu/work.hpp"

namespace bitnet::inference::cpu {
namespace {

/// Rows of x a pass over the matrix: 16 rows of 2560 floats stay in L2.
constexpr std::int64_t kRowBlock = 16;

/// Values that a thread widens at a time on their way to f16: 256 KB.
constexpr std::int64_t kRoundedValues = 65536;

const std::uint16_t* as_u16(const std::byte* p) { return reinterpret_cast<const std::uint16_t*>(p); }
std::uint16_t* as_u16(std::byte* p) { return reinterpret_cast<std::uint16_t*>(p); }
const float* as_f32(const std::byte* p) { return reinterpret_cast<const float*>(p); }

DType kept_type(const LinearWeights& w) {
  return w.dense_form == DenseForm::kF16 ? DType::kF16 : w.dense_type;
}
std::size_t kept_row_bytes(const LinearWeights& w) {
  return static_cast<std::size_t>(w.in) * bits_of(kept_type(w)) / 8;
}

}  // namespace

void widen(const F32Kernels& kernels, DType type, const std::byte* from, float* to, std::size_t n) {
  switch (type) {
    case DType::kF16:
      kernels.f16_to_f32(as_u16(from), to, n);
      return;
    case DType::kBF16:
      kernels.bf16_to_f32(as_u16(from), to, n);
      return;
    default:
      std::memcpy(to, from, n * sizeof(float));
  }
}

DenseWeights::DenseWeights(const ExecutionContext& context, const LinearWeights& w)
    : PreparedWeights(w.out, w.in, false, static_cast<std::size_t>(w.out) * kept_row_bytes(w)),
      type_(kept_type(w)),
      row_bytes_(kept_row_bytes(w)),
      data_(bytes(), context.memory(), "weights") {
  const auto rows = static_cast<std::size_t>(w.out);
  const std::size_t parts = count_parts(context, rows, static_cast<std::size_t>(w.in));
  for_parts(context, rows, parts, [&](std::size_t, std::size_t begin, std::size_t end) {
    const auto first = static_cast<std::int64_t>(begin), last = static_cast<std::int64_t>(end);
    if (type_ == w.dense_type) {
      copy_rows(w, first, last);
    } else {
      round_rows(context, w, first, last);
    }
  });
}

void DenseWeights::copy_rows(const LinearWeights& w, std::int64_t begin, std::int64_t end) {
  std::byte* const to = data_.data() + static_cast<std::size_t>(begin) * row_bytes_;
  if (w.dense_rows != nullptr) return w.dense_rows(begin, end, to);
  std::memcpy(to, w.dense.data() + static_cast<std::size_t>(begin) * row_bytes_,
              static_cast<std::size_t>(end - begin) * row_bytes_);
}

void DenseWeights::round_rows(const ExecutionContext& context, const LinearWeights& w, std::int64_t begin,
                              std::int64_t end) {
  const F32Kernels& floats = f32_kernels(context.isa());
  const AttentionKernels& kernels = attention_kernels(context.isa());
  const std::int64_t step = std::max<std::int64_t>(1, kRoundedValues / w.in);
  std::vector<std::byte> scratch;
  std::vector<float> values(static_cast<std::size_t>(std::min(step, end - begin) * w.in));
  for (std::int64_t row = begin; row < end; row += step) {
    const std::int64_t last = std::min(end, row + step);
    const auto n = static_cast<std::size_t>((last - row) * w.in);
    std::uint16_t* const to = as_u16(data_.data() + static_cast<std::size_t>(row) * row_bytes_);
    widen(floats, w.dense_type, w.dense_of(row, last, scratch), values.data(), n);
    kernels.f32_to_f16(values.data(), to, n);
    for (std::size_t i = 0; i < n; ++i) {
      if ((to[i] & 0x7fffu) != 0x7c00u || !std::isfinite(values[i])) continue;
      const auto at = static_cast<std::int64_t>(i);
      throw Error(ErrorCode::kUnsupported,
                  fmt::format("the weight in row {}, column {} is {}, beyond f16's ±65504", row + at / w.in,
                              at % w.in, values[i]));
    }
  }
}

void DenseWeights::multiply(const ExecutionContext& context, const F32Kernels& kernels, const float* x,
                            const std::int32_t* rows, std::int64_t n_rows, float* y) const {
  const auto n = static_cast<std::size_t>(in());
  const std::size_t items = static_cast<std::size_t>(out());
  const std::size_t parts = count_parts(context, items, n * static_cast<std::size_t>(n_rows));
  for_parts(context, items, parts, [&](std::size_t, std::size_t begin, std::size_t end) {
    const std::byte* const w = at(static_cast<std::int64_t>(begin));
    const auto count = static_cast<std::int64_t>(end - begin);
    for (std::int64_t first = 0; first < n_rows; first += kRowBlock) {
      const std::int64_t block = std::min(kRowBlock, n_rows - first);
      const float* pointers[kRowBlock];
      for (std::int64_t i = 0; i < block; ++i)
        pointers[i] = x + (rows != nullptr ? rows[first + i] : first + i) * in();
      float* const to = y + first * out() + static_cast<std::int64_t>(begin);
      switch (type_) {
        case DType::kF16:
          kernels.dots_f16(pointers, block, as_u16(w), in(), count, n, to, out());
          break;
        case DType::kBF16:
          kernels.dots_bf16(pointers, block, as_u16(w), in(), count, n, to, out());
          break;
        default:
          kernels.dots(pointers, block, as_f32(w), in(), count, n, to, out());
      }
    }
  });
}

}  // namespace bitnet::inference::cpu
