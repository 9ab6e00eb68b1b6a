#pragma once
// Ternary linears that no public format holds: two planes, or scales of groups of columns, as sums of
// products of BitLinear, which are exact integers each. The rows are copied group by group once a product.
#include <cstdint>
#include <memory_resource>
#include <span>
#include <vector>

#include "bitnet/core/device/backend_types.hpp"
#include "bitnet/core/execution.hpp"
#include "bitnet/quant/bit_linear.hpp"
#include "bitnet/quant/quantize.hpp"

namespace bitnet::quant {

/// Memory of a product, kept from one to the next. One product's at a time.
struct ExtendedScratch {
  explicit ExtendedScratch(std::pmr::memory_resource* memory) : values(memory), sums(memory), sum(memory) {}
  std::pmr::vector<std::int8_t> values;  // [groups, rows, quantized_stride(columns of the group)]
  std::pmr::vector<std::int32_t> sums;   // [groups, rows]
  std::pmr::vector<float> sum;           // [rows, out]
  std::vector<BitLinear::Summand> summands;
};

/// Ternary weights [out, in] of one or two planes. Immutable, thread-safe.
class ExtendedLinear {
 public:
  /// Throws as BitLinear does.
  ExtendedLinear(const ExecutionContext& context, const LinearWeights& weights);

  std::int64_t out() const noexcept { return out_; }
  std::int64_t in() const noexcept { return in_; }
  std::size_t bytes() const noexcept;  ///< of the tiles and scales of all parts

  /// y[rows, out] = Σ over planes, then groups, in that order, of the products as BitLinear::forward() rounds
  /// them.
  void forward(const ExecutionContext& context, const QuantizedRows& x, ExtendedScratch& scratch,
               std::span<float> y) const;
  /// Σ over the planes of scale · trit of rows [begin, end) to `to` [end − begin, in], each product rounded
  /// once, `begin` a multiple of 16. Throws Error(kInvalidArgument) as BitLinear::unpack_rows() does.
  void dequantise_rows(std::int64_t begin, std::int64_t end, std::span<float> to) const;

 private:
  /// Columns [first, first + linear.in()) of a plane.
  struct Part {
    BitLinear linear;
    std::int64_t first;
    std::size_t columns = 0;  ///< which of columns_, unless they are all
  };
  struct Columns {
    std::int64_t first, n;
  };
  static void add_parts(const ExecutionContext& context, const LinearWeights& weights,
                        std::vector<Part>& parts);
  void take_columns(const ExecutionContext& context, const QuantizedRows& x, ExtendedScratch& scratch) const;
  std::int64_t out_, in_;
  std::vector<Part> parts_;
  std::vector<Columns> columns_;  ///< that both planes' groups have
};

/// A view of trits and scales, which must outlive it.
LinearWeights view_of(const TernaryWeights& weights, ActivationForm activations = ActivationForm::kInt8);
/// The same of two planes.
LinearWeights view_of(const TwoPlanes& planes, ActivationForm activations = ActivationForm::kInt8);

}  // namespace bitnet::quant
