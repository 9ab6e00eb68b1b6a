// Two tensors side by side, in blocks of rows that threads share; sums are added up in the blocks' order.
#include "bitnet/quant/model_difference.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "bitnet/core/error.hpp"
#include "model_io/stored_tensor.hpp"

namespace bitnet::quant {
namespace {

constexpr std::int64_t kBlockValues = std::int64_t{1} << 18;

std::pair<std::int64_t, std::int64_t> matrix_of(const Shape& shape) {
  const std::int64_t rows = shape.rank() == 2 ? shape[0] : 1;
  return {rows, shape.numel() / std::max<std::int64_t>(rows, 1)};
}

model_io::Encoding encoding_of(DType type) {
  return type == DType::kF16    ? model_io::Encoding::kF16
         : type == DType::kBF16 ? model_io::Encoding::kBF16
                                : model_io::Encoding::kF32;
}

/// Rows [begin, end) as the model runs them; their trits, too, if it has any.
struct Block {
  std::vector<float> values;
  std::vector<std::int8_t> trits;

  void read(const TensorRows& t, std::int64_t begin, std::int64_t end, std::int64_t cols) {
    const auto n = static_cast<std::size_t>((end - begin) * cols);
    values.resize(n);
    if (!t.ternary) {
      std::vector<std::byte> bytes(n * bits_of(t.dtype) / 8);
      t.dense(begin, end, bytes.data());
      model_io::decode_floats(encoding_of(t.dtype), bytes.data(), n, values.data());
      return;
    }
    trits.resize(n);
    t.trits(begin, end, trits.data());
    const std::int64_t width = t.cols_per_scale > 0 ? t.cols_per_scale : cols,
                       groups = (cols + width - 1) / width;
    std::size_t i = 0;
    for (std::int64_t r = begin; r < end; ++r)
      for (std::int64_t c = 0; c < cols; ++c, ++i)
        values[i] = t.scales[static_cast<std::size_t>(r / t.rows_per_scale * groups + c / width)] *
                    static_cast<float>(trits[i]);
  }
};

void add_block(const Block& a, const Block& b, TensorDifference& to) {
  for (std::size_t i = 0; i < a.values.size(); ++i) {
    const double x = static_cast<double>(a.values[i]), y = static_cast<double>(b.values[i]);
    if (!std::isfinite(x) || !std::isfinite(y))
      throw Error(ErrorCode::kCorruptFile,
                  fmt::format("a value is {} in one model and {} in the other: not finite", x, y));
    to.squares += x * x;
    to.other_squares += y * y;
    to.product += x * y;
    to.noise += (x - y) * (x - y);
    to.largest = std::max(to.largest, std::fabs(x - y));
    to.same += x == y ? 1 : 0;
  }
  if (a.trits.empty() || b.trits.empty()) return;
  std::int64_t same = 0;
  for (std::size_t i = 0; i < a.trits.size(); ++i) same += a.trits[i] == b.trits[i] ? 1 : 0;
  to.same_trits = to.same_trits.value_or(0) + same;
}

void compare(const ExecutionContext& context, const TensorRows& a, const TensorRows& b,
             TensorDifference& to) {
  const auto [rows, cols] = matrix_of(to.shape);
  const std::int64_t step = std::max<std::int64_t>(1, kBlockValues / std::max<std::int64_t>(cols, 1));
  std::vector<TensorDifference> parts(static_cast<std::size_t>((rows + step - 1) / step));
  context.parallel_for(parts.size(), 1, [&, rows = rows, cols = cols](std::size_t from, std::size_t until) {
    Block x, y;
    for (std::size_t i = from; i < until; ++i) {
      const std::int64_t begin = static_cast<std::int64_t>(i) * step, end = std::min(rows, begin + step);
      x.read(a, begin, end, cols);
      y.read(b, begin, end, cols);
      add_block(x, y, parts[i]);
    }
  });
  for (const TensorDifference& p : parts) {
    to.squares += p.squares;
    to.other_squares += p.other_squares;
    to.product += p.product;
    to.noise += p.noise;
    to.largest = std::max(to.largest, p.largest);
    to.same += p.same;
    if (p.same_trits) to.same_trits = to.same_trits.value_or(0) + *p.same_trits;
  }
}

}  // namespace

double TensorDifference::relative() const noexcept {
  if (noise == 0) return 0;
  return squares > 0 ? std::sqrt(noise / squares) : std::numeric_limits<double>::infinity();
}

double TensorDifference::cosine() const noexcept {
  if (squares == 0 && other_squares == 0) return 1;
  return squares > 0 && other_squares > 0 ? product / std::sqrt(squares * other_squares) : 0;
}

ModelDifference compare_tensors(const ExecutionContext& context, const ModelReader& first,
                                const ModelReader& other,
                                const std::function<void(std::int64_t, std::int64_t)>& progress) {
  const std::vector<TensorId> in_first = model_tensors(first.config()),
                              in_other = model_tensors(other.config());
  std::set<std::pair<TensorRole, std::int64_t>> names;
  for (const TensorId id : in_other) names.insert({id.role, id.layer});
  ModelDifference out;
  std::int64_t done = 0;
  for (const TensorId id : in_first) {
    if (names.erase({id.role, id.layer}) == 0) {
      out.only_first.push_back(id);
    } else {
      TensorDifference& t = out.tensors.emplace_back();
      t.id = id;
      t.shape = tensor_shape(id, first.config());
      t.other_shape = tensor_shape(id, other.config());
      if (t.comparable())
        with_context(fmt::format("comparing '{}'", gguf_name(id)),
                     [&] { compare(context, first.rows(id), other.rows(id), t); });
    }
    ++done;
    if (progress) progress(done, static_cast<std::int64_t>(in_first.size()));
  }
  for (const TensorId id : in_other)
    if (names.contains({id.role, id.layer})) out.only_other.push_back(id);
  return out;
}

}  // namespace bitnet::quant
