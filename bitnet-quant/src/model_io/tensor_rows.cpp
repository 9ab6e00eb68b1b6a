// Rows of a stored tensor, decoded on demand: any encoding, any row order, float weights as trits. File pages
// go back as the rows pass, so that neither the tensor nor its file bytes are ever whole in memory.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <utility>

#include "absmean.hpp"
#include "bitnet/core/error.hpp"
#include "model_io/stored_tensor.hpp"

namespace bitnet::quant::model_io {
namespace {

/// Pages are given back in parts of this size: large against the cost of the call, small against a model.
constexpr std::size_t kReleaseBytes = std::size_t{4} << 20;
/// Values decoded at a time stay in the first-level cache.
constexpr std::size_t kStepValues = 4096;

TernaryLayout layout_of(Encoding e) {
  switch (e) {
    case Encoding::kHfUint8:
      return TernaryLayout::kHfUint8;
    case Encoding::kI2_S:
      return TernaryLayout::kI2_S;
    case Encoding::kTQ1_0:
      return TernaryLayout::kTQ1_0;
    case Encoding::kTQ2_0:
      return TernaryLayout::kTQ2_0;
    default:
      throw Error(ErrorCode::kInternal, "layout_of: not a packed encoding");
  }
}

/// How float weights become trits.
struct Ternarising {
  bool signs = false;  ///< they are trits times one scale already
  float absmean = 0;   ///< else the scale of absmean
};

/// Decodes ranges of rows; thread-safe. The file's pages go back with it.
class RowDecoder {
 public:
  RowDecoder(const StoredTensor& stored, const Shape& shape)
      : stored_(stored),
        rows_(shape.rank() == 2 ? shape[0] : 1),
        cols_(static_cast<std::size_t>(shape.numel() / std::max<std::int64_t>(rows_, 1))) {
    const std::int64_t d = stored.interleaved_head;
    if (d != 0 && (d < 2 || d % 2 != 0 || rows_ % d != 0))
      throw Error(
          ErrorCode::kCorruptFile,
          fmt::format("expected rows in multiples of an even head_dim, got {} and head_dim {}", rows_, d));
    if (is_packed(stored.encoding))
      packed_.emplace(layout_of(stored.encoding), stored.bytes, rows_, static_cast<std::int64_t>(cols_));
    else if (stored.ternarise)
      find_scale();
  }
  ~RowDecoder() { stored_.file->release(stored_.bytes); }
  RowDecoder(const RowDecoder&) = delete;
  RowDecoder& operator=(const RowDecoder&) = delete;

  bool ternary() const noexcept { return packed_ || stored_.ternarise; }

  void scales_of(TensorRows& t) const {
    if (!stored_.scales.empty()) {
      t.scales = stored_.scales;
      t.rows_per_scale = stored_.rows_per_scale;
      t.cols_per_scale = stored_.cols_per_scale;
      return;  // the reader checked them
    }
    t.scales = packed_ ? packed_->scales() : std::vector<float>{scale_};
    t.rows_per_scale = packed_ ? packed_->rows_per_scale() : rows_;
    t.cols_per_scale = packed_ ? packed_->cols_per_scale() : 0;
    if (stored_.encoding == Encoding::kHfUint8) {
      t.scales = {stored_.scale.value()};
    } else if (stored_.scale) {
      for (float& s : t.scales) s *= *stored_.scale;
    }
    if (stored_.interleaved_head != 0)
      reorder_scales(t.scales, t.rows_per_scale, rows_, stored_.interleaved_head, RowOrder::kToRotateHalf,
                     t.cols_per_scale == 0 ? 1 : static_cast<std::int64_t>(cols_) / t.cols_per_scale);
    for (const float s : t.scales)
      if (!std::isfinite(s) || s < 0)
        throw Error(ErrorCode::kCorruptFile, fmt::format("expected a finite scale of at least 0, got {}", s));
  }

  void trits(std::int64_t begin, std::int64_t end, std::int8_t* to) const {
    for_runs(begin, end, [&](std::int64_t first, std::int64_t last, std::size_t at) {
      if (packed_) return packed_->unpack_rows(first, last, to + at);
      for_values(first, last, [&](std::span<const float> values, std::size_t i) {
        if (ternarising_.signs) {
          for (std::size_t j = 0; j < values.size(); ++j)
            to[at + i + j] = static_cast<std::int8_t>(int{values[j] > 0} - int{values[j] < 0});
        } else {
          ternarise(values, ternarising_.absmean, to + at + i);
        }
      });
    });
  }

