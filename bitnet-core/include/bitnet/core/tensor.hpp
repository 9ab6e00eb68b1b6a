#pragma once
// A typed n-dimensional array with shared storage, and views into it that copy nothing.
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "bitnet/core/dtype.hpp"
#include "bitnet/core/shape.hpp"

namespace bitnet {

class MemoryResource;

/// Elements of `dtype` laid out by shape and strides over shared storage. Copying a Tensor copies the handle:
/// both see the same elements. Reading from several threads is safe; writing needs the caller's order.
///
/// Elements are a block of a MemoryResource of the host, tagged "tensor", which the handles keep alive: the
/// one given, else the process's default pool. They do not outlive a reset() of it.
class Tensor {
 public:
  using Memory = std::shared_ptr<MemoryResource>;

  Tensor() = default;
  /// Zero-filled, contiguous, 64-byte aligned. Throws Error(kOutOfMemory), Error(kInvalidArgument) for a
  /// kTernary tensor whose last dimension is no multiple of 4.
  Tensor(DType dtype, Shape shape, const Memory& memory = nullptr);
  /// The same with elements of no particular value, for who writes them all.
  static Tensor uninitialized(DType dtype, Shape shape, const Memory& memory = nullptr);
  /// A view of memory that `owner` keeps alive. Throws Error(kInvalidArgument) when `bytes` is too short or
  /// not aligned for dtype.
  Tensor(DType dtype, Shape shape, std::span<std::byte> bytes, std::shared_ptr<const void> owner);
  template <class T>
  static Tensor of(Shape shape, std::span<const T> values);  // T: float, int8_t, int32_t

  DType dtype() const noexcept { return dtype_; }
  const Shape& shape() const noexcept { return shape_; }
  std::int64_t numel() const noexcept { return shape_.numel(); }
  /// In elements, slowest first.
  std::span<const std::int64_t> strides() const noexcept { return {strides_.data(), shape_.rank()}; }
  bool is_contiguous() const noexcept;
  /// The first element, whatever the strides; null when there is no element and none was allocated.
  std::byte* data() noexcept { return data_; }
  const std::byte* data() const noexcept { return data_; }

  /// The elements as T. Throws Error(kInvalidArgument) if T is not the dtype's type (uint16_t for f16 and
  /// bf16) or the tensor is not contiguous.
  template <class T>
  std::span<T> span();
  template <class T>
  std::span<const T> span() const;
  /// Raw bytes of a contiguous tensor (the only access to kTernary).
  std::span<std::byte> bytes();
  std::span<const std::byte> bytes() const;

  /// Views; a negative axis counts from the end. Throw Error(kInvalidArgument) on axes or ranges outside the
  /// shape; kTernary cannot be viewed except by slicing axis 0 and by reshaping.
  /// Elements begin, begin + step, … below end; step > 0.
  Tensor slice(std::int64_t axis, std::int64_t begin, std::int64_t end, std::int64_t step = 1) const;
  Tensor permute(std::span<const std::int64_t> axes) const;
  Tensor transpose(std::int64_t a, std::int64_t b) const;
  /// Same elements in the same order, another shape. Throws where the strides do not allow it without a copy
  /// (contiguous().reshape(…) copies), and for another number of elements.
  Tensor reshape(Shape shape) const;
  /// NumPy's broadcasting: axes are aligned from the last, one of size 1 is repeated (with stride 0: to be
  /// read, not to be written). Throws Error(kInvalidArgument) naming both shapes.
  Tensor broadcast_to(const Shape& shape) const;

  /// A contiguous copy (or itself when contiguous already).
  Tensor contiguous(const Memory& memory = nullptr) const;
  /// A contiguous copy with elements converted, each rounded once, half to even. To f16 and bf16: what is too
  /// large becomes infinity, NaN stays a NaN. To i8, i32 and ternary: saturates (infinities too), NaN becomes
  /// 0. f32 kernels of default_isa(), one thread.
  Tensor to(DType dtype, const Memory& memory = nullptr) const;

 private:
  struct Storage;
  static Tensor allocated(DType dtype, Shape shape, const Memory& memory, bool zero);

  DType dtype_ = DType::kF32;
  Shape shape_{0};
  std::array<std::int64_t, Shape::kMaxRank> strides_{};
  std::byte* data_ = nullptr;
  std::shared_ptr<const void> owner_;
};

}  // namespace bitnet
