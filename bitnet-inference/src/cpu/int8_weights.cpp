// int8 embeddings and heads: rounding from any float type, and which rows of the input are multiplied. The
// integers are bitnet-quant's Int8Linear.
#include "cpu/int8_weights.hpp"

#include <algorithm>
#include <vector>

#include "cpu/dense.hpp"

namespace bitnet::inference::cpu {

std::shared_ptr<const Int8Weights> Int8Weights::make(const ExecutionContext& context,
                                                     const F32Kernels& kernels, const LinearWeights& w) {
  const auto rows = [&](std::int64_t begin, std::int64_t end, float* to) {
    std::vector<std::byte> scratch;
    widen(kernels, w.dense_type, w.dense_of(begin, end, scratch), to,
          static_cast<std::size_t>((end - begin) * w.in));
  };
  return std::make_shared<const Int8Weights>(quant::Int8Linear(context, w.out, w.in, rows), w.activations);
}

void Int8Weights::multiply(const ExecutionContext& context, const float* x,
                           std::span<const std::int32_t> rows, quant::QuantizedRows& scratch,
                           float* y) const {
  const auto take = [&](std::int64_t i, float* to) {
    std::copy_n(x + rows[static_cast<std::size_t>(i)] * in(), in(), to);
  };
  const auto n = static_cast<std::int64_t>(rows.size());
  quant::quantize_made_rows(context, n, in(), take, scratch, activations_);
  linear_.forward(context, scratch, {y, static_cast<std::size_t>(n * out())});
}

void Int8Weights::multiply(const ExecutionContext& context, std::span<const float> x, std::int64_t n_rows,
                           quant::QuantizedRows& scratch, float* y) const {
  quant::quantize_rows(context, x, n_rows, in(), scratch, activations_);
  linear_.forward(context, scratch, {y, static_cast<std::size_t>(n_rows * out())});
}

}  // namespace bitnet::inference::cpu