  /// f32 of kI8, or of a plane.
  void scaled(std::int64_t begin, std::int64_t end, float* to) const {
    if (packed_) {
      std::vector<std::int8_t> row(cols_);
      const std::size_t width =
          stored_.cols_per_scale > 0 ? static_cast<std::size_t>(stored_.cols_per_scale) : cols_;
      for (std::int64_t r = begin; r < end; ++r, to += cols_) {
        packed_->unpack_rows(r, r + 1, row.data());
        const float* const s =
            stored_.scales.data() + static_cast<std::size_t>(r / stored_.rows_per_scale) * (cols_ / width);
        for (std::size_t c = 0; c < cols_; ++c) to[c] = s[c / width] * static_cast<float>(row[c]);
      }
      return;
    }
    for (std::int64_t r = begin; r < end; ++r, to += cols_) {
      const std::byte* const from = stored_.bytes.data() + static_cast<std::size_t>(r) * cols_;
      const float s = stored_.scales[static_cast<std::size_t>(r)];
      for (std::size_t c = 0; c < cols_; ++c)
        to[c] = s * static_cast<float>(static_cast<std::int8_t>(std::to_integer<std::uint8_t>(from[c])));
    }
  }

  void dense(std::int64_t begin, std::int64_t end, std::byte* to) const {
    const Encoding e = stored_.encoding;
    if (e == Encoding::kI8) {
      std::vector<float> values(static_cast<std::size_t>(end - begin) * cols_);
      scaled(begin, end, values.data());
      std::memcpy(to, values.data(), values.size() * sizeof(float));
      return;
    }
    const bool as_stored =
        !stored_.scale && (e == Encoding::kF32 || e == Encoding::kF16 || e == Encoding::kBF16);
    for_runs(begin, end, [&](std::int64_t first, std::int64_t last, std::size_t at) {
      if (as_stored) {
        const std::size_t from = offset(first);
        std::memcpy(to + float_bytes(e, at), stored_.bytes.data() + from, offset(last) - from);
        return;
      }
      for_values(first, last, [&](std::span<float> values, std::size_t i) {
        if (stored_.scale)
          for (float& v : values) v *= *stored_.scale;
        std::memcpy(to + (at + i) * sizeof(float), values.data(), values.size_bytes());
      });
    });
  }

 private:
  /// Where a row of floats begins among the stored bytes.
  std::size_t offset(std::int64_t row) const {
    return float_bytes(stored_.encoding, static_cast<std::size_t>(row) * cols_);
  }

  /// Calls decode(first, last, at) on runs of rows as the file orders them: `at` values after the first one
  /// asked for.
  template <class Decode>
  void for_runs(std::int64_t begin, std::int64_t end, Decode&& decode) const {
    if (stored_.interleaved_head != 0) {
      for (std::int64_t r = begin; r < end; ++r) {
        const std::int64_t from = reordered_row(r, stored_.interleaved_head, RowOrder::kToRotateHalf);
        decode(from, from + 1, static_cast<std::size_t>(r - begin) * cols_);
      }
      return;
    }
    const std::size_t row_bytes =
        std::max<std::size_t>(1, stored_.bytes.size() / static_cast<std::size_t>(rows_));
    const auto step = static_cast<std::int64_t>(std::max<std::size_t>(1, kReleaseBytes / row_bytes / 4));
    for (std::int64_t r = begin; r < end; r += step) {
      const std::int64_t last = std::min(end, r + step);
      decode(r, last, static_cast<std::size_t>(r - begin) * cols_);
      release_behind(static_cast<std::size_t>(r) * row_bytes, static_cast<std::size_t>(last) * row_bytes);
    }
  }

  /// After the bytes [begin, end): the parts that end in there are not needed again, if rows are asked for in
  /// order (else they are read again). Rows of kHfUint8 lie in bytes that three other rows need.
  void release_behind(std::size_t begin, std::size_t end) const {
    if (stored_.encoding == Encoding::kHfUint8) return;
    const std::size_t from = begin / kReleaseBytes * kReleaseBytes, to = end / kReleaseBytes * kReleaseBytes;
    if (to > from) stored_.file->release(stored_.bytes.subspan(from, to - from));
  }

  /// Calls use(values, index of the first) on the f32 values of file rows [first, last), in order.
  template <class Use>
  void for_values(std::int64_t first, std::int64_t last, Use&& use) const {
    float buffer[kStepValues];  // blocks of 32 and 256 divide it
    const std::byte* const from = stored_.bytes.data() + offset(first);
    const std::size_t n = static_cast<std::size_t>(last - first) * cols_;
    for (std::size_t i = 0; i < n; i += kStepValues) {
      const std::span values(buffer, std::min(kStepValues, n - i));
      decode_floats(stored_.encoding, from + float_bytes(stored_.encoding, i), values.size(), values.data());
      use(values, i);
    }
  }

