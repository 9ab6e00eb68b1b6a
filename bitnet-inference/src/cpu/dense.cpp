#include "cpu/dense.hpp"

#include <algorithm>
#include <cstring>

#include "cpu/work.hpp"

namespace bitnet::inference::cpu {
namespace {

/// Rows of x that share one widened row of the matrix: 16 rows of 2560 floats stay in L2.
constexpr std::int64_t kRowBlock = 16;

const std::uint16_t* as_u16(const std::byte* p) { return reinterpret_cast<const std::uint16_t*>(p); }
const float* as_f32(const std::byte* p) { return reinterpret_cast<const float*>(p); }

}  // namespace

DenseWeights::DenseWeights(const LinearWeights& w)
    : PreparedWeights(w.out, w.in, false, w.dense.size()),
      type_(w.dense_type),
      row_bytes_(static_cast<std::size_t>(w.in) * bits_of(w.dense_type) / 8),
      data_(w.dense.size()) {
  std::memcpy(data_.data(), w.dense.data(), w.dense.size());
}

std::size_t DenseWeights::scratch_size(const ExecutionContext& context) const {
  return static_cast<std::size_t>(in()) * context.threads();
}

float DenseWeights::dot(const F32Kernels& kernels, std::int64_t index, const float* x) const {
  const auto n = static_cast<std::size_t>(in());
  switch (type_) {
    case DType::kF16:
      return kernels.dot_f16(as_u16(at(index)), x, n);
    case DType::kBF16:
      return kernels.dot_bf16(as_u16(at(index)), x, n);
    default:
      return kernels.dot(as_f32(at(index)), x, n);
  }
}

void DenseWeights::row(const F32Kernels& kernels, std::int64_t index, float* to) const {
  const auto n = static_cast<std::size_t>(in());
  switch (type_) {
    case DType::kF16:
      kernels.f16_to_f32(as_u16(at(index)), to, n);
      return;
    case DType::kBF16:
      kernels.bf16_to_f32(as_u16(at(index)), to, n);
      return;
    default:
      std::memcpy(to, at(index), n * sizeof(float));
  }
}

void DenseWeights::multiply(const ExecutionContext& context, const F32Kernels& kernels, const float* x,
                            const std::int32_t* rows, std::int64_t n_rows, float* y,
                            std::span<float> scratch) const {
  const auto n = static_cast<std::size_t>(in());
  const auto x_row = [&](std::int64_t i) { return x + (rows != nullptr ? rows[i] : i) * in(); };
  const std::size_t items = static_cast<std::size_t>(out());
  const std::size_t parts = count_parts(context, items, n * static_cast<std::size_t>(n_rows));
  for_parts(context, items, parts, [&](std::size_t part, std::size_t begin, std::size_t end) {
    float* const widened = scratch.data() + part * n;
    for (std::int64_t first = 0; first < n_rows; first += kRowBlock) {
      const std::int64_t last = std::min(n_rows, first + kRowBlock);
      for (auto o = static_cast<std::int64_t>(begin); o < static_cast<std::int64_t>(end); ++o) {
        if (last - first == 1) {
          y[first * out() + o] = dot(kernels, o, x_row(first));
          continue;
        }
        // dot_f16(w, x) is dot(widened w, x) to the bit, so widening once for all rows changes nothing.
        row(kernels, o, widened);
        for (std::int64_t i = first; i < last; ++i) y[i * out() + o] = kernels.dot(widened, x_row(i), n);
      }
    }
  });
}

}  // namespace bitnet::inference::cpu
