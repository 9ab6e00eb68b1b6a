// Float weights (f32, f16, bf16) of dense linears, and of embeddings and heads that are kept as given.
// Ternary ones are quant::BitLinear.
#include "cpu/dense.hpp"

#include <algorithm>
#include <cstring>

#include "cpu/work.hpp"

namespace bitnet::inference::cpu {
namespace {

/// Rows of x a pass over the matrix: 16 rows of 2560 floats stay in L2.
constexpr std::int64_t kRowBlock = 16;

const std::uint16_t* as_u16(const std::byte* p) { return reinterpret_cast<const std::uint16_t*>(p); }
const float* as_f32(const std::byte* p) { return reinterpret_cast<const float*>(p); }

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
    : PreparedWeights(w.out, w.in, false, static_cast<std::size_t>(w.out) * w.dense_row_bytes()),
      type_(w.dense_type),
      row_bytes_(w.dense_row_bytes()),
      data_(bytes()) {
  const auto rows = static_cast<std::size_t>(w.out);
  const std::size_t parts = count_parts(context, rows, static_cast<std::size_t>(w.in));
  for_parts(context, rows, parts, [&](std::size_t, std::size_t begin, std::size_t end) {
    if (w.dense_rows != nullptr) {
      const auto first = static_cast<std::int64_t>(begin);
      w.dense_rows(first, static_cast<std::int64_t>(end), data_.data() + begin * row_bytes_);
    } else {
      std::memcpy(data_.data() + begin * row_bytes_, w.dense.data() + begin * row_bytes_,
                  (end - begin) * row_bytes_);
    }
  });
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