  /// The first pass over float weights. Trits × one scale that were stored as floats (converters write the
  /// dequantised weights) keep that scale, where absmean would multiply it by their density.
  void find_scale() {
    AbsmeanSum sum;
    float least = std::numeric_limits<float>::infinity(), most = 0;
    const auto step = static_cast<std::int64_t>(std::max<std::size_t>(1, (std::size_t{1} << 18) / cols_));
    for (std::int64_t r = 0; r < rows_; r += step) {
      const std::int64_t last = std::min(rows_, r + step);
      for_values(r, last, [&](std::span<const float> values, std::size_t) {
        sum.add(values);
        for (const float v : values) {
          const float a = std::fabs(v);
          most = std::max(most, a);
          least = a > 0 ? std::min(least, a) : least;
        }
      });
      release_behind(offset(r), offset(last));
    }
    // One unit in the last place of the stored type, at most.
    const DType type = dtype_of(stored_.encoding);
    const float unit = type == DType::kF32 ? 0x1p-23f : type == DType::kF16 ? 0x1p-10f : 0x1p-7f;
    ternarising_ = {.signs = most > 0 && most - least <= least * unit, .absmean = sum.scale()};
    scale_ = ternarising_.signs ? most : ternarising_.absmean;
  }

  const StoredTensor& stored_;
  std::int64_t rows_;
  std::size_t cols_;
  std::optional<PackedMatrix> packed_;
  Ternarising ternarising_;
  float scale_ = 0;
};

/// Runs `body`; what it throws names the tensor, and is a matter of the file: absmean calls bad weights an
/// invalid argument.
template <class Body>
decltype(auto) for_tensor(const StoredTensor& stored, Body&& body) {
  try {
    return body();
  } catch (const Error& e) {
    const auto code = e.code() == ErrorCode::kInvalidArgument ? ErrorCode::kCorruptFile : e.code();
    throw Error(code, fmt::format("tensor '{}': {}", stored.name, e.what()), e.where());
  }
}

/// A member of the decoder as a row source.
template <class T, class Member>
RowSource<T> source(std::shared_ptr<const RowDecoder> decoder, const StoredTensor& stored, Member member) {
  return [decoder = std::move(decoder), &stored, member](std::int64_t begin, std::int64_t end, T* to) {
    for_tensor(stored, [&] { ((*decoder).*member)(begin, end, to); });
  };
}

}  // namespace

namespace {

/// Two planes: each as a tensor of its own, and their sum as dense rows.
TensorRows open_planes(const StoredTensor& stored, TensorId id, const Shape& shape) {
  TensorRows t;
  t.id = id;
  t.shape = shape;
  t.dtype = DType::kF32;
  const auto first = std::make_shared<const RowDecoder>(stored, shape),
             second = std::make_shared<const RowDecoder>(*stored.second, shape);
  for (const auto& [decoder, from] : {std::pair(first, &stored), std::pair(second, stored.second.get())}) {
    TensorRows& plane = t.planes.emplace_back();
    plane.id = id;
    plane.shape = shape;
    plane.ternary = true;
    decoder->scales_of(plane);
    plane.trits = source<std::int8_t>(decoder, *from, &RowDecoder::trits);
  }
  t.dense = [first, second, &stored, cols = static_cast<std::size_t>(shape[1])](
                std::int64_t begin, std::int64_t end, std::byte* to) {
    for_tensor(stored, [&] {
      std::vector<float> sum(static_cast<std::size_t>(end - begin) * cols), more(sum.size());
      first->scaled(begin, end, sum.data());
      second->scaled(begin, end, more.data());
      for (std::size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
      std::memcpy(to, sum.data(), sum.size() * sizeof(float));
    });
  };
  return t;
}

}  // namespace

TensorRows open_rows(const StoredTensor& stored, TensorId id, const Shape& shape) {
  return for_tensor(stored, [&] {
    if (stored.second != nullptr) return open_planes(stored, id, shape);
    TensorRows t;
    t.int8 = stored.encoding == Encoding::kI8;
    t.id = id;
    t.shape = shape;
    t.dtype = dense_type(stored);
    const auto decoder = std::make_shared<const RowDecoder>(stored, shape);
    t.ternary = decoder->ternary();
    if (t.ternary) {
      decoder->scales_of(t);
      t.trits = source<std::int8_t>(decoder, stored, &RowDecoder::trits);
    } else {
      t.dense = source<std::byte>(decoder, stored, &RowDecoder::dense);
    }
    return t;
  });
}

}  // namespace bitnet::quant::model_io
