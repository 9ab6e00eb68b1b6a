// Products by codes that are floats for 64 rows at a time, and what their gradients say of the scales.
#include "tuned_linear.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "ops_common.hpp"

namespace bitnet::training {
namespace {

constexpr std::int64_t kBlock = 64;  // rows of W that are floats at a time

}  // namespace

TunedLinear::TunedLinear(const ExecutionContext& context, std::string name,
                         const quant::LogicalTensor& tensor, bool trained)
    : out_(tensor.shape[0]), in_(tensor.shape[1]), form_(tensor.activations), int8_(tensor.int8.has_value()) {
  const auto add_plane = [&](const char* suffix, const quant::TernaryWeights& w) {
    planes_.push_back(
        plane(context, name + suffix, w.trits, w.scales, w.rows_per_scale, w.cols_per_scale, trained));
  };
  if (tensor.ternary) {
    add_plane(".scale", tensor.weights);
  } else if (tensor.planes) {
    add_plane(".scale", tensor.planes->first);
    add_plane(".scale2", tensor.planes->second);
  } else if (tensor.int8) {
    planes_.push_back(
        plane(context, name + ".scale", tensor.int8->values, tensor.int8->scales, 1, 0, trained));
  } else {
    const std::vector<float> values = tensor.to_f32();
    BITNET_REQUIRE(values.size() == static_cast<std::size_t>(out_ * in_), "tuned linear",
                   std::to_string(values.size()) + " weights of " + tensor.shape.to_string());
    dense_ = MemoryArray<float>(*context.memory(), values.size(), "frozen weights", 64);
    std::copy(values.begin(), values.end(), dense_.data());
    node_.value = dense_.data();
    node_.rows = out_;
    node_.cols = in_;
    node_.persistent = true;
  }
}

TunedLinear::Plane TunedLinear::plane(const ExecutionContext& context, std::string name,
                                      std::span<const std::int8_t> codes, std::span<const float> scales,
                                      std::int64_t rows_per_scale, std::int64_t cols_per_scale,
                                      bool trained) const {
  Plane p;
  p.rows_per_scale = std::max<std::int64_t>(1, rows_per_scale);
  p.cols_per_scale = cols_per_scale;
  p.groups = cols_per_scale > 0 ? (in_ + cols_per_scale - 1) / cols_per_scale : 1;
  const auto wanted = static_cast<std::size_t>((out_ + p.rows_per_scale - 1) / p.rows_per_scale * p.groups);
  BITNET_REQUIRE(
      codes.size() == static_cast<std::size_t>(out_ * in_) && scales.size() == wanted, "tuned linear",
      std::to_string(codes.size()) + " codes and " + std::to_string(scales.size()) + " scales, of [" +
          std::to_string(out_) + ", " + std::to_string(in_) + "] with " + std::to_string(wanted));
  p.codes = MemoryArray<std::int8_t>(*context.memory(), codes.size(), "frozen weights", 64);
  std::copy(codes.begin(), codes.end(), p.codes.data());
  p.start.assign(scales.begin(), scales.end());
  p.scales = p.start;
  if (trained)
    p.factor = std::make_unique<Parameter>(context, std::move(name), 1,
                                           static_cast<std::int64_t>(p.start.size()), false);
  return p;
}

std::size_t TunedLinear::bytes() const noexcept {
  std::size_t all = dense_.size() * sizeof(float);
  for (const Plane& p : planes_) all += p.codes.size() + 2 * p.scales.size() * sizeof(float);
  return all;
}

void TunedLinear::parameters(std::vector<Parameter*>& all) {
  for (Plane& p : planes_)
    if (p.factor) all.push_back(p.factor.get());
}

void TunedLinear::refresh() {
  for (Plane& p : planes_)
    if (p.factor)
      for (std::size_t i = 0; i < p.start.size(); ++i)
        p.scales[i] = p.start[i] * std::exp(p.factor->value()[i]);
}

/// Rows [begin, begin + rows) of W as floats, [rows, in].
void TunedLinear::expand(const Tape& tape, std::int64_t begin, std::int64_t rows, float* to) const {
  const auto in = static_cast<std::size_t>(in_);
  for_rows(tape, rows, 4, [&](std::int64_t r) {
    float* const row = to + static_cast<std::size_t>(r) * in;
    std::fill_n(row, in, 0.0f);
    for (const Plane& p : planes_) {
      const std::int8_t* codes = p.codes.data() + static_cast<std::size_t>(begin + r) * in;
      const float* scales = p.scales.data() + (begin + r) / p.rows_per_scale * p.groups;
      const auto width = static_cast<std::size_t>(p.cols_per_scale > 0 ? p.cols_per_scale : in_);
      for (std::size_t c = 0; c < in; c += width)
        for (std::size_t i = c; i < std::min(in, c + width); ++i)
          row[i] += static_cast<float>(codes[i]) * scales[c / width];
    }
  });
}

Variable TunedLinear::forward(Tape& tape, Variable x, const RoundedRows& rows) const {
  if (!quantised()) return training::linear(tape, x, Variable(&node_));
  BITNET_REQUIRE(x.cols() == in_ && rows.values && rows.form == form_, "tuned linear",
                 "input " + dims(x) + " for " + std::to_string(in_) + " inputs");
  const bool trained = planes_.front().factor != nullptr;
  const Variable y = tape.make(x.rows(), out_, x.needs_grad() || trained);
  const Scratch block(tape, static_cast<std::size_t>(std::min(kBlock, out_) * in_));
  for (std::int64_t o = 0; o < out_; o += kBlock) {
    const std::int64_t n = std::min(kBlock, out_ - o);
    expand(tape, o, n, block.data());
    gemm(tape.context(), x.rows(), n, in_, rows.values, in_, 1, block.data(), 1, in_, y.value().data() + o,
         out_, false);
  }
  Tape* t = &tape;
  const Product p{this, x, y, rows.values};
  tape.on_backward(y, [t, p] { p.linear->backward(*t, p); });
  return y;
}

void TunedLinear::backward(Tape& tape, const Product& p) const {
  const bool trained = planes_.front().factor != nullptr, passes = p.x.needs_grad();
  const std::int64_t n = p.x.rows(), most = std::min(kBlock, out_);
  const float* d = p.y.grad().data();
  const Tape::GradTarget dx = passes ? tape.grad_target(p.x) : Tape::GradTarget{nullptr, false};
  const Scratch room(tape, static_cast<std::size_t>(most * in_));
  std::vector<std::vector<double>> sums;  // of each plane, a row's groups one behind the other
  for (const Plane& plane : planes_)
    sums.emplace_back(trained ? static_cast<std::size_t>(out_ * plane.groups) : 0);
  for (std::int64_t o = 0; o < out_; o += kBlock) {
    const std::int64_t rows = std::min(kBlock, out_ - o);
    if (passes) {
      expand(tape, o, rows, room.data());
      gemm(tape.context(), n, in_, rows, d + o, out_, 1, room.data(), in_, 1, dx.data, in_,
           dx.accumulate || o > 0);
    }
    if (!trained) continue;
    gemm(tape.context(), rows, in_, n, d + o, 1, out_, p.values, in_, 1, room.data(), in_, false);
    for (std::size_t i = 0; i < planes_.size(); ++i)
      dot_codes(tape, planes_[i], o, rows, room.data(), sums[i]);
  }
  if (trained)
    for (std::size_t i = 0; i < planes_.size(); ++i) give(tape, planes_[i], sums[i]);
}

/// For each row of the block and group of columns Σ dW · code.
void TunedLinear::dot_codes(const Tape& tape, const Plane& plane, std::int64_t begin, std::int64_t rows,
                            const float* dw, std::span<double> sums) const {
  const auto in = static_cast<std::size_t>(in_), groups = static_cast<std::size_t>(plane.groups);
  const auto width = static_cast<std::size_t>(plane.cols_per_scale > 0 ? plane.cols_per_scale : in_);
  const Scratch wide(tape, static_cast<std::size_t>(rows) * in);
  for_rows(tape, rows, 4, [&](std::int64_t r) {
    const auto row = static_cast<std::size_t>(r);
    float* const codes = wide.data() + row * in;
    train_of(tape).widen(plane.codes.data() + (static_cast<std::size_t>(begin) + row) * in, codes, in);
    double* const to = sums.data() + (static_cast<std::size_t>(begin) + row) * groups;
    for (std::size_t c = 0; c < in; c += width)
      to[c / width] =
          static_cast<double>(f32_of(tape).dot(dw + row * in + c, codes + c, std::min(width, in - c)));
  });
}

/// d(factor) = d(scale) · scale, rows that share one added in their order.
void TunedLinear::give(Tape& tape, const Plane& plane, std::span<const double> sums) {
  std::vector<double> gradient(plane.scales.size());
  const auto groups = static_cast<std::size_t>(plane.groups),
             each = static_cast<std::size_t>(plane.rows_per_scale);
  for (std::size_t i = 0; i < sums.size(); ++i) gradient[i / groups / each * groups + i % groups] += sums[i];
  const Tape::GradTarget to = tape.grad_target(plane.factor->variable());
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    const auto g = static_cast<float>(gradient[i] * static_cast<double>(plane.scales[i]));
    to.data[i] = to.accumulate ? to.data[i] + g : g;
  }
}

quant::LogicalTensor TunedLinear::tensor(TensorId id) const {
  quant::LogicalTensor t;
  t.id = id;
  t.shape = Shape{out_, in_};
  t.activations = form_;
  const auto codes_of = [](const Plane& p) {
    return std::vector<std::int8_t>(p.codes.span().begin(), p.codes.span().end());
  };
  const auto weights_of = [&](const Plane& p) {
    quant::TernaryWeights w;
    w.out = out_;
    w.in = in_;
    w.trits = codes_of(p);
    w.scales = p.scales;
    w.rows_per_scale = p.rows_per_scale;
    w.cols_per_scale = p.cols_per_scale;
    return w;
  };
  if (planes_.empty()) {
    t.dense.resize(dense_.size() * sizeof(float));
    std::memcpy(t.dense.data(), dense_.data(), t.dense.size());
  } else if (int8_) {
    t.int8 = quant::Int8Rows{codes_of(planes_[0]), planes_[0].scales};
  } else if (planes_.size() == 2) {
    t.planes = quant::TwoPlanes{weights_of(planes_[0]), weights_of(planes_[1])};
  } else {
    t.ternary = true;
    t.weights = weights_of(planes_[0]);
  }
  return t;
}

}  // namespace bitnet::training
