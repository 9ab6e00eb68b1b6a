// int8 embeddings and heads: rounding from any float type, and which rows of the input are multiplied. The
// integers are bitnet-quant's Int8Linear.
#include "cpu/int8_weights.hpp"

#include <algorithm>

#include "cpu/dense.hpp"

namespace bitnet::inference::cpu {

std::shared_ptr<const Int8Weights> Int8Weights::make(const ExecutionContext& context,
                                                     const F32Kernels& kernels, const LinearWeights& w) {
  const std::size_t row_bytes = static_cast<std::size_t>(w.in) * bits_of(w.dense_type) / 8;
  const auto rows = [&](std::int64_t begin, std::int64_t end, float* to) {
    widen(kernels, w.dense_type, w.dense.data() + static_cast<std::size_t>(begin) * row_bytes, to,
          static_cast<std::size_t>((end - begin) * w.in));
  };
  return std::make_shared<const Int8Weights>(quant::Int8Linear(context, w.out, w.in, rows));
}

void Int8Weights::multiply(const ExecutionContext& context, const float* x,
                           std::span<const std::int32_t> rows, Scratch& scratch, float* y) const {
  if (rows.empty()) return;
  const auto n = static_cast<std::int64_t>(rows.size());
  bool consecutive = true;
  for (std::int64_t i = 1; i < n; ++i)
    consecutive = consecutive && rows[static_cast<std::size_t>(i)] == rows[0] + i;
  const float* from = x + rows[0] * in();
  if (!consecutive) {
    scratch.rows.resize(static_cast<std::size_t>(n * in()));
    for (std::int64_t i = 0; i < n; ++i)
      std::copy_n(x + rows[static_cast<std::size_t>(i)] * in(), in(), scratch.rows.data() + i * in());
    from = scratch.rows.data();
  }
  quant::quantize_rows(context, {from, static_cast<std::size_t>(n * in())}, n, in(), scratch.quantized);
  linear_.forward(context, scratch.quantized, {y, static_cast<std::size_t>(n * out())});
}

}  // namespace bitnet::inference::cpu
