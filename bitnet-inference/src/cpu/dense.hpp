#pragma once
// Dense matrices (f32, f16, bf16) in their own type or as f16: rows for embed(), products for linears and
// heads. Heads and embeddings rounded to int8 are int8_weights.hpp.
#include <cstdint>
#include <memory>

#include "bitnet/core/device/backend.hpp"
#include "bitnet/core/execution.hpp"
#include "bitnet/core/f32_kernels.hpp"
#include "cpu/memory.hpp"

namespace bitnet::inference::cpu {

/// to[n] = from[n] of `type` (kF32, kF16, kBF16) as f32, exact.
void widen(const F32Kernels& kernels, DType type, const std::byte* from, float* to, std::size_t n);

/// A dense [out, in] matrix. Every product is one 16-lane dot() of a row of the matrix, whatever the number
/// of rows of the other operand, so results do not depend on the batch.
class DenseWeights final : public PreparedWeights {
 public:
  /// Copies the rows on the threads of `context`, or rounds them (DenseForm::kF16). Throws
  /// Error(kUnsupported) on a finite weight beyond f16.
  DenseWeights(const ExecutionContext& context, const LinearWeights& weights);

  /// y[i, out] = x[rows[i]] · Wᵀ; `rows` null: i itself.
  void multiply(const ExecutionContext& context, const F32Kernels& kernels, const float* x,
                const std::int32_t* rows, std::int64_t n_rows, float* y) const;
  /// Row `index`, widened to f32.
  void row(const F32Kernels& kernels, std::int64_t index, float* to) const {
    widen(kernels, type_, at(index), to, static_cast<std::size_t>(in()));
  }

 private:
  void copy_rows(const LinearWeights& w, std::int64_t begin, std::int64_t end);
  void round_rows(const ExecutionContext& context, const LinearWeights& w, std::int64_t begin,
                  std::int64_t end);
  const std::byte* at(std::int64_t index) const noexcept {
    return data_.data() + static_cast<std::size_t>(index) * row_bytes_;
  }

  DType type_;
  std::size_t row_bytes_;
  HostBuffer data_;
};

}  // namespace bitnet::inference::cpu
