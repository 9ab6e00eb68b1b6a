// The product by a matrix that is not trained, forward as the engine computes it and back through the same
// weights.
#include <algorithm>
#include <cstring>

#include "bitnet/training/frozen_model.hpp"
#include "ops_common.hpp"

namespace bitnet::training {
namespace {

constexpr std::int64_t kTile = 16;   // rows that unpack_rows() begins at
constexpr std::int64_t kBlock = 64;  // rows of W that are floats at a time

}  // namespace

FrozenLinear::FrozenLinear(const ExecutionContext& context, const quant::LogicalTensor& tensor)
    : out_(tensor.shape[0]),
      in_(tensor.shape[1]),
      activations_(tensor.activations),
      memory_(context.memory()) {
  if (tensor.ternary && tensor.weights.cols_per_scale == 0) {
    trits_.emplace(context, tensor.weights);
    return;
  }
  if (tensor.ternary || tensor.planes) {
    extended_.emplace(context, tensor.ternary ? view_of(tensor.weights) : view_of(*tensor.planes));
    return;
  }
  const std::vector<float> values = tensor.to_f32();
  BITNET_REQUIRE(values.size() == static_cast<std::size_t>(out_ * in_), "frozen linear",
                 std::to_string(values.size()) + " weights of " + tensor.shape.to_string());
  if (tensor.int8) {
    int8_.emplace(context, out_, in_, values);
    return;
  }
  dense_ = MemoryArray<float>(*memory_, values.size(), "frozen weights", 64);
  std::copy(values.begin(), values.end(), dense_.data());
  node_.value = dense_.data();
  node_.rows = out_;
  node_.cols = in_;
  node_.persistent = true;
}

std::size_t FrozenLinear::bytes() const noexcept {
  if (trits_) return trits_->bytes();
  if (extended_) return extended_->bytes();
  return int8_ ? int8_->bytes() : static_cast<std::size_t>(out_ * in_) * sizeof(float);
}

Variable FrozenLinear::constant() const {
  BITNET_REQUIRE(!quantised(), "frozen linear", "quantised weights are no variable");
  return Variable(&node_);
}

Variable FrozenLinear::forward(Tape& tape, Variable x, const quant::QuantizedRows& rows) const {
  if (!quantised()) return training::linear(tape, x, constant());
  BITNET_REQUIRE(x.cols() == in_ && rows.rows == x.rows() && rows.cols == in_, "frozen linear",
                 "input " + dims(x) + " with " + std::to_string(rows.rows) + " quantised rows of " +
                     std::to_string(rows.cols) + " for " + std::to_string(in_) + " inputs");
  const Variable y = tape.make(x.rows(), out_, x.needs_grad());
  if (trits_) {
    trits_->forward(tape.context(), rows, y.value());
  } else if (extended_) {
    PmrResource memory(*memory_, "training scratch");
    quant::ExtendedScratch scratch(&memory);
    extended_->forward(tape.context(), rows, scratch, y.value());
  } else {
    int8_->forward(tape.context(), rows, y.value());
  }
  Tape* t = &tape;
  tape.on_backward(y, [t, x, y, this] { multiply_transposed(*t, x, y.grad().data()); });
  return y;
}

/// Rows [begin, end) of W as floats, `begin` a multiple of kTile.
void FrozenLinear::expand(std::int64_t begin, std::int64_t end, std::span<std::int8_t> trits,
                          std::span<float> to) const {
  const auto in = static_cast<std::size_t>(in_);
  if (extended_) {
    extended_->dequantise_rows(begin, end, to);
  } else if (int8_) {
    for (std::int64_t r = begin; r < end; ++r)
      int8_->row(r, to.subspan(static_cast<std::size_t>(r - begin) * in, in));
  } else {
    trits_->unpack_rows(begin, end, trits);
    for (std::int64_t r = begin; r < end; ++r) {
      const float scale = trits_->row_scales()[static_cast<std::size_t>(r)];
      const std::size_t at = static_cast<std::size_t>(r - begin) * in;
      for (std::size_t i = at; i < at + in; ++i) to[i] = static_cast<float>(trits[i]) * scale;
    }
  }
}

/// dx += d·W. gemm() adds its terms one by one onto what is there, so that cutting W into blocks of rows
/// changes no bit.
void FrozenLinear::multiply_transposed(Tape& tape, Variable x, const float* d) const {
  const auto dx = tape.grad_target(x);
  const auto in = static_cast<std::size_t>(in_);
  const Scratch block(tape, static_cast<std::size_t>(kBlock) * in);
  const MemoryArray<std::int8_t> trits(*memory_, static_cast<std::size_t>(kBlock) * in, "training scratch",
                                       64);
  for (std::int64_t o = 0; o < out_; o += kBlock) {
    const std::int64_t rows = std::min(kBlock, out_ - o);
    for_rows(tape, (rows + kTile - 1) / kTile, 1, [&](std::int64_t tile) {
      const std::int64_t begin = tile * kTile, end = std::min(rows, begin + kTile);
      const std::size_t at = static_cast<std::size_t>(begin) * in,
                        n = static_cast<std::size_t>(end - begin) * in;
      expand(o + begin, o + end, trits.span().subspan(at, n), {block.data() + at, n});
    });
    gemm(tape.context(), x.rows(), in_, rows, d + o, out_, 1, block.data(), in_, 1, dx.data, in_,
         dx.accumulate || o > 0);
  }
}

}  // namespace bitnet::training
