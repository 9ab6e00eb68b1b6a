// The product by a matrix that is not trained, forward through packed trits and back through the same ones.
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
  if (tensor.ternary) {
    if (tensor.weights.cols_per_scale != 0)
      throw Error(
          ErrorCode::kUnsupported,
          "weights with scales by group of columns can be neither tuned by an adapter nor a teacher's");
    trits_.emplace(context, tensor.weights);
    scales_ = tensor.weights.scales;
    rows_per_scale_ = tensor.weights.rows_per_scale;
    return;
  }
  const std::vector<float> values = tensor.to_f32();
  BITNET_REQUIRE(values.size() == static_cast<std::size_t>(out_ * in_), "frozen linear",
                 std::to_string(values.size()) + " weights of " + tensor.shape.to_string());
  dense_ = MemoryArray<float>(*memory_, values.size(), "frozen weights", 64);
  std::copy(values.begin(), values.end(), dense_.data());
  node_.value = dense_.data();
  node_.rows = out_;
  node_.cols = in_;
  node_.persistent = true;
}

std::size_t FrozenLinear::bytes() const noexcept {
  return trits_ ? trits_->bytes() : static_cast<std::size_t>(out_ * in_) * sizeof(float);
}

Variable FrozenLinear::constant() const {
  BITNET_REQUIRE(!trits_, "frozen linear", "ternary weights are no variable");
  return Variable(&node_);
}

Variable FrozenLinear::forward(Tape& tape, Variable x, const quant::QuantizedRows& rows) const {
  if (!trits_) return training::linear(tape, x, constant());
  BITNET_REQUIRE(x.cols() == in_ && rows.rows == x.rows() && rows.cols == in_, "frozen linear",
                 "input " + dims(x) + " with " + std::to_string(rows.rows) + " quantised rows of " +
                     std::to_string(rows.cols) + " for " + std::to_string(in_) + " inputs");
  const Variable y = tape.make(x.rows(), out_, x.needs_grad());
  trits_->forward(tape.context(), rows, y.value());
  Tape* t = &tape;
  tape.on_backward(y, [t, x, y, this] { multiply_transposed(*t, x, y.grad().data()); });
  return y;
}

/// dx += d·(s · T). gemm() adds its terms one by one onto what is there, so that cutting W into blocks of
/// rows changes no bit.
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
      const std::span<std::int8_t> room = trits.span().subspan(static_cast<std::size_t>(begin) * in,
                                                               static_cast<std::size_t>(end - begin) * in);
      trits_->unpack_rows(o + begin, o + end, room);
      for (std::int64_t r = begin; r < end; ++r) {
        const float scale = scales_[static_cast<std::size_t>((o + r) / rows_per_scale_)];
        const std::int8_t* from = trits.data() + static_cast<std::size_t>(r) * in;
        float* to = block.data() + static_cast<std::size_t>(r) * in;
        for (std::size_t i = 0; i < in; ++i) to[i] = static_cast<float>(from[i]) * scale;
      }
    });
    gemm(tape.context(), x.rows(), in_, rows, d + o, out_, 1, block.data(), in_, 1, dx.data, in_,
         dx.accumulate || o > 0);
  }
}

}  // namespace bitnet::training
