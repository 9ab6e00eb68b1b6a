// Host tensors and their views. What is computed with them is in src/ops, conversions of elements in
// ops/convert.cpp.
#include "bitnet/core/tensor.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "bitnet/core/error.hpp"
#include "bitnet/core/memory/hybrid_memory_pool.hpp"
#include "ops/convert.hpp"

namespace bitnet {
namespace {

constexpr std::size_t kAlignment = 64;
constexpr MemoryTag kTag = "tensor";

[[noreturn]] void invalid(std::string message, SourceLocation where = SourceLocation::current()) {
  throw Error(ErrorCode::kInvalidArgument, std::move(message), where);
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

/// The element types that span<T>() is for.
template <class T>
std::string_view types_of() {
  if constexpr (std::is_same_v<T, std::uint16_t>) return "f16 or bf16";
  if constexpr (std::is_same_v<T, std::int8_t>) return "i8";
  if constexpr (std::is_same_v<T, std::int32_t>) return "i32";
  return "f32";
}

template <class T>
bool is_type(DType dtype) {
  if constexpr (std::is_same_v<T, float>) return dtype == DType::kF32;
  if constexpr (std::is_same_v<T, std::uint16_t>) return dtype == DType::kF16 || dtype == DType::kBF16;
  if constexpr (std::is_same_v<T, std::int8_t>) return dtype == DType::kI8;
  if constexpr (std::is_same_v<T, std::int32_t>) return dtype == DType::kI32;
  return false;
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

/// A block and who takes it back, unless a reset() did.
struct Tensor::Storage {
  Storage(Memory from, std::size_t bytes, bool zero)
      : memory(std::move(from)), generation(memory->generation()) {
    auto* const pool = zero ? dynamic_cast<HybridMemoryPool*>(memory.get()) : nullptr;
    data = pool != nullptr ? pool->allocate_zeroed(bytes, kAlignment, kTag)
                           : memory->allocate(bytes, kAlignment, kTag);
    if (zero && pool == nullptr) std::memset(data, 0, bytes);
  }
  ~Storage() {
    if (memory->generation() == generation) detail::deallocate_or_log(*memory, data);
  }
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  Memory memory;
  std::uint64_t generation;
  void* data;
};

Tensor Tensor::allocated(DType dtype, Shape shape, const Memory& memory, bool zero) {
  Tensor t;
  t.dtype_ = dtype;
  t.shape_ = shape;
  t.strides_ = contiguous_strides(shape);
  // Zero bytes still get a block, so that data_ is never null for a made tensor.
  const std::size_t bytes = std::max<std::size_t>(bytes_for(dtype, shape), 1);
  const auto what = [&] { return fmt::format("tensor {} of {}", shape.to_string(), to_string(dtype)); };
  try {
    auto storage =
        std::make_shared<Storage>(memory == nullptr ? Memory(default_memory_pool()) : memory, bytes, zero);
    t.data_ = static_cast<std::byte*>(storage->data);
    t.owner_ = std::move(storage);
  } catch (Error& e) {
    e.add_context(what());
    throw;
  } catch (const std::bad_alloc&) {
    throw_out_of_memory(what());
  }
  return t;
}

Tensor::Tensor(DType dtype, Shape shape, const Memory& memory) {
  *this = allocated(dtype, shape, memory, dtype != DType::kTernary);
  // Four codes of 1: trit 0.
  if (dtype == DType::kTernary) std::memset(data_, 0x55, bytes_for(dtype, shape));
}

Tensor Tensor::uninitialized(DType dtype, Shape shape, const Memory& memory) {
  return allocated(dtype, shape, memory, false);
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
  if (!is_type<T>(dtype_))
    invalid(
        fmt::format("tensor {} of {} asked for as {}", shape_.to_string(), to_string(dtype_), types_of<T>()));
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

Tensor Tensor::slice(std::int64_t axis, std::int64_t begin, std::int64_t end, std::int64_t step) const {
  const std::int64_t size = shape_[axis];
  const auto a = static_cast<std::size_t>(axis < 0 ? axis + static_cast<std::int64_t>(shape_.rank()) : axis);
  if (begin < 0 || end < begin || end > size || step < 1) {
    invalid(fmt::format("slice {}:{} by {} of axis {} of tensor {}: 0 ≤ begin ≤ end ≤ {} and step ≥ 1 wanted",
                        begin, end, step, axis, shape_.to_string(), size));
  }
  if (dtype_ == DType::kTernary && (a != 0 || shape_.rank() < 2 || step != 1)) {
    invalid("a ternary tensor can only be sliced along axis 0 of a matrix, by 1");
  }
  Tensor view = *this;
  std::vector<std::int64_t> dims(shape_.dims().begin(), shape_.dims().end());
  dims[a] = end == begin ? 0 : (end - begin - 1) / step + 1;
  view.shape_ = Shape(dims);
  if (dims[a] > 1) view.strides_[a] = strides_[a] * step;
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

namespace {

/// Strides of `to` over the elements of `from`, in the same order; false where one axis of `to` would run
/// over places that no single stride reaches. The shapes hold the same number of elements, at least one.
bool reshaped_strides(const Shape& from, std::span<const std::int64_t> strides, const Shape& to,
                      std::array<std::int64_t, Shape::kMaxRank>& out) {
  // Axes of size 1 do not matter; the others fall into groups, from the first on, that hold as many elements
  // on both sides. The axes of `from` in a group must be one run.
  std::array<std::int64_t, Shape::kMaxRank> dims{}, steps{};
  std::size_t rank = 0;
  for (std::size_t d = 0; d < from.rank(); ++d) {
    if (from.dims()[d] == 1) continue;
    dims[rank] = from.dims()[d];
    steps[rank++] = strides[d];
  }
  std::size_t old_begin = 0, new_begin = 0;
  while (old_begin < rank && new_begin < to.rank()) {
    std::size_t old_end = old_begin + 1, new_end = new_begin + 1;
    std::int64_t have = dims[old_begin], want = to.dims()[new_begin];
    while (have != want) {
      if (have < want)
        have *= dims[old_end++];
      else
        want *= to.dims()[new_end++];
    }
    for (std::size_t d = old_begin; d + 1 < old_end; ++d)
      if (steps[d] != dims[d + 1] * steps[d + 1]) return false;
    std::int64_t step = steps[old_end - 1];
    for (std::size_t d = new_end; d-- > new_begin;) {
      out[d] = step;
      step *= to.dims()[d];
    }
    old_begin = old_end;
    new_begin = new_end;
  }
  for (; new_begin < to.rank(); ++new_begin) out[new_begin] = 1;  // of size 1
  return true;
}

}  // namespace

Tensor Tensor::reshape(Shape shape) const {
  if (shape.numel() != shape_.numel()) {
    invalid(
        fmt::format("reshape of {} to {}: other number of elements", shape_.to_string(), shape.to_string()));
  }
  (void)bytes_for(dtype_, shape);  // a ternary row must stay whole bytes
  Tensor view = *this;
  view.strides_ = contiguous_strides(shape);
  view.shape_ = shape;
  if (!is_contiguous() && !reshaped_strides(shape_, strides(), shape, view.strides_)) {
    invalid(fmt::format("reshape of {} with strides [{}] to {} needs a copy: make it contiguous() first",
                        shape_.to_string(), fmt::join(strides(), ", "), shape.to_string()));
  }
  return view;
}

Tensor Tensor::broadcast_to(const Shape& shape) const {
  if (dtype_ == DType::kTernary) invalid("a ternary tensor cannot be broadcast");
  Tensor view = *this;
  view.shape_ = shape;
  view.strides_ = {};
  const std::size_t rank = shape_.rank(), shift = shape.rank() - rank;
  bool fits = rank <= shape.rank();
  for (std::size_t d = 0; fits && d < rank; ++d) {
    const std::int64_t from = shape_.dims()[d];
    fits = from == 1 || from == shape.dims()[d + shift];
    if (from != 1) view.strides_[d + shift] = strides_[d];
  }
  if (!fits) {
    invalid(fmt::format("shape {} does not broadcast to {}", shape_.to_string(), shape.to_string()));
  }
  return view;
}

Tensor Tensor::contiguous(const Memory& memory) const {
  if (is_contiguous()) return *this;
  Tensor copy = uninitialized(dtype_, shape_, memory);
  ops::copy_elements(ops::one_thread(), *this, copy);
  return copy;
}

Tensor Tensor::to(DType dtype, const Memory& memory) const {
  Tensor copy = dtype == DType::kTernary ? Tensor(dtype, shape_, memory)  // codes share bytes
                                         : uninitialized(dtype, shape_, memory);
  ops::convert_elements(ops::one_thread(), *this, copy);
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
