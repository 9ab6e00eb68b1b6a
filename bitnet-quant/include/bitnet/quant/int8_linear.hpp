#pragma once
// A dense matrix rounded to int8 with one scale a row: output heads, embeddings and int8 layers. Products
// with quantised rows are exact integers, scaled once. Ternary matrices are bit_linear.hpp.
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "bitnet/core/execution.hpp"
#include "bitnet/quant/bit_linear.hpp"

namespace bitnet::quant {

/// W [out, in] as int8 q and f32 scales: for each row m = max(max|w|, 1e-30), q = round_half_even(w ·
/// (127/m)), W ≈ q · (m/127), all in f32 (docs/numerics.md). Repacked in tiles of 16 rows, one layout for all
/// ISAs. Any out, and any in ≤ 131,072 (int32 sums). Immutable, thread-safe.
class Int8Linear {
 public:
  /// Writes rows [begin, end) of the matrix, one after the other, to `to`. Called for each row once, by
  /// several threads at a time.
  using RowSource = std::function<void(std::int64_t begin, std::int64_t end, float* to)>;

  /// Rounds and repacks on the threads of `context`, a few rows in memory at a time. Throws
  /// Error(kInvalidArgument) on a weight that is not finite (naming it) or an `in` over the bound,
  /// Error(kOutOfMemory), and what `rows` throws.
  Int8Linear(const ExecutionContext& context, std::int64_t out, std::int64_t in, const RowSource& rows);
  /// The same from a matrix in memory. w: [out, in]
  Int8Linear(const ExecutionContext& context, std::int64_t out, std::int64_t in, std::span<const float> w);
  ~Int8Linear();
  Int8Linear(Int8Linear&&) noexcept;

  std::int64_t out() const noexcept;
  std::int64_t in() const noexcept;
  std::size_t bytes() const noexcept;

  /// acc[rows, out] = Σ_k x·q, exact; bit-equal on every ISA and thread count. Neither product allocates.
  /// Both throw Error(kInvalidArgument) on sizes that disagree.
  void multiply_int(const ExecutionContext& context, const QuantizedRows& x,
                    std::span<std::int32_t> acc) const;
  /// y[rows, out] = float(acc) · (scale[row of W] · inv_scale[row of x]), one rounding a product.
  void forward(const ExecutionContext& context, const QuantizedRows& x, std::span<float> y) const;

  /// to[in] = q · scale of row `index`, one rounding each: an embedding's look-up. Throws
  /// Error(kInvalidArgument) on an index or a size that does not fit.
  void row(std::int64_t index, std::span<float> to) const;
  /// The rounded weights of row `index`, for export and tests. [in]
  std::vector<std::int8_t> values(std::int64_t index) const;
  /// [out]
  std::span<const float> scales() const noexcept;

 private:
  struct Impl;
  void run(const ExecutionContext& context, const QuantizedRows& x, std::int32_t* acc, float* y,
           std::size_t size) const;
  std::unique_ptr<Impl> impl_;
};

}  // namespace bitnet::quant
