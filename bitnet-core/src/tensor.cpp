// Host tensors and their views. Element access here is simple and slow: kernels work on spans (f32_kernels,
// quant).
#include "bitnet/core/tensor.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <vector>

#include "bitnet/core/error.hpp"

namespace bitnet {
namespace {

constexpr std::size_t kAlignment = 64;

[[noreturn]] void invalid(std::string message) {
  throw Error(ErrorCode::kInvalidArgument, std::move(message));
}

std::size_t bytes_for(DType dtype, const Shape& shape) {
  const auto n = static_cast<std::size_t>(shape.numel());
  const std::size_t bits = bits_of(dtype);
  if (n > std::numeric_limits<std::size_t>::max() / 64)
    invalid(fmt::format("tensor {} is too large", shape.to_string()));
  if (dtype == DType::kTernary && (shape.rank() == 0 || shape[-1] % 4 != 0)) {
    invalid(fmt::format("ternary tensor {}: the last dimension must be a multiple of 4", shape.to_string()));
  }
  return n * bits / 8;
}

std::size_t element_alignment(DType dtype) { return dtype == DType::kTernary ? 1 : bits_of(dtype) / 8; }

/// Calls visit(linear index, offset in elements) for every element in logical order.
template <class Visit>
void for_each_offset(const Shape& shape, std::span<const std::int64_t> strides, Visit&& visit) {
  std::array<std::int64_t, Shape::kMaxRank> at{};
  std::int64_t offset = 0;
  const auto dims = shape.dims();
  for (std::int64_t i = 0; i < shape.numel(); ++i) {
    visit(i, offset);
    for (std::size_t d = shape.rank(); d-- > 0;) {
      offset += strides[d];
      if (++at[d] < dims[d]) break;
      offset -= strides[d] * dims[d];
      at[d] = 0;
    }
  }
}

template <class T>
bool is_type(DType dtype) {
  if constexpr (std::is_same_v<T, float>) return dtype == DType::kF32;
  if constexpr (std::is_same_v<T, std::uint16_t>) return dtype == DType::kF16 || dtype == DType::kBF16;
  if constexpr (std::is_same_v<T, std::int8_t>) return dtype == DType::kI8;
  if constexpr (std::is_same_v<T, std::int32_t>) return dtype == DType::kI32;
  return false;
}

/// Half to even, saturating; NaN becomes 0.
std::int64_t to_integer(double v, std::int64_t low, std::int64_t high) {
  if (std::isnan(v)) return 0;
  return static_cast<std::int64_t>(
      std::clamp(std::nearbyint(v), static_cast<double>(low), static_cast<double>(high)));
}

double load(DType dtype, const std::byte* data, std::int64_t i) {
  const auto at = static_cast<std::size_t>(i);
  switch (dtype) {
    case DType::kF32:
      return reinterpret_cast<const float*>(data)[at];
    case DType::kF16:
      return f16_to_f32(reinterpret_cast<const std::uint16_t*>(data)[at]);
    case DType::kBF16:
      return bf16_to_f32(reinterpret_cast<const std::uint16_t*>(data)[at]);
    case DType::kI8:
      return reinterpret_cast<const std::int8_t*>(data)[at];
    case DType::kI32:
      return reinterpret_cast<const std::int32_t*>(data)[at];
    case DType::kTernary:
      return ((std::to_integer<int>(data[at / 4]) >> (2 * (at % 4))) & 3) - 1;
  }
  return 0;
}

void store(DType dtype, std::byte* data, std::int64_t i, double v) {
  const auto at = static_cast<std::size_t>(i);
  switch (dtype) {
    case DType::kF32:
      reinterpret_cast<float*>(data)[at] = static_cast<float>(v);
      break;
    case DType::kF16:
      reinterpret_cast<std::uint16_t*>(data)[at] = f32_to_f16(static_cast<float>(v));
      break;
    case DType::kBF16:
      reinterpret_cast<std::uint16_t*>(data)[at] = f32_to_bf16(static_cast<float>(v));
      break;
    case DType::kI8:
      reinterpret_cast<std::int8_t*>(data)[at] = static_cast<std::int8_t>(to_integer(v, -128, 127));
      break;
    case DType::kI32:
      reinterpret_cast<std::int32_t*>(data)[at] = static_cast<std::int32_t>(
          to_integer(v, std::numeric_limits<std::int32_t>::min(), std::numeric_limits<std::int32_t>::max()));
      break;
    case DType::kTernary: {
      const auto code = static_cast<unsigned>(to_integer(v, -1, 1) + 1);
      const unsigned shift = 2 * static_cast<unsigned>(at % 4);
      auto byte = std::to_integer<unsigned>(data[at / 4]);
      byte = (byte & ~(3u << shift)) | (code << shift);
      data[at / 4] = static_cast<std::byte>(byte);
      break;
    }
  }
}

std::array<std::int64_t, Shape::kMaxRank> contiguous_strides(const Shape& shape) {
  std::array<std::int64_t, Shape::kMaxRank> strides{};
  std::int64_t step = 1;
  for (std::size_t d = shape.rank(); d-- > 0;) {
    strides[d] = step;
    step *= std::max<std::int64_t>(shape.dims()[d], 1);
  }
  return strides;
}

}  // namespace

Tensor::Tensor(DType dtype, Shape shape) : dtype_(dtype), shape_(shape), strides_(contiguous_strides(shape)) {
  const std::size_t bytes = bytes_for(dtype, shape);
  // Zero bytes still get an allocation, so that data_ is never null for a made tensor.
  void* p = ::operator new (std::max<std::size_t>(bytes, 1), std::align_val_t{kAlignment}, std::nothrow);
  if (p == nullptr) {
    throw Error(ErrorCode::kOutOfMemory,
                fmt::format("tensor {} of {}: {} bytes", shape.to_string(), to_string(dtype), bytes));
  }
  std::memset(p, dtype == DType::kTernary ? 0x55 : 0, bytes);  // four codes of 1: trit 0
  data_ = static_cast<std::byte*>(p);
  owner_ = std::shared_ptr<const void>(
      p, [](const void* q) { ::operator delete (const_cast<void*>(q), std::align_val_t{kAlignment}); });
}

Tensor::Tensor(DType dtype, Shape shape, std::span<std::byte> bytes, std::shared_ptr<const void> owner)
    : dtype_(dtype),
      shape_(shape),
      strides_(contiguous_strides(shape)),
      data_(bytes.data()),
      owner_(std::move(owner)) {
  const std::size_t need = bytes_for(dtype, shape);
  if (bytes.size() < need)
    invalid(fmt::format("tensor {}: {} bytes given, {} needed", shape.to_string(), bytes.size(), need));
  if (reinterpret_cast<std::uintptr_t>(bytes.data()) % element_alignment(dtype) != 0) {
    invalid(fmt::format("tensor {}: memory is not aligned for {}", shape.to_string(), to_string(dtype)));
  }
}

template <class T>
Tensor Tensor::of(Shape shape, std::span<const T> values) {
  const DType dtype = std::is_same_v<T, float>         ? DType::kF32
                      : std::is_same_v<T, std::int8_t> ? DType::kI8
                                                       : DType::kI32;
  Tensor t(dtype, shape);
  if (static_cast<std::int64_t>(values.size()) != t.numel()) {
    invalid(fmt::format("tensor {}: {} values given", shape.to_string(), values.size()));
  }
  std::copy(values.begin(), values.end(), t.span<T>().begin());
  return t;
}

bool Tensor::is_contiguous() const noexcept {
  if (shape_.numel() == 0) return true;
  const auto expected = contiguous_strides(shape_);
  for (std::size_t d = 0; d < shape_.rank(); ++d) {
    if (shape_.dims()[d] != 1 && strides_[d] != expected[d]) return false;
  }
  return true;
}

template <class T>
std::span<T> Tensor::span() {
  if (!is_type<T>(dtype_)) invalid(fmt::format("tensor of {} asked for as another type", to_string(dtype_)));
  const auto b = bytes();
  return {reinterpret_cast<T*>(b.data()), b.size() / sizeof(T)};
}

template <class T>
std::span<const T> Tensor::span() const {
  return const_cast<Tensor*>(this)->span<T>();
}

std::span<std::byte> Tensor::bytes() {
  if (!is_contiguous())
    invalid(fmt::format("tensor {} is not contiguous: call contiguous() first", shape_.to_string()));
  return {data_, static_cast<std::size_t>(shape_.numel()) * bits_of(dtype_) / 8};
}

std::span<const std::byte> Tensor::bytes() const { return const_cast<Tensor*>(this)->bytes(); }

Tensor Tensor::slice(std::int64_t axis, std::int64_t begin, std::int64_t end) const {
  const std::int64_t size = shape_[axis];
  const auto a = static_cast<std::size_t>(axis < 0 ? axis + static_cast<std::int64_t>(shape_.rank()) : axis);
  if (begin < 0 || end < begin || end > size) {
    invalid(fmt::format("slice {}:{} of axis {} of tensor {}", begin, end, axis, shape_.to_string()));
  }
  if (dtype_ == DType::kTernary && (a != 0 || shape_.rank() < 2)) {
    invalid("a ternary tensor can only be sliced along axis 0 of a matrix");
  }
  Tensor view = *this;
  std::vector<std::int64_t> dims(shape_.dims().begin(), shape_.dims().end());
  dims[a] = end - begin;
  view.shape_ = Shape(dims);
  view.data_ = data_ + static_cast<std::ptrdiff_t>(begin * strides_[a]) *
                           static_cast<std::ptrdiff_t>(bits_of(dtype_)) / 8;
  return view;
}

Tensor Tensor::permute(std::span<const std::int64_t> axes) const {
  if (dtype_ == DType::kTernary) invalid("a ternary tensor cannot be permuted");
  if (axes.size() != shape_.rank())
    invalid(fmt::format("permute of tensor {} with {} axes", shape_.to_string(), axes.size()));
  std::array<bool, Shape::kMaxRank> seen{};
  std::vector<std::int64_t> dims;
  Tensor view = *this;
  for (std::size_t d = 0; d < axes.size(); ++d) {
    const auto rank = static_cast<std::int64_t>(shape_.rank());
    const std::int64_t axis = axes[d] < 0 ? axes[d] + rank : axes[d];
    if (axis < 0 || axis >= rank || seen[static_cast<std::size_t>(axis)]) {
      invalid(fmt::format("permute of tensor {}: axis {} is out of range or named twice", shape_.to_string(),
                          axes[d]));
    }
    seen[static_cast<std::size_t>(axis)] = true;
    dims.push_back(shape_.dims()[static_cast<std::size_t>(axis)]);
    view.strides_[d] = strides_[static_cast<std::size_t>(axis)];
  }
  view.shape_ = Shape(dims);
  return view;
}

Tensor Tensor::transpose(std::int64_t a, std::int64_t b) const {
  const auto rank = static_cast<std::int64_t>(shape_.rank());
  (void)shape_[a];
  (void)shape_[b];
  std::vector<std::int64_t> axes(shape_.rank());
  for (std::size_t d = 0; d < axes.size(); ++d) axes[d] = static_cast<std::int64_t>(d);
  std::swap(axes[static_cast<std::size_t>(a < 0 ? a + rank : a)],
            axes[static_cast<std::size_t>(b < 0 ? b + rank : b)]);
  return permute(axes);
}

Tensor Tensor::reshape(Shape shape) const {
  if (!is_contiguous()) invalid("reshape needs a contiguous tensor: call contiguous() first");
  if (shape.numel() != shape_.numel()) {
    invalid(
        fmt::format("reshape of {} to {}: other number of elements", shape_.to_string(), shape.to_string()));
  }
  (void)bytes_for(dtype_, shape);  // a ternary row must stay whole bytes
  Tensor view = *this;
  view.strides_ = contiguous_strides(shape);
  view.shape_ = shape;
  return view;
}

Tensor Tensor::contiguous() const {
  if (is_contiguous()) return *this;
  Tensor copy(dtype_, shape_);
  const std::size_t size = bits_of(dtype_) / 8;  // ternary tensors are always contiguous
  for_each_offset(shape_, strides(), [&](std::int64_t i, std::int64_t offset) {
    std::memcpy(copy.data_ + static_cast<std::size_t>(i) * size,
                data_ + offset * static_cast<std::int64_t>(size), size);
  });
  return copy;
}

Tensor Tensor::to(DType dtype) const {
  Tensor copy(dtype, shape_);
  for_each_offset(shape_, strides(), [&](std::int64_t i, std::int64_t offset) {
    store(dtype, copy.data_, i, load(dtype_, data_, offset));
  });
  return copy;
}

template Tensor Tensor::of<float>(Shape, std::span<const float>);
template Tensor Tensor::of<std::int8_t>(Shape, std::span<const std::int8_t>);
template Tensor Tensor::of<std::int32_t>(Shape, std::span<const std::int32_t>);
template std::span<float> Tensor::span<float>();
template std::span<std::uint16_t> Tensor::span<std::uint16_t>();
template std::span<std::int8_t> Tensor::span<std::int8_t>();
template std::span<std::int32_t> Tensor::span<std::int32_t>();
template std::span<const float> Tensor::span<float>() const;
template std::span<const std::uint16_t> Tensor::span<std::uint16_t>() const;
template std::span<const std::int8_t> Tensor::span<std::int8_t>() const;
template std::span<const std::int32_t> Tensor::span<std::int32_t>() const;

}  // namespace bitnet
