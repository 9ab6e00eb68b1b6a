#pragma once
// Dimensions of a tensor, slowest first, with arithmetic that cannot overflow silently.
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

namespace bitnet {

/// Up to kMaxRank dimensions, each ≥ 0, slowest-varying first; rank 0 is a scalar with one element.
/// A plain value: copying is cheap, and there is no shared state.
class Shape {
 public:
  static constexpr std::size_t kMaxRank = 8;

  Shape() = default;
  /// Throws Error(kInvalidArgument) on more than kMaxRank dimensions, a negative one, or a product over 2^63
  /// − 1.
  Shape(std::initializer_list<std::int64_t> dims);
  explicit Shape(std::span<const std::int64_t> dims);

  std::size_t rank() const noexcept { return rank_; }
  /// Dimension `axis`; a negative axis counts from the end. Throws Error(kInvalidArgument) when out of range.
  std::int64_t operator[](std::ptrdiff_t axis) const;
  std::span<const std::int64_t> dims() const noexcept { return {dims_.data(), rank_}; }
  /// Product of the dimensions (1 for a scalar).
  std::int64_t numel() const noexcept { return numel_; }
  /// "[2, 3]"
  std::string to_string() const;

  friend bool operator==(const Shape& a, const Shape& b) noexcept {
    if (a.rank_ != b.rank_) return false;
    for (std::size_t i = 0; i < a.rank_; ++i)
      if (a.dims_[i] != b.dims_[i]) return false;
    return true;
  }

 private:
  std::array<std::int64_t, kMaxRank> dims_{};
  std::size_t rank_ = 0;
  std::int64_t numel_ = 1;
};

}  // namespace bitnet
